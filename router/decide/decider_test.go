package decide

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
)

func limitsOf(d *Decider) map[string]int {
	out := map[string]int{}
	for _, s := range d.view.devices {
		out[s.ID] = s.single.Limit
	}
	return out
}

func candidatesOf(d *Decider, model string, now time.Time) []string {
	var out []string
	for _, s := range d.view.snapshotOf(d.window.demandOf(&task.Task{Model: model}), now, d.rng).devices {
		out = append(out, s.ID)
	}
	return out
}

func TestAtMostHalfOfTheFleetIsEjected(t *testing.T) {
	d, _ := newTestDecider(t, testConfig())
	f := oldFleet(4)
	for i, opened := range []int{1, 3, 2} { // three of four fail, the second one for the longest
		f.Healths[fmt.Sprint("d", i)] = device.Health{State: "open", OpenUntil: t0.Add(time.Minute), Opened: opened}
	}
	d.UpdateFleet(f, t0)
	require.Equal(t, []string{"d0", "d3"}, candidatesOf(d, "m", t0))
	require.Equal(t, 1, limitsOf(d)["d0"], "a device with an open breaker that is not shut gets one task at a time")
	require.Equal(t, device.GateProbe, d.view.byID["d0"].gate)

	f = oldFleet(1)
	f.Healths["d0"] = device.Health{State: "open", OpenUntil: t0.Add(time.Minute)}
	d.UpdateFleet(f, t0)
	require.Empty(t, candidatesOf(d, "m", t0), "the only device is shut out, too")
}

// A device returns once its breaker is no longer open, without news from its worker, and gradually.
func TestADeviceReturnsGradually(t *testing.T) {
	cfg := testConfig()
	cfg.SlowStart = 10 * time.Second
	d, l := newTestDecider(t, cfg)
	f := oldFleet(4)
	f.Healths["d1"] = device.Health{State: "open", OpenUntil: t0.Add(20 * time.Second), Opened: 1}
	d.UpdateFleet(f, t0)
	require.Equal(t, []string{"d0", "d2", "d3"}, candidatesOf(d, "m", t0))
	addMany(d, 200, "m", task.Normal, t0)
	d.Step(t0)
	count := func() (n int) {
		for _, p := range l.picks {
			if p.Device.ID == "d1" {
				n++
			}
		}
		return n
	}
	require.Zero(t, count())
	next := t0.Add(20 * time.Second)
	d.cfg.RefreshInterval = time.Hour
	require.LessOrEqual(t, d.Step(t0.Add(19*time.Second)), time.Second, "it must wake when the device may return")
	d.Step(next)
	require.Equal(t, 1, limitsOf(d)["d1"])
	require.Equal(t, 1, count())
	full := limitsOf(d)["d0"]
	last := 0
	for at := time.Duration(0); at <= cfg.SlowStart; at += time.Second {
		d.UpdateFleet(oldFleet(4), next.Add(at))
		require.GreaterOrEqual(t, limitsOf(d)["d1"], last)
		last = limitsOf(d)["d1"]
		if at < cfg.SlowStart/2 {
			require.Less(t, last, full)
		}
	}
	require.Equal(t, full, last)
}

func TestANewDeviceStartsGraduallyButAWholeFleetDoesNot(t *testing.T) {
	cfg := testConfig()
	cfg.SlowStart = 10 * time.Second
	d, _ := newTestDecider(t, cfg)
	f := oldFleet(3)
	for i := range f.Devices {
		f.Devices[i].JoinedAt = t0.Add(-time.Second)
	}
	d.UpdateFleet(f, t0)
	for _, limit := range limitsOf(d) {
		require.Greater(t, limit, 4, "all devices are new")
	}
	f.Devices[0].JoinedAt, f.Devices[1].JoinedAt = t0.Add(-time.Hour), t0.Add(-time.Minute)
	d.UpdateFleet(f, t0)
	require.Equal(t, 1, limitsOf(d)["d2"])
	require.Greater(t, limitsOf(d)["d1"], 4)
}

