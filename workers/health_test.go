package workers

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/task"
)

// bare is workers without a log, and a runner of theirs.
func bare(id string) (*Workers, *runner) {
	s := &Workers{
		cfg: testConfig(), deps: Deps{Logger: logger(), Metrics: metrics.New(nil)}, wake: make(chan struct{}, 1), lookNow: make(chan struct{}, 1),
		runners: map[string]*runner{}, farewells: map[string]device.Health{}, live: newLive(),
	}
	r := newRunner(s, task.DeviceRef{ID: id, Slots: 4}, 0)
	s.runners[id] = r
	return s, r
}

func TestUnwellDevicesAreToldAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := bare("d")
		tell := func() map[string]device.Health { return s.healths(s.all(), time.Now()) }
		require.Equal(t, device.StateClosed, tell()["d"].State, "a new one: what was told of the one before counts no more")
		require.Empty(t, tell(), "who is well is told once")
		<-time.After(tellEvery)
		require.Len(t, tell(), 1, "or now and then: Redis may have forgotten it")

		r.slowDown(150 * time.Millisecond)
		require.False(t, tell()["d"].SlowUntil.IsZero())
		require.Len(t, tell(), 1, "who is not is told each time")
		<-time.After(time.Second)
		require.True(t, tell()["d"].SlowUntil.IsZero())
		require.Empty(t, tell())

		for range 5 {
			r.ejector.Started(time.Now())
			r.ejector.Ended(time.Now(), device.Fault, 0)
		}
		r.slowDown(150 * time.Millisecond)
		h := tell()["d"]
		require.Equal(t, device.StateOpen, h.State)
		require.False(t, h.OpenUntil.IsZero())
		require.Equal(t, "5 consecutive faults", h.Why)
		require.Len(t, tell(), 1)

		r.fit.Ended(time.Now(), device.Throttled, 0)
		require.Equal(t, 2, tell()["d"].Slots)
		r.hop.learn(3 * time.Millisecond)
		require.InDelta(t, 3, tell()["d"].HopMS, 0.01)

		<-time.After(time.Minute)
		require.Equal(t, device.StateHalfOpen, tell()["d"].State)
		r.used = time.Now().Add(-time.Hour)
		s.retire(retireAfter)
		require.Empty(t, s.all())
		hs := tell()
		require.Equal(t, device.StateClosed, hs["d"].State, "nobody is left to test it")
		s.untold(nil, hs)
		require.Len(t, tell(), 1, "what could not be told is told again")
		require.Empty(t, tell())
	})
}

func TestUntoldHealthIsToldAgain(t *testing.T) {
	s, _ := bare("d")
	now := time.Now()
	hs := s.healths(s.all(), now)
	require.Len(t, hs, 1)
	s.untold(s.all(), hs)
	require.Empty(t, s.farewells)
	require.Len(t, s.healths(s.all(), now), 1)
	require.Empty(t, s.healths(s.all(), now))
}

// The hop is about the shortest that comes often, whatever comes now and then.
func TestHopIsALowQuantile(t *testing.T) {
	var h hop
	require.Zero(t, h.value())
	h.learn(-time.Hour) // the router's clock is ahead
	h.learn(0)
	require.Zero(t, h.value())
	for i := range 2000 {
		h.learn(time.Duration(10+(i*7)%40) * time.Millisecond) // 10 to 49 ms, evenly
	}
	require.InDelta(t, 20, h.value(), 4)
	for range 50 {
		h.learn(time.Hour)
	}
	require.Less(t, h.value(), 50.0, "bounded, and slow to grow")
	for range 200 {
		h.learn(2 * time.Millisecond)
	}
	require.InDelta(t, 2, h.value(), 0.1, "quick to fall")
}

// What was learned by a device's last owner is where the next begins.
func TestRunnersBeginWithWhatIsKnown(t *testing.T) {
	s, r := bare("d")
	key := device.RateKey{Device: "d", Model: "m"}
	tk := chat("t")
	tk.Normalize(time.Now())
	r.running[&call{works: []*work{{a: task.Assignment{Task: *tk}}}}] = struct{}{}
	require.Zero(t, r.expected(), "nobody has run it")
	s.seed(s.all(), map[device.RateKey]device.Rate{{Device: "e", Model: "m"}: {ServiceMS: 300, Samples: 1}, {Device: "f", Model: "m"}: {ServiceMS: 200, Samples: 1}})
	require.Equal(t, 300*time.Millisecond, r.expected(), "as long as on the slowest that is known")
	r.seeded = false
	s.seed(s.all(), map[device.RateKey]device.Rate{key: {ServiceMS: 50, Samples: 100}, {Device: "e", Model: "m"}: {ServiceMS: 300, Samples: 1}})
	require.Equal(t, 50*time.Millisecond, r.expected())
	s.seed(s.all(), map[device.RateKey]device.Rate{key: {ServiceMS: 1, Samples: 100}})
	require.Equal(t, 50*time.Millisecond, r.expected(), "once")
}

