package chaos

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPlanDependsOnlyOnTheSeed(t *testing.T) {
	t.Parallel()
	devices := []string{"d1", "d2", "d3"}
	for seed := range uint64(50) {
		plan := Plan(seed, time.Minute, devices)
		require.Equal(t, plan, Plan(seed, time.Minute, devices))
		require.NotEqual(t, plan, Plan(seed+1, time.Minute, devices))
		seen := map[Kind]int{}
		until := map[string]time.Duration{}
		for _, f := range plan {
			seen[f.Kind]++
			require.LessOrEqualf(t, f.At+f.For, time.Minute+time.Second, "%v", f)
			require.LessOrEqualf(t, until[f.Target], f.At, "%v overlaps another fault of its target", f)
			until[f.Target] = f.At + f.For
			if f.Kind == Pause && f.At < 50*time.Second {
				require.Greater(t, f.For, SessionTimeout)
			}
		}
		for _, k := range kinds {
			require.Positivef(t, seen[k], "seed %d has no %s in %d faults", seed, k, len(plan))
		}
	}
}

func TestASoakTakesAwayEachStageInTurn(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		p := newSoak(seed, 450*time.Second, 40)
		require.Equal(t, p.plan, newSoak(seed, 450*time.Second, 40).plan)
		absent := map[string]bool{}
		var until time.Duration
		for i, f := range p.plan {
			if f.Kind == Absent {
				require.GreaterOrEqual(t, f.At, until, "one at a time")
				require.Greater(t, f.For, 2*p.retention)
				absent[f.Target], until = true, f.At+f.For
			}
			for _, other := range p.plan[:i] {
				require.Falsef(t, f.overlaps(other), "%v and %v", f, other)
			}
		}
		require.Len(t, absent, len(Stages))
	}
}
