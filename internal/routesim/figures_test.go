package routesim

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/router/policy"
)

// What the default policy has to reach. The figures are of whole experiments with
// fixed seeds, so that a test is as exact every time; `batchyard bench route` makes
// the same experiments at full length.

// fewer is how many seeds of so many are run: all with CI_LONG=1, else the first. A
// seed is a run that is the same every time, so the limits below hold for either;
// more of them cost minutes and say how much chance there is in the figures.
func fewer(seeds int) int {
	if raced || os.Getenv("CI_LONG") == "" {
		return 1
	}
	return seeds
}

// experiment runs arms on mixed12 and returns the results by policy.
func experiment(t *testing.T, work string, load float64, routers, seeds int, d time.Duration, policies ...string) map[string]*Result {
	t.Helper()
	p := Plan{
		Arms: Cross([]string{"mixed12"}, []string{"poisson"}, []string{work}, []float64{load}, []int{routers},
			[]time.Duration{2 * time.Millisecond}, []string{"auto"}, policies),
		Seeds: fewer(seeds), First: 1, Warmup: 20 * time.Second, Duration: d,
	}
	if raced {
		p.Warmup, p.Duration = 10*time.Second, d/2
	}
	rs, err := p.Run(t.Context(), nil)
	require.NoError(t, err)
	by := map[string]*Result{}
	for i := range rs {
		r := &rs[i]
		by[r.Policy] = r
		t.Logf("%s work, load %.2f, %d routers: %-20s mean %7.1f ms (%.2f × bound), p99 %7.1f ms, utilisation %.1f %%", work, load, routers, r.Policy,
			1e3*r.Outcome.Mean(), r.Outcome.Mean()/r.Bound, 1e3*r.Outcome.Quantile(0.99), 100*r.Outcome.Utilisation())
	}
	return by
}

// The mean and the tail at 85 %.
func TestNearTheLowerBoundAndBeforeTheOthers(t *testing.T) {
	t.Parallel()
	for _, work := range []string{"exponential", "lognormal"} {
		by := experiment(t, work, 0.85, 1, 4, 60*time.Second, standard, "prequal", "power_of_two", "weighted_round_robin")
		ours := by[standard]
		if work == "exponential" {
			require.LessOrEqual(t, ours.Outcome.Mean(), 1.30*ours.Bound)
		}
		for name, r := range by {
			require.LessOrEqual(t, ours.Outcome.Quantile(0.99), r.Outcome.Quantile(0.99), "%s work: p99 of %s", work, name)
		}
	}
}

// Low and high load.
func TestAsGoodAsTheBestOfAll(t *testing.T) {
	t.Parallel()
	policies := policy.Names()
	if raced {
		policies = []string{standard, "fifo", "least_connections", "prequal", "power_of_two"}
	}
	for _, load := range []float64{0.5, 0.95} {
		by := experiment(t, "exponential", load, 1, 2, 60*time.Second, policies...)
		for name, r := range by {
			require.LessOrEqual(t, by[standard].Outcome.Mean(), 1.05*r.Outcome.Mean(), "load %.2f: mean of %s", load, name)
		}
	}
}

func TestFourRoutersAreNearlyAsGoodAsOne(t *testing.T) {
	t.Parallel()
	one := experiment(t, "exponential", 0.85, 1, 4, 60*time.Second, standard)[standard]
	four := experiment(t, "exponential", 0.85, 4, 4, 60*time.Second, standard)[standard]
	require.LessOrEqual(t, four.Outcome.Mean(), 1.15*one.Outcome.Mean())
}

// Each at its own highest rate with p99 ≤ 1 s.
func TestMoreThanRoundRobin(t *testing.T) {
	t.Parallel()
	p := Plan{Seeds: 2, First: 1, Warmup: 20 * time.Second, Duration: 60 * time.Second}
	if raced {
		p.Seeds, p.Duration = 1, 15*time.Second
	}
	limit := Limit{0.99, time.Second}
	arm := Arm{Policy: "round_robin", Binding: "auto", Arrivals: "poisson", Work: "exponential", Routers: 1, Hop: 2 * time.Millisecond, Fleet: "mixed12"}
	theirs, err := p.MaxRate(t.Context(), arm, limit)
	require.NoError(t, err)
	arm.Policy = standard
	ours, err := p.MaxRate(t.Context(), arm, limit)
	require.NoError(t, err)
	there := experiment(t, "exponential", theirs.Load, 1, 2, 90*time.Second, standard)[standard]
	t.Logf("round_robin keeps p99 ≤ 1 s up to %.1f tasks/s, utilisation %.1f %%; %s up to %.1f, %.1f %%: %.2f times as much; mean at the former's rate: %.2f",
		theirs.Load*theirs.Outcome.Capacity, 100*theirs.Outcome.Utilisation(), standard, ours.Load*ours.Outcome.Capacity, 100*ours.Outcome.Utilisation(),
		ours.Load/theirs.Load, there.Outcome.Mean()/theirs.Outcome.Mean())
	require.GreaterOrEqual(t, ours.Outcome.Goodput(), 2.29*theirs.Outcome.Goodput(), "throughput")
	require.GreaterOrEqual(t, ours.Outcome.Utilisation(), 0.92)
	require.LessOrEqual(t, there.Outcome.Mean(), 0.37*theirs.Outcome.Mean(), "mean at round robin's own highest rate")
}

// More than the fleet can do.
func TestOverloadIsUsedWell(t *testing.T) {
	t.Parallel()
	for _, routers := range []int{1, 4} {
		r := experiment(t, "exponential", 1.2, routers, 1, 40*time.Second, standard)[standard]
		require.GreaterOrEqual(t, r.Outcome.Utilisation(), 0.97)
		require.Zero(t, r.Outcome.Failures)
	}
}
