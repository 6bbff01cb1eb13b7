package rollup

import (
	"fmt"
	"math"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestBucketsMatchPostgres(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	var us []int64
	for i := range 4096 {
		us = append(us, int64(i))
	}
	for e := range 62 {
		for d := int64(-2); d <= 2; d++ {
			us = append(us, 1<<e+d, 1<<e+1<<e/8*3+d)
		}
	}
	type row struct {
		US     int64
		Bucket int16
		MS     float64
	}
	rows, err := pool.Query(t.Context(), "SELECT us, batchyard_bucket(us), batchyard_bucket_ms(batchyard_bucket(us)) FROM unnest($1::bigint[]) AS us", us)
	require.NoError(t, err)
	got, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	require.NoError(t, err)
	require.Len(t, got, len(us))
	for _, r := range got {
		require.Equal(t, bucketOf(r.US), r.Bucket, r.US)
		if r.US >= 0 {
			require.InDelta(t, float64(r.US)/1000, r.MS, float64(r.US)/1000*0.06251, r.US)
		}
	}
}

func TestBatchDetailsAreReadQuicklyAndRight(t *testing.T) { //nolint:paralleltest // it counts allocations
	for in, want := range map[string]string{
		`{"bytes":12,"reason":"idle","tasks":3}`:       "idle 3 12 true",
		`{"bytes":0,"reason":"count","tasks":100}`:     "count 100 0 true",
		`{"reason":"count","tasks":100}`:               "count 100 0 true",
		`{"bytes":1,"reason":"count","tasks":1,"x":2}`: "count 1 1 true",
		`{"bytes":1,"reason":"new","tasks":1}`:         "new 1 1 true",
		`{"bytes":-1,"reason":"wait","tasks":1}`:       "wait 1 -1 true",
		`{"bytes":"1","reason":"wait","tasks":1}`:      " 0 0 false",
		`{"unreadable_bytes":7}`:                       " 0 0 false",
		``:                                             " 0 0 true",
	} {
		reason, size, bytes, ok := readBatch([]byte(in))
		require.Equal(t, want, fmt.Sprintf("%s %d %d %t", reason, size, bytes, ok), in)
	}
	usual := []byte(`{"bytes":12,"reason":"idle","tasks":3}`)
	least := math.Inf(1) // others may allocate meanwhile
	for range 20 {
		least = min(least, testing.AllocsPerRun(10, func() { readBatch(usual) }))
	}
	require.Zero(t, least)
}