// A device has more credits where the dispatch latency is long and the service time short, and at least
// one beyond its slots.
func TestCreditsHideTheDispatchLatency(t *testing.T) {
	cfg := testConfig()
	cfg.DispatchLatency, cfg.MaxPrefetch = 2*time.Millisecond, 100
	limit := func(slots int, serviceMS, dispatchMS float64, health device.Health) int {
		d, _ := newTestDecider(t, cfg)
		health.DispatchMS = dispatchMS
		d.UpdateFleet(Fleet{
			Devices: []device.Device{dev("d", slots, "m")}, Healths: map[string]device.Health{"d": health},
			Rates: map[device.RateKey]device.Rate{{DeviceID: "d", Model: "m"}: {ServiceMS: serviceMS}},
		}, t0)
		return limitsOf(d)["d"]
	}
	require.Equal(t, 1+1, limit(1, 240, 0, device.Health{}))
	require.Equal(t, 4+1, limit(4, 40, 0, device.Health{}))
	require.Equal(t, 4+4, limit(4, 40, 20, device.Health{}), "the latency that the workers measured")
	require.Equal(t, 4+47, limit(4, 0.2, 0, device.Health{}))
	require.Equal(t, 4+100, limit(4, 0.01, 0, device.Health{}), "at most MaxPrefetch")
	require.Equal(t, 2+1, limit(4, 40, 0, device.Health{Slots: 2}), "only as many slots as it accepts at the moment, after 429s")
	require.Equal(t, 1, limit(4, 40, 0, device.Health{State: "half-open"}))
	cfg.Binding, cfg.MaxDeviceQueue = BindEarly, 50
	require.Equal(t, 4+50, limit(4, 40, 0, device.Health{}))
}

func TestADeviceThatIsNotPickedIsProbedNowAndThen(t *testing.T) {
	cfg := testConfig()
	cfg.ProbeInterval = 30 * time.Second
	d, l := newTestDecider(t, cfg)
	f := oldFleet(3)
	f.Rates[device.RateKey{DeviceID: "d2", Model: "m"}] = device.Rate{ServiceMS: 60_000, At: t0}
	roundAt := func(now time.Time, n int) map[string]int {
		for k, r := range f.Rates {
			if k.DeviceID != "d2" {
				r.At = now
				f.Rates[k] = r
			}
		}
		clear(l.used)
		l.picks = nil
		d.UpdateFleet(f, now)
		addMany(d, n, "m", task.Normal, now)
		d.Step(now)
		got := map[string]int{}
		for _, p := range l.picks {
			got[p.Device.ID]++
		}
		return got
	}
	require.Zero(t, roundAt(t0, 4)["d2"])
	require.Zero(t, roundAt(t0.Add(29*time.Second), 4)["d2"])
	require.Equal(t, 1, roundAt(t0.Add(31*time.Second), 4)["d2"])
	require.Zero(t, roundAt(t0.Add(32*time.Second), 4)["d2"], "one probe is enough for a while")
	require.Equal(t, 1, roundAt(t0.Add(62*time.Second), 4)["d2"])
}

func TestANewPolicyAppliesFromTheNextPickOn(t *testing.T) {
	d, l := newTestDecider(t, testConfig())
	d.UpdateFleet(oldFleet(2), t0)
	require.Equal(t, 5, limitsOf(d)["d0"])
	addMany(d, 1, "m", task.Normal, t0)
	d.Step(t0)
	d.SetPolicy(policyNamed(t, "round_robin"), BindAuto, t0)
	require.Equal(t, 4+d.cfg.MaxDeviceQueue, limitsOf(d)["d0"], "round robin queues tasks at the devices")
	addMany(d, 20, "m", task.Normal, t0)
	d.Step(t0)
	var names []string
	for _, p := range l.picks {
		var why struct{ Policy string }
		require.NoError(t, json.Unmarshal(p.Why, &why))
		names = append(names, why.Policy)
	}
	require.Equal(t, append([]string{"expected_finish"}, slices.Repeat([]string{"round_robin"}, 20)...), names)
}

// When no credits can be taken, the decider tries again with growing pauses, and loses nothing.
func TestRoundsBackOffWhileAcquireFails(t *testing.T) {
	d, l := newTestDecider(t, testConfig())
	d.UpdateFleet(oldFleet(1), t0)
	addMany(d, 3, "m", task.Normal, t0)
	l.fail = errors.New("away")
	now := t0
	for range 10 {
		d.Step(now)
		require.Empty(t, l.picks)
		require.Equal(t, 3, d.window.ready)
		require.Zero(t, d.view.byID["d0"].single.Used)
		calls := l.calls
		d.Step(now)
		require.Equal(t, calls, l.calls, "it must not try again at once")
		require.LessOrEqual(t, d.retryAt.Sub(now), 3*time.Second)
		now = d.retryAt
	}
	l.fail = nil
	d.Step(now)
	require.Len(t, l.picks, 3)
}

