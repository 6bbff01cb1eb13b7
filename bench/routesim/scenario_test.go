package routesim

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const standard = "expected_finish"

// runSeeds runs a setup with several seeds and merges the outcomes.
func runSeeds(t *testing.T, seeds int, of func(seed uint64) Setup) *Outcome {
	t.Helper()
	var all Outcome
	for seed := range uint64(seedCount(seeds)) {
		o, err := Run(t.Context(), of(seed+1))
		require.NoError(t, err)
		all.Merge(o)
	}
	return &all
}

func TestFailingDevicesAreAvoided(t *testing.T) {
	t.Parallel()
	o := runSeeds(t, 3, func(seed uint64) Setup { return FailingDevices(standard, seed) })
	dead := int64(0)
	for _, d := range o.Devices {
		dead += d.After
	}
	t.Logf("%d of %d tasks failed, %d of %d attempts went to dead devices", o.Failures, o.Tasks, dead, o.Late)
	require.LessOrEqual(t, float64(o.Failures), 0.001*float64(o.Tasks), "tasks that failed for the user")
	require.LessOrEqual(t, float64(dead), 0.01*float64(o.Late), "attempts that went to dead devices")
}

// A device that recovers gets its share of the work back.
func TestRecoveredDeviceGetsWork(t *testing.T) {
	t.Parallel()
	o := runSeeds(t, 2, func(seed uint64) Setup { return RecoveringDevice(standard, seed) })
	require.Zero(t, o.Failures)
	recovered := o.Devices[0]
	t.Logf("%s was busy for %.0f slot-seconds, its twin for %.0f", recovered.ID, recovered.Busy, o.Devices[1].Busy)
	require.Greater(t, recovered.Busy, 0.5*o.Devices[1].Busy)
}

func TestHighTasksOvertakeLowBacklog(t *testing.T) {
	t.Parallel()
	for _, routers := range []int{1, 2} {
		o := runSeeds(t, 5, func(seed uint64) Setup { return HighOverLowBacklog(standard, seed, 100_000, routers) })
		high := &o.Streams[1]
		most := 2 * fleets["mixed12"]().MeanService().Seconds()
		t.Logf("%d routers: high tasks wait %.1f ms (p50) and %.1f ms (p99) for a slot, %.1f ms (p99) for a device; two mean service times are %.1f ms", routers,
			1e3*high.Wait.Quantile(0.5), 1e3*high.Wait.Quantile(0.99), 1e3*high.Chosen.Quantile(0.99), 1e3*most)
		require.EqualValues(t, 100*len(o.Means), high.Wait.N)
		require.LessOrEqual(t, high.Wait.Quantile(0.99), most)
	}
}

func TestLowTasksAreNotStarved(t *testing.T) {
	t.Parallel()
	for _, routers := range []int{1, 2} {
		if raceEnabled && routers == 1 {
			continue
		}
		o := runSeeds(t, 2, func(seed uint64) Setup { return SustainedHighOverload(standard, seed, routers) })
		share := o.Streams[1].Work / (o.Measured * o.Capacity)
		t.Logf("%d routers: low tasks keep %.1f %% of the capacity; utilisation %.1f %%", routers, 100*share, 100*o.Utilisation())
		require.GreaterOrEqual(t, share, 0.05)
		require.LessOrEqual(t, share, 0.15, "high tasks still go first")
	}
}

func TestUnservedModelDoesNotDelayOthers(t *testing.T) {
	t.Parallel()
	const window = 2048
	without := runSeeds(t, 3, func(seed uint64) Setup { return UnservedModelBacklog(standard, seed, 0, window) })
	with := runSeeds(t, 3, func(seed uint64) Setup { return UnservedModelBacklog(standard, seed, 10_000, window) })
	a, b := without.Streams[0].Response.Quantile(0.99), with.Streams[0].Response.Quantile(0.99)
	t.Logf("p99 of the other tasks: %.1f ms without and %.1f ms with 10,000 tasks for an unserved model; %d recalled, at most %d held", 1e3*a, 1e3*b, with.Recalled, with.MostHeld)
	require.LessOrEqual(t, b, 1.10*a)
	require.EqualValues(t, 10_000*len(with.Means), with.Streams[1].Failures, "they expire")
	require.Zero(t, with.Streams[0].Failures)
	require.LessOrEqual(t, with.MostHeld, window)
}

// A device that hangs does not hold a task indefinitely.
func TestHangingRequestsTimeOut(t *testing.T) {
	t.Parallel()
	s := FailingDevices(standard, 1)
	s.Faults = s.Faults[2:]
	o, err := Run(t.Context(), s)
	require.NoError(t, err)
	require.Zero(t, o.Failures)
	require.GreaterOrEqual(t, o.Response.Max, (5 * time.Minute).Seconds())
}
