package verify

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder/rollup"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/audittest/rig"
)

// The rollups of any traffic match the rows, before and after hours are added to their days.
func TestRollupsOfRandomTrafficMatch(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	r := rig.New(t, pool)
	e0, results := r.Own("events", 0), r.Own("results", 0)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 60 {
		es, rs := audittest.RandomTask(random, fmt.Sprint("t", i), time.Now().UTC().Truncate(time.Microsecond).Add(-time.Duration(random.Int64N(int64(3*audit.Day)))))
		r.Record(e0.Events(t, es...))
		for _, res := range rs {
			r.Record(results.Result(t, res))
		}
	}
	differences := func() (all []string) {
		for _, f := range verify(t, pool, Options{}).Findings {
			if strings.Contains(f.Detail, "rollup_") {
				all = append(all, f.Detail)
			}
		}
		return all
	}
	require.Empty(t, differences())
	require.NoError(t, rollup.Compact(t.Context(), pool, 90*audit.Day))
	require.Empty(t, differences())
	audittest.Execute(t, pool, "UPDATE rollup_attempts SET requests = requests + 1 WHERE day = (SELECT min(day) FROM rollup_attempts)")
	require.NotEmpty(t, differences())
}