// A device that takes requests and answers none is found long before they time
// out: nothing more goes there, and what waits there goes elsewhere.
func TestADeviceThatHangsIsLeftAlone(t *testing.T) {
	y := newYard(t, fleet.Spec{ID: "d", Slots: 1, ServiceTime: 5 * time.Millisecond})
	cfg := testConfig()
	cfg.HangMin, cfg.HangFactor, cfg.Timeout = 200*time.Millisecond, 2, time.Hour
	y.workers(cfg)
	d := y.fleet.Device("d")
	y.send("d", chat("known"))
	require.Equal(t, task.Success, y.only("known").State)
	d.SetFault(fleet.Fault{Kind: fleet.Hang})
	y.send("d", chat("hangs"), chat("waits-1"), chat("waits-2"))
	y.until("its breaker", func() bool { return y.count(task.BreakerOpened) == 1 })
	for _, id := range []string{"waits-1", "waits-2"} {
		tk := y.back(id, 1)
		require.Zero(t, tk.Tried())
		require.Empty(t, tk.Progress.Exclude)
	}
	require.EqualValues(t, 2, d.Stats().Requests)
	require.Equal(t, 1, d.Stats().InFlight, "what hangs may still be answered")
	y.eventually("no credit is held, else no router could send a test", func() bool { return y.creditsUsed("d") == 0 })
	y.eventually("routers are told", func() bool {
		_, hs, err := y.deps.Rates.Load(t.Context())
		return err == nil && hs["d"].Opened == 1
	})
	d.ClearFault()
	y.until("a test", func() bool { return y.count(task.BreakerHalfOpen) > 0 })
	y.send("d", chat("test"))
	require.Equal(t, task.Success, y.only("test").State)
	y.until("it to close", func() bool { return y.count(task.BreakerClosed) == 1 })
	require.NoError(t, y.deps.Cancels.Mark(t.Context(), task.Key{Tenant: task.DefaultTenant, ID: "hangs"}))
	y.committed()
	for _, e := range y.events {
		if e.Action == task.BreakerOpened {
			require.Contains(t, string(e.Detail), "nothing ended for")
		}
	}
}

// A device that answers 429 gets half as much at a time, and slowly more again.
func TestThrottledDevicesGetLessAtATime(t *testing.T) {
	y := newYard(t, fleet.Spec{ID: "d", Slots: 8, ServiceTime: 20 * time.Millisecond})
	y.workers(testConfig())
	d := y.fleet.Device("d")
	slots := func() int {
		_, hs, err := y.deps.Rates.Load(t.Context())
		require.NoError(t, err)
		return hs["d"].Slots
	}
	for i, want := range []int{4, 2} {
		d.SetFault(fleet.Fault{Kind: fleet.RateLimit, Times: 1})
		id := fmt.Sprint("throttled-", i)
		y.send("d", chat(id))
		y.back(id, 1)
		y.eventually("routers are told", func() bool { return slots() == want })
	}
	var tasks []*task.Task
	for i := range 4 {
		tasks = append(tasks, chat(fmt.Sprint("few-", i)))
	}
	y.send("d", tasks...)
	for _, tk := range tasks {
		require.Equal(t, task.Success, y.only(tk.ID).State)
	}
	require.LessOrEqual(t, d.Stats().MaxRunning, 3, "two, and one more after two answers")
	tasks = nil
	for i := range 60 {
		tasks = append(tasks, chat(fmt.Sprint("many-", i)))
	}
	y.send("d", tasks...)
	y.until("all of them", func() bool { return len(y.results) == 64 })
	require.Greater(t, d.Stats().MaxRunning, 4, "it takes more again; that it takes all is what routers are told next")
	y.eventually("routers are told", func() bool { return slots() == 0 })
	y.eventually("so is the hop", func() bool {
		_, hs, err := y.deps.Rates.Load(t.Context())
		return err == nil && hs["d"].HopMS > 0 && hs["d"].HopMS < 10_000
	})
}

// So a device that hangs from the first request of its new owner is found too.
func TestANewOwnerKnowsWhatIsUsual(t *testing.T) {
	y := newYard(t, fleet.Spec{ID: "d", Slots: 1})
	y.register(time.Hour)
	cfg := testConfig()
	cfg.HangMin, cfg.HangFactor = 50*time.Millisecond, 2
	require.NoError(t, y.deps.Rates.Report(t.Context(), map[device.RateKey]device.Rate{{Device: "d", Model: "m"}: {ServiceMS: 5, Samples: 100, At: time.Now()}}, nil))
	y.beat("d", false)
	y.workers(cfg)
	y.fleet.Device("d").SetFault(fleet.Fault{Kind: fleet.Hang})
	y.send("d", chat("hangs"))
	y.until("its breaker", func() bool { return y.count(task.BreakerOpened) == 1 })
	require.NoError(t, y.deps.Cancels.Mark(t.Context(), task.Key{Tenant: task.DefaultTenant, ID: "hangs"}))
	y.committed()
}
