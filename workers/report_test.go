package workers

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/learn"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/testenv"
)

// bare returns workers that send nothing, and one of their runners.
func bare(t testing.TB, id string) (*Workers, *runner) {
	s := assemble(testConfig(), Deps{Logger: testenv.Logger(t), Metrics: metrics.New(nil), Credits: store.NewCredits(nil, store.Config{}, "t:")}, nil, nil)
	r := newRunner(s, task.DeviceRef{ID: id, Slots: 4}, 0)
	s.runners[id] = r
	return s, r
}

func TestUnhealthyDevicesAreReportedEveryTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := bare(t, "d")
		reporter := newReporter(s)
		report := func() map[string]device.Health { return reporter.healths(s.allRunners(), time.Now()) }
		require.Equal(t, device.StateClosed, report()["d"].State, "a new runner replaces the report of the last owner")
		require.Empty(t, report(), "a healthy device is reported once")
		<-time.After(repeatReportEvery)
		require.Len(t, report(), 1, "and from time to time, in case Redis lost it")

		r.slowDown(150 * time.Millisecond)
		require.False(t, report()["d"].ThrottledUntil.IsZero())
		require.Len(t, report(), 1, "an unhealthy one is reported every time")
		<-time.After(time.Second)
		require.True(t, report()["d"].ThrottledUntil.IsZero())
		require.Empty(t, report())

		for range 5 {
			r.ejector.Started(time.Now())
			r.ejector.Ended(time.Now(), learn.Fault, 0)
		}
		r.slowDown(150 * time.Millisecond)
		h := report()["d"]
		require.Equal(t, device.StateOpen, h.State)
		require.False(t, h.OpenUntil.IsZero())
		require.Equal(t, "5 consecutive faults", h.Why)
		require.Len(t, report(), 1)

		r.concurrency.Ended(time.Now(), learn.Throttled, 0)
		require.Equal(t, 2, report()["d"].Slots)
		r.latency.observe(3 * time.Millisecond)
		require.InDelta(t, 3, report()["d"].DispatchMS, 0.01)

		<-time.After(time.Minute)
		require.Equal(t, device.StateHalfOpen, report()["d"].State)
		r.lastUsed = time.Now().Add(-time.Hour)
		s.retire(retireAfter)
		require.Empty(t, s.allRunners())
		hs := report()
		require.Equal(t, device.StateClosed, hs["d"].State, "no runner is left to test it")
		reporter.unreported(nil, hs)
		require.Len(t, report(), 1, "what could not be reported is reported again")
		require.Empty(t, report())
	})
}

func TestUnreportedHealthIsReportedAgain(t *testing.T) {
	w, _ := bare(t, "d")
	s := newReporter(w)
	now := time.Now()
	hs := s.healths(s.allRunners(), now)
	require.Len(t, hs, 1)
	s.unreported(s.allRunners(), hs)
	require.Empty(t, s.departed)
	require.Len(t, s.healths(s.allRunners(), now), 1)
	require.Empty(t, s.healths(s.allRunners(), now))
}

// The estimate is near the shortest times that are common, regardless of rare ones.
func TestDispatchLatencyIsALowQuantile(t *testing.T) {
	var h dispatchLatency
	require.Zero(t, h.value())
	h.observe(-time.Hour) // the router's clock is ahead
	h.observe(0)
	require.Zero(t, h.value())
	for i := range 2000 {
		h.observe(time.Duration(10+(i*7)%40) * time.Millisecond) // 10 to 49 ms, evenly
	}
	require.InDelta(t, 20, h.value(), 4)
	for range 50 {
		h.observe(time.Hour)
	}
	require.Less(t, h.value(), 50.0, "bounded, and slow to grow")
	for range 200 {
		h.observe(2 * time.Millisecond)
	}
	require.InDelta(t, 2, h.value(), 0.1, "quick to fall")
}

