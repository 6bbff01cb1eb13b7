package routesim

import (
	"time"

	"github.com/batchyard/batchyard/router"
	"github.com/batchyard/batchyard/task"
)

// The scenarios below are setups in which devices fail, or some tasks have priority
// over others. Their results are in the outcome's streams and devices.

// scenario returns what they have in common: mixed12, one router, learned rates.
func scenario(policy string, seed uint64, warm, d time.Duration) Setup {
	f := fleets["mixed12"]()
	return Setup{
		Fleet: f, Policy: policy, Routers: 1, Hop: 2 * time.Millisecond, Seed: seed, Warmup: warm, Duration: d, Learned: true,
	}
}

// FailingDevices is a fleet at half load. All at once, two of the twelve devices
// (including one of the fastest) start failing every request within a millisecond,
// and a third hangs. The load on the remaining devices is then 85 %.
func FailingDevices(policy string, seed uint64) Setup {
	const warm, at, d = 20 * time.Second, 30 * time.Second, 4 * time.Minute
	s := scenario(policy, seed, warm, d)
	s.Streams = []Stream{{Name: "all", Begin: Poisson(0.5*s.Fleet.Capacity(), Exponential, 0, warm+d)}}
	s.Faults = []Fault{
		{At: at, Device: "a-001", Mode: Failing},
		{At: at, Device: "c-001", Mode: Failing},
		{At: at, Device: "b-001", Mode: Hanging},
	}
	return s
}

// RecoveringDevice has a device that fails for half a minute and then recovers.
func RecoveringDevice(policy string, seed uint64) Setup {
	const warm, d = 20 * time.Second, 4 * time.Minute
	s := scenario(policy, seed, warm, d)
	s.Streams = []Stream{{Name: "all", Begin: Poisson(0.7*s.Fleet.Capacity(), Exponential, 0, warm+d)}}
	s.Faults = []Fault{{At: 30 * time.Second, Device: "a-001", Mode: Failing}, {At: time.Minute, Device: "a-001", Mode: Healthy}}
	return s
}

// HighOverLowBacklog has a backlog of low-priority tasks. While they wait, a hundred
// high-priority tasks arrive at half the fleet's capacity. (If all hundred arrived
// at once, they alone would keep the fleet busy for a hundred mean service times.)
// Streams: low, high.
func HighOverLowBacklog(policy string, seed uint64, low, routers int) Setup {
	const warm, d = 5 * time.Second, 15 * time.Second
	s := scenario(policy, seed, warm, d)
	s.Routers, s.Cut = routers, true
	s.Streams = []Stream{
		{Name: "low", Priority: task.Low, Begin: Burst(low, Exponential, 0)},
		{Name: "high", Priority: task.High, Begin: First(100, Poisson(0.5*s.Fleet.Capacity(), Exponential, 10*time.Second, warm+d))},
	}
	return s
}

// SustainedHighOverload has more high-priority tasks than the fleet can handle
// throughout, and low-priority tasks that ask for a third of it. Streams: high, low.
func SustainedHighOverload(policy string, seed uint64, routers int) Setup {
	const warm, d = 10 * time.Second, time.Minute
	s := scenario(policy, seed, warm, d)
	s.Routers, s.Cut = routers, true
	s.Router = func(c *router.Config) { c.MaxPendingTasks = 1024 }
	s.Streams = []Stream{
		{Name: "high", Priority: task.High, Begin: Poisson(1.2*s.Fleet.Capacity(), Exponential, 0, warm+d)},
		{Name: "low", Priority: task.Low, Begin: Poisson(0.33*s.Fleet.Capacity(), Exponential, 0, warm+d)},
	}
	return s
}

// UnservedModel is a model that no device serves.
const UnservedModel = "unserved-model"

// UnservedModelBacklog is a fleet at 85 % load, plus n tasks for UnservedModel, all
// at once. These wait until their deadline and expire. Streams: all, unserved.
func UnservedModelBacklog(policy string, seed uint64, n, window int) Setup {
	const warm, d = 30 * time.Second, 2 * time.Minute
	s := scenario(policy, seed, warm, d)
	s.Streams = []Stream{
		{Name: "all", Begin: Poisson(0.85*s.Fleet.Capacity(), Exponential, 0, warm+d)},
		{Name: "unserved", Model: UnservedModel, Deadline: d, Begin: Burst(n, Exponential, warm)},
	}
	if window > 0 {
		s.Router = func(c *router.Config) { c.MaxPendingTasks = window }
	}
	return s
}

// First returns a stream of the first n tasks of another.
func First(n int, begin func(uint64) func() (Arrival, bool)) func(uint64) func() (Arrival, bool) {
	return func(seed uint64) func() (Arrival, bool) {
		next, left := begin(seed), n
		return func() (Arrival, bool) {
			if left--; left < 0 {
				return Arrival{}, false
			}
			return next()
		}
	}
}