// While high tasks wait here for full devices, the other routers get asks, which are renewed before
// they expire and withdrawn when the wait is over.
func TestOtherRoutersGetAsksForWaitingTasks(t *testing.T) {
	d, l := newTestDecider(t, testConfig())
	f := oldFleet(2)
	f.Routers = 2
	d.UpdateFleet(f, t0)
	pools := []string{device.Pool("d0", device.ClassSingle), device.Pool("d1", device.ClassSingle)}
	addMany(d, 10, "m", task.Low, t0)
	d.Step(t0)
	require.Len(t, l.picks, 10)
	addMany(d, 5, "m", task.Low, t0)
	d.Step(t0)
	require.Empty(t, l.asked, "there is no priority below low")
	addMany(d, 3, "m", task.High, t0)
	d.Step(t0)
	require.Equal(t, pools, slices.Sorted(maps.Keys(l.asked)))
	require.Equal(t, device.Ask{Pool: pools[0], Priority: 0, N: 3}, l.asked[pools[0]])
	clear(l.asked)
	d.Step(t0.Add(askInterval / 2))
	require.Empty(t, l.asked, "the other routers know already")
	d.Step(t0.Add(askInterval))
	require.Len(t, l.asked, 2, "the asks are about to expire")
	l.used[pools[0]] = 0
	d.UpdateUsed(map[string]int{pools[0]: 0})
	d.Step(t0.Add(askInterval))
	require.Equal(t, device.Ask{Pool: pools[1], Priority: 0}, l.asked[pools[1]], "the ask is withdrawn")
}

// A lower priority whose credits are kept for another router does not try again at once.
func TestALowerPriorityYieldsToOtherRouters(t *testing.T) {
	d, l := newTestDecider(t, testConfig())
	d.UpdateFleet(oldFleet(1), t0)
	addMany(d, 2, "m", task.Low, t0)
	h := &holding{ledger: l}
	d.effects = h
	wait := d.Step(t0)
	require.Equal(t, 1, l.calls)
	require.LessOrEqual(t, wait, yieldFor)
	d.Step(t0.Add(yieldFor / 2))
	require.Equal(t, 1, l.calls)
	high := addMany(d, 1, "m", task.High, t0)[0]
	h.open = true
	d.Step(t0.Add(yieldFor / 2))
	require.Len(t, l.picks, 1)
	require.Same(t, high, l.picks[0].Item, "a high task must not yield")
	d.Step(t0.Add(yieldFor))
	require.Len(t, l.picks, 3)
}

// holding grants nothing until it is open: all credits are kept for other routers.
type holding struct {
	*ledger
	open bool
}

func (h *holding) Acquire(wants []device.Want, asks []device.Ask) ([]device.Grant, error) {
	if h.open {
		return h.ledger.Acquire(wants, asks)
	}
	h.calls++
	grants := make([]device.Grant, len(wants))
	for i, w := range wants {
		grants[i] = device.Grant{Pool: w.Pool, Outranked: true}
	}
	return grants, nil
}

// Tasks of a model that no device serves do not slow down the others, and run when a device with the
// model joins.
func TestTasksWithoutADeviceAreBlockedAndResumed(t *testing.T) {
	cfg := testConfig()
	cfg.MaxPendingTasks = 100_000
	d, l := newTestDecider(t, cfg)
	f := oldFleet(2)
	for i := range f.Devices {
		f.Devices[i].Models = []string{"m"}
	}
	d.UpdateFleet(f, t0)
	addMany(d, 10_000, "unknown", task.High, t0)
	d.Step(t0)
	require.Empty(t, d.window.classes[0].flows.all, "they must not be in the order")
	addMany(d, 1, "m", task.Low, t0)
	d.Step(t0)
	require.Len(t, l.picks, 1)
	f.Devices[1].Models = []string{"m", "unknown"}
	d.UpdateFleet(f, t0.Add(time.Second))
	d.Step(t0.Add(time.Second))
	require.Len(t, l.picks, 1+limitsOf(d)["d1"], "as many as the device has credits for")
}