// A runner starts with the rates that the device's last owner learned.
func TestRunnersStartWithKnownRates(t *testing.T) {
	s, r := bare(t, "d")
	watcher := newFleetWatcher(s)
	key := device.RateKey{DeviceID: "d", Model: "m"}
	tk := chat("t")
	tk.Normalize(time.Now())
	r.running[&call{works: []*work{{assignment: task.Assignment{Task: *tk}}}}] = struct{}{}
	require.Zero(t, r.expected(), "no device has run it")
	watcher.seed(s.allRunners(), map[device.RateKey]device.Rate{{DeviceID: "e", Model: "m"}: {ServiceMS: 300, Samples: 1}, {DeviceID: "f", Model: "m"}: {ServiceMS: 200, Samples: 1}})
	require.Equal(t, 300*time.Millisecond, r.expected(), "as long as on the slowest known device")
	watcher.seeded = map[*runner]struct{}{}
	watcher.seed(s.allRunners(), map[device.RateKey]device.Rate{key: {ServiceMS: 50, Samples: 100}, {DeviceID: "e", Model: "m"}: {ServiceMS: 300, Samples: 1}})
	require.Equal(t, 50*time.Millisecond, r.expected())
	watcher.seed(s.allRunners(), map[device.RateKey]device.Rate{key: {ServiceMS: 1, Samples: 100}})
	require.Equal(t, 50*time.Millisecond, r.expected(), "once")
}

// A device that accepts requests and answers none is noticed long before they time out. Nothing more
// is sent to it, and its queue goes elsewhere.
func TestADeviceThatHangsGetsNoRequests(t *testing.T) {
	y := newYard(t, fleet.Spec{ID: "d", Slots: 1, ServiceTime: 5 * time.Millisecond})
	cfg := testConfig()
	cfg.HangMin, cfg.HangFactor, cfg.RequestTimeout = 200*time.Millisecond, 2, time.Hour
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
	require.Equal(t, 1, d.Stats().InFlight, "the hung request may still be answered")
	y.eventually("no credit is held, or no router could send a probe", func() bool { return y.creditsUsed("d") == 0 })
	y.eventually("the routers learn it", func() bool {
		_, hs, err := y.deps.Rates.Load(t.Context())
		return err == nil && hs["d"].Opened == 1
	})
	d.ClearFault()
	y.until("the breaker to be half-open", func() bool { return y.count(task.BreakerHalfOpen) > 0 })
	y.send("d", chat("test"))
	require.Equal(t, task.Success, y.only("test").State)
	y.until("it to close", func() bool { return y.count(task.BreakerClosed) == 1 })
	require.NoError(t, y.deps.Cancels.Cancel(t.Context(), task.Key{Tenant: task.DefaultTenant, ID: "hangs"}))
	y.committed()
	for _, e := range y.written(task.BreakerOpened) {
		require.Contains(t, string(e.Detail), "no request ended for")
	}
}

// A device that answers 429 gets half as many requests at a time, and slowly more again.
func TestAThrottledDeviceGetsFewerRequestsAtATime(t *testing.T) {
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
		y.eventually("the routers learn it", func() bool { return slots() == want })
	}
	var tasks []*task.Task
	for i := range 4 {
		tasks = append(tasks, chat(fmt.Sprint("few-", i)))
	}
	y.send("d", tasks...)
	for _, tk := range tasks {
		require.Equal(t, task.Success, y.only(tk.ID).State)
	}
	require.LessOrEqual(t, d.Stats().MaxRunning, 3, "two, and a third after two answers")
	tasks = nil
	for i := range 60 {
		tasks = append(tasks, chat(fmt.Sprint("many-", i)))
	}
	y.send("d", tasks...)
	y.until("all of them", func() bool { return len(y.results) == 64 })
	require.Greater(t, d.Stats().MaxRunning, 4, "it gets more again")
	y.eventually("the routers learn it", func() bool { return slots() == 0 })
	y.eventually("so is the dispatch latency", func() bool {
		_, hs, err := y.deps.Rates.Load(t.Context())
		return err == nil && hs["d"].DispatchMS > 0 && hs["d"].DispatchMS < 10_000
	})
}

// A device that hangs from the new owner's first request on is noticed too.
func TestANewOwnerKnowsUsualServiceTimes(t *testing.T) {
	y := newYard(t, fleet.Spec{ID: "d", Slots: 1})
	y.register(time.Hour)
	cfg := testConfig()
	cfg.HangMin, cfg.HangFactor = 50*time.Millisecond, 2
	require.NoError(t, y.deps.Rates.Report(t.Context(), map[device.RateKey]device.Rate{{DeviceID: "d", Model: "m"}: {ServiceMS: 5, Samples: 100, At: time.Now()}}, nil))
	y.beat("d", false)
	y.workers(cfg)
	y.fleet.Device("d").SetFault(fleet.Fault{Kind: fleet.Hang})
	y.send("d", chat("hangs"))
	y.until("its breaker", func() bool { return y.count(task.BreakerOpened) == 1 })
	require.NoError(t, y.deps.Cancels.Cancel(t.Context(), task.Key{Tenant: task.DefaultTenant, ID: "hangs"}))
	y.committed()
}
