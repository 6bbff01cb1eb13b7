package rollup_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder/rollup"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/audittest/rig"
)

// counted returns what the rollups have, summed over shards, as text.
func counted(t testing.TB, pool *pgxpool.Pool, time string) (all []string) {
	t.Helper()
	which := " WHERE hour = -1 OR shard >= 0"
	if time != "day" {
		which = " WHERE hour >= 0"
	}
	for _, sql := range []string{
		`SELECT format('usage %s %s', ` + time + `, row(tenant, model, endpoint, state, sum(tasks), sum(attempts), sum(input_tokens), sum(output_tokens))) FROM rollup_usage` + which + ` GROUP BY ` + time + `, tenant, model, endpoint, state`,
		`SELECT format('latency %s %s', ` + time + `, row(stage, model, bucket, sum(n), sum(us))) FROM rollup_latency` + which + ` GROUP BY ` + time + `, stage, model, bucket`,
		`SELECT format('attempts %s %s', ` + time + `, row(device_id, model, action, cause, sum(n), sum(requests), sum(us))) FROM rollup_attempts` + which + ` GROUP BY ` + time + `, device_id, model, action, cause`,
		`SELECT format('batches %s %s', ` + time + `, row(model, reason, size, sum(tasks), sum(bytes))) FROM rollup_batches` + which + ` GROUP BY ` + time + `, model, reason, size`,
		`SELECT format('submissions %s %s', ` + time + `, row(tenant, actor_id, source, user_agent, sum(tasks), sum(input_bytes), min(first_at), max(last_at))) FROM rollup_submissions GROUP BY ` + time + `, tenant, actor_id, source, user_agent`,
	} {
		rows, err := pool.Query(t.Context(), sql+` ORDER BY 1`)
		require.NoError(t, err)
		part, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		require.NotEmpty(t, part, sql)
		all = append(all, part...)
	}
	return all
}

func TestRollupsAgreeWithTheRows(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	rand := rand.New(rand.NewPCG(7, 7))
	now := time.Now().UTC()
	for writer := range 2 { // two recorders, each with its own partitions
		r := rig.New(t, pool)
		events, results := r.Own("events", writer), r.Own("results", writer)
		for i := range 40 {
			var c []*stream.Record
			for j := range 5 {
				es, rs := audittest.RandomTask(rand, fmt.Sprint(writer, "-", i, "-", j), now.Add(-time.Duration(rand.Int64N(int64(6*audit.Day)))))
				c = append(c, events.Events(t, es...))
				for _, res := range rs {
					c = append(c, results.Result(t, res))
				}
			}
			r.Record(c...)
		}
	}
	hours, days := counted(t, pool, "day || ' ' || hour"), counted(t, pool, "day")
	recent := func(all []string) (some []string) { // those that still have hours
		for _, s := range all {
			if at := strings.Fields(s)[1]; at >= now.AddDate(0, 0, -2).Format(time.DateOnly) {
				some = append(some, s)
			}
		}
		return some
	}
	shards := audittest.One[int](t, pool, "SELECT count(DISTINCT shard) FROM rollup_latency")
	require.Equal(t, 2, shards)

	require.NoError(t, rollup.Compact(t.Context(), pool, 90*audit.Day))
	require.Equal(t, days, counted(t, pool, "day"), "compacting changes no sum")
	require.Zero(t, audittest.One[int](t, pool, "SELECT count(*) FROM rollup_latency WHERE shard >= 0 AND day < (now() AT TIME ZONE 'UTC')::date - 1"))
	require.Equal(t, recent(hours), recent(counted(t, pool, "day || ' ' || hour")))
	require.NoError(t, rollup.Compact(t.Context(), pool, 90*audit.Day))
	require.Zero(t, audittest.One[int](t, pool, "SELECT count(*) FROM rollup_usage WHERE day < (now() AT TIME ZONE 'UTC')::date - 2 AND hour >= 0"))
	require.Equal(t, days, counted(t, pool, "day"))

	_, err := pool.Exec(t.Context(), "SELECT batchyard_rebuild_rollups('-infinity')")
	require.NoError(t, err)
	require.Equal(t, hours, counted(t, pool, "day || ' ' || hour"), "counted by the recorder, and from the rows")

	require.NoError(t, rollup.Compact(t.Context(), pool, audit.Day/2))
	require.Zero(t, audittest.One[int](t, pool, "SELECT count(*) FROM rollup_usage WHERE day < (now() AT TIME ZONE 'UTC')::date - 2"))
}

// A chunk that is not recorded is not counted.
func TestARolledBackChunkIsNotCounted(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	old, young := rig.New(t, pool), rig.New(t, pool)
	before := old.Own("events", 0)
	held := before.Events(t, audittest.NewStory("t1").Accepted())
	young.Own("events", 0)
	young.Record(held)
	old.Record(held)
	require.Equal(t, 1, audittest.One[int](t, pool, "SELECT sum(tasks)::int FROM rollup_submissions"))
}

// BenchmarkRollup is the cost of counting an event, with its share of results.
func BenchmarkRollup(b *testing.B) {
	rand := rand.New(rand.NewPCG(1, 1))
	var es []task.Event
	var rs []*task.Result
	for i := range 2000 {
		e, r := audittest.RandomTask(rand, fmt.Sprint(i), time.Now())
		es, rs = append(es, e...), append(rs, r...)
	}
	var r rollup.Counts
	b.ReportAllocs()
	for b.Loop() {
		for i := range es {
			r.Add(&es[i])
		}
		for _, res := range rs {
			r.AddResult(res)
		}
		r.Reset()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(es)), "ns/event")
}