// A tenant whose devices do more work is ahead of a tenant with slow devices. A third tenant that uses
// both does not wait until the slow one has caught up.
func TestANewTenantDoesNotPayForTheDevicesOfOthers(t *testing.T) {
	d, l := newTestDecider(t, testConfig())
	f := oldFleet(11)
	for i := range f.Devices {
		f.Devices[i].Models = []string{"a"}
	}
	f.Devices[0].Models = []string{"m"}
	d.UpdateFleet(f, t0)
	put := func(tenant, model string, n int) {
		for range n {
			require.Nil(t, d.Add(newItem(&task.Task{Tenant: tenant, Model: model, Priority: task.Normal}, topicOf(task.Normal)), t0))
		}
	}
	rounds := func(n int) map[string]int {
		l.picks = nil
		for i := range n {
			if i%20 == 0 {
				d.UpdateFleet(f, t0)
			}
			d.Step(t0)
			clear(l.used)
			d.UpdateUsed(nil)
		}
		got := map[string]int{}
		for _, p := range l.picks {
			got[p.Item.Task.Tenant]++
		}
		return got
	}
	put("slow", "m", 20_000)
	put("fast", "a", 20_000)
	got := rounds(200)
	require.Greater(t, got["fast"], 5*got["slow"])
	put("new", "m", 300)
	put("new", "a", 5000)
	got = rounds(100)
	require.Greater(t, got["new"], 200)
	require.Greater(t, got["slow"], 100, "it keeps half of its device")
	require.Greater(t, got["fast"], 300, "the other keeps a part of its own devices")
}

// A device with an open breaker that is not shut gets one task per reading of the fleet.
func TestAProbeIsOneTask(t *testing.T) {
	d, l := newTestDecider(t, testConfig())
	f := oldFleet(2)
	for i := range f.Devices {
		f.Healths[f.Devices[i].ID] = device.Health{State: "open", OpenUntil: t0.Add(time.Hour), Opened: 2 - i}
	}
	d.UpdateFleet(f, t0)
	addMany(d, 20, "m", task.Normal, t0)
	for range 5 { // every credit comes back at once
		d.Step(t0)
		clear(l.used)
		d.UpdateUsed(nil)
	}
	require.Len(t, l.picks, 1)
	require.True(t, l.picks[0].Probe)
	d.UpdateFleet(f, t0.Add(time.Second))
	d.Step(t0.Add(time.Second))
	require.Len(t, l.picks, 2)
}

// With fifo, tasks go in the order of their submission, whatever the priority, level and tenant. With
// another policy these count again, also for tasks that wait already.
func TestFIFOOrdersByArrivalAlone(t *testing.T) {
	d, _ := newDeciderFor(t, "fifo", testConfig())
	now := time.Now()
	d.UpdateFleet(Fleet{Devices: []device.Device{dev("d", 12, "*")}}, now)
	for i, tk := range []*task.Task{
		{ID: "low", Priority: task.Low, Tenant: "a"}, {ID: "normal", Tenant: "b"}, {ID: "level", Level: 9, Tenant: "b"},
		{ID: "second", Tenant: "b"}, {ID: "high", Priority: task.High, Tenant: "a"},
	} {
		tk.Model, tk.SubmittedAt = "m", now.Add(time.Duration(i-10)*time.Millisecond)
		require.Nil(t, d.Add(newItem(tk, topicOf(tk.Priority)), now))
	}
	order := func() (ids []string) {
		picks, _ := d.plan(now)
		for i := range picks {
			ids = append(ids, picks[i].Item.Task.ID)
			picks[i].pool().Used--
			d.giveUp(&picks[i])
		}
		return ids
	}
	arrived := []string{"low", "normal", "level", "second", "high"}
	require.Equal(t, arrived, order())
	d.SetPolicy(policyNamed(t, "priority"), BindAuto, t0)
	require.Equal(t, []string{"high", "level", "normal", "second", "low"}, order())
	d.SetPolicy(policyNamed(t, "fifo"), BindAuto, t0)
	require.Equal(t, arrived, order())
	require.True(t, d.window.reprioritize(device.PriorityChange{Key: d.window.byKey[task.Key{Tenant: "a", ID: "low"}].Task.Key(), Priority: task.High, Level: 9}, now))
	require.Equal(t, arrived, order(), "a new priority must not change the order of arrival")
	d.SetPolicy(policyNamed(t, "expected_finish"), BindAuto, t0)
	require.Equal(t, "low", order()[0], "the new priority must count from then on")
	require.Equal(t, 5, d.window.len())
}
