package routesim

import (
	"time"

	"github.com/batchyard/batchyard/router"
	"github.com/batchyard/batchyard/task"
)

// Scenarios are experiments in which something goes wrong, or some tasks are
// before others. Each is a setup; what it shows is in the outcome's streams and
// devices.

// scenario is what they have in common: mixed12, one router, rates learned.
func scenario(policy string, seed uint64, warm, d time.Duration) Setup {
	f := fleets["mixed12"]()
	return Setup{
		Fleet: f, Policy: policy, Routers: 1, Hop: 2 * time.Millisecond, Seed: seed, Warmup: warm, Duration: d, Learned: true,
	}
}

// FailingDevices is a fleet at half of its load in which, all at once, two of
// twelve devices (one of the fastest among them) begin to fail every request
// within a millisecond, and one more to hang. What is left is then loaded to
// 85 %.
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

// RecoveringDevice is a device that fails for half a minute and is well again.
func RecoveringDevice(policy string, seed uint64) Setup {
	const warm, d = 20 * time.Second, 4 * time.Minute
	s := scenario(policy, seed, warm, d)
	s.Streams = []Stream{{Name: "all", Begin: Poisson(0.7*s.Fleet.Capacity(), Exponential, 0, warm+d)}}
	s.Faults = []Fault{{At: 30 * time.Second, Device: "a-001", Mode: Failing}, {At: time.Minute, Device: "a-001", Mode: Well}}
	return s
}

// LowBacklog is low tasks that wait, and a hundred high ones that come while they
// do, at half of the fleet's capacity. (A hundred at the same moment would keep
// the fleet busy for a hundred mean services by themselves.) Streams: low, high.
func LowBacklog(policy string, seed uint64, low, routers int) Setup {
	const warm, d = 5 * time.Second, 15 * time.Second
	s := scenario(policy, seed, warm, d)
	s.Routers, s.Cut = routers, true
	s.Streams = []Stream{
		{Name: "low", Priority: task.Low, Begin: Burst(low, Exponential, 0)},
		{Name: "high", Priority: task.High, Begin: First(100, Poisson(0.5*s.Fleet.Capacity(), Exponential, 10*time.Second, warm+d))},
	}
	return s
}

// EndlessHigh is more high tasks than the fleet can do, for as long as it lasts,
// and low ones that want a third of it. Streams: high, low.
func EndlessHigh(policy string, seed uint64, routers int) Setup {
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

// Nobody is a model that no device has.
const Nobody = "nobody-has-it"

// Strangers is a fleet at 85 % load, and so many tasks for a model that nobody
// has, all at once. They wait until their deadline and expire. Streams: all,
// strangers.
func Strangers(policy string, seed uint64, strangers, window int) Setup {
	const warm, d = 30 * time.Second, 2 * time.Minute
	s := scenario(policy, seed, warm, d)
	s.Streams = []Stream{
		{Name: "all", Begin: Poisson(0.85*s.Fleet.Capacity(), Exponential, 0, warm+d)},
		{Name: "strangers", Model: Nobody, Deadline: d, Begin: Burst(strangers, Exponential, warm)},
	}
	if window > 0 {
		s.Router = func(c *router.Config) { c.MaxPendingTasks = window }
	}
	return s
}

// First is the first n tasks of another stream.
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
