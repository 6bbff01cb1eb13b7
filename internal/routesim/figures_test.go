package routesim

import (
	"cmp"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/router/policy"
)

// These tests check the figures that the default policy must reach. The experiments
// have fixed seeds, so they give the same figures every time; `batchyard bench
// route` runs the same experiments at full length.

// seedCount is how many of the given number of seeds to run: all with CI_LONG=1,
// otherwise the first only. Runs with a fixed seed are reproducible, so the limits
// below hold either way. More seeds take minutes and show how much the figures vary
// by chance.
func seedCount(seeds int) int {
	if raceEnabled || os.Getenv("CI_LONG") == "" {
		return 1
	}
	return seeds
}

// trial is an experiment on mixed12, with a single load and number of routers.
type trial struct {
	work     string // empty means exponential
	load     float64
	routers  int // 0 means 1
	seeds    int
	duration time.Duration
}

// run compares policies and returns the results by policy.
func (c trial) run(t *testing.T, policies ...string) map[string]*Result {
	t.Helper()
	work, routers := cmp.Or(c.work, "exponential"), cmp.Or(c.routers, 1)
	p := Plan{
		Arms: Grid{
			Fleets: []string{"mixed12"}, Arrivals: []string{"poisson"}, Works: []string{work}, Loads: []float64{c.load}, Routers: []int{routers},
			Hops: []time.Duration{2 * time.Millisecond}, Bindings: []string{"auto"}, Policies: policies,
		}.Arms(),
		Seeds: seedCount(c.seeds), First: 1, Warmup: 20 * time.Second, Duration: c.duration,
	}
	if raceEnabled {
		p.Warmup, p.Duration = 10*time.Second, c.duration/2
	}
	rs, err := p.Run(t.Context(), nil)
	require.NoError(t, err)
	by := map[string]*Result{}
	for i := range rs {
		r := &rs[i]
		by[r.Policy] = r
		t.Logf("%s work, load %.2f, %d routers: %-20s mean %7.1f ms (%.2f × bound), p99 %7.1f ms, utilisation %.1f %%", work, c.load, routers, r.Policy,
			1e3*r.Outcome.Mean(), r.Outcome.Mean()/r.Bound, 1e3*r.Outcome.Quantile(0.99), 100*r.Outcome.Utilisation())
	}
	return by
}

// Mean and tail at 85 % load.
func TestNearLowerBoundWithBestTail(t *testing.T) {
	t.Parallel()
	for _, work := range []string{"exponential", "lognormal"} {
		by := trial{work: work, load: 0.85, seeds: 4, duration: 60 * time.Second}.run(t, standard, "prequal", "power_of_two", "weighted_round_robin")
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
func TestMeanCloseToTheBestPolicy(t *testing.T) {
	t.Parallel()
	policies := policy.Names()
	if raceEnabled {
		policies = []string{standard, "fifo", "least_connections", "prequal", "power_of_two"}
	}
	for _, load := range []float64{0.5, 0.95} {
		by := trial{load: load, seeds: 2, duration: 60 * time.Second}.run(t, policies...)
		for name, r := range by {
			require.LessOrEqual(t, by[standard].Outcome.Mean(), 1.05*r.Outcome.Mean(), "load %.2f: mean of %s", load, name)
		}
	}
}

func TestFourRoutersAreNearlyAsGoodAsOne(t *testing.T) {
	t.Parallel()
	one := trial{load: 0.85, seeds: 4, duration: 60 * time.Second}.run(t, standard)[standard]
	four := trial{load: 0.85, routers: 4, seeds: 4, duration: 60 * time.Second}.run(t, standard)[standard]
	require.LessOrEqual(t, four.Outcome.Mean(), 1.15*one.Outcome.Mean())
}

// Each policy at its own highest rate with p99 ≤ 1 s.
func TestOutperformsRoundRobin(t *testing.T) {
	t.Parallel()
	p := Plan{Seeds: 2, First: 1, Warmup: 20 * time.Second, Duration: 60 * time.Second}
	if raceEnabled {
		p.Seeds, p.Duration = 1, 15*time.Second
	}
	limit := Limit{0.99, time.Second}
	arm := Arm{Policy: "round_robin", Binding: "auto", Arrivals: "poisson", Work: "exponential", Routers: 1, Hop: 2 * time.Millisecond, Fleet: "mixed12"}
	theirs, err := p.MaxRate(t.Context(), arm, limit)
	require.NoError(t, err)
	arm.Policy = standard
	ours, err := p.MaxRate(t.Context(), arm, limit)
	require.NoError(t, err)
	there := trial{load: theirs.Load, seeds: 2, duration: 90 * time.Second}.run(t, standard)[standard]
	t.Logf("round_robin keeps p99 ≤ 1 s up to %.1f tasks/s, utilisation %.1f %%; %s up to %.1f, %.1f %%: %.2f times as much; mean at round_robin's highest rate: %.2f times",
		theirs.Load*theirs.Outcome.Capacity, 100*theirs.Outcome.Utilisation(), standard, ours.Load*ours.Outcome.Capacity, 100*ours.Outcome.Utilisation(),
		ours.Load/theirs.Load, there.Outcome.Mean()/theirs.Outcome.Mean())
	require.GreaterOrEqual(t, ours.Outcome.Goodput(), 2.29*theirs.Outcome.Goodput(), "throughput")
	require.GreaterOrEqual(t, ours.Outcome.Utilisation(), 0.92)
	require.LessOrEqual(t, there.Outcome.Mean(), 0.37*theirs.Outcome.Mean(), "mean at round robin's highest rate")
}

// More load than the fleet can handle.
func TestOverloadKeepsFleetBusy(t *testing.T) {
	t.Parallel()
	for _, routers := range []int{1, 4} {
		r := trial{load: 1.2, routers: routers, seeds: 1, duration: 40 * time.Second}.run(t, standard)[standard]
		require.GreaterOrEqual(t, r.Outcome.Utilisation(), 0.97)
		require.Zero(t, r.Outcome.Failures)
	}
}
