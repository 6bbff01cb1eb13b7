package router

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
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

var t0 = time.Unix(1_000_000, 0)

// oldFleet is n devices of 4 slots that have worked for an hour.
func oldFleet(n int) Fleet {
	var ds []device.Device
	for i := range n {
		d := dev(fmt.Sprint("d", i), 4, "*")
		d.JoinedAt = t0.Add(-time.Hour)
		ds = append(ds, d)
	}
	f := known(ds...)
	for k, r := range f.Rates {
		r.At = t0
		f.Rates[k] = r
	}
	f.Healths = map[string]device.Health{}
	return f
}

func addMany(d *decider, n int, model string, p task.Priority, now time.Time) []*item {
	items := make([]*item, n)
	for i := range items {
		items[i] = newItem(&task.Task{Model: model, Priority: p}, stream.TasksTopic(p))
		d.add(items[i], now)
	}
	return items
}

func limitsOf(d *decider) map[string]int {
	out := map[string]int{}
	for _, s := range d.view.devices {
		out[s.ID] = s.each.Limit
	}
	return out
}

func candidatesOf(d *decider, model string, now time.Time) []string {
	var out []string
	for _, s := range d.view.look(d.window.classOf(&task.Task{Model: model}), now, d.rng).states {
		out = append(out, s.ID)
	}
	return out
}

func TestAtMostHalfOfTheFleetIsLetAlone(t *testing.T) {
	d, _ := newTestDecider(t, testConfig())
	f := oldFleet(4)
	for i, opened := range []int{1, 3, 2} { // three of four fail, the second for longest
		f.Healths[fmt.Sprint("d", i)] = device.Health{State: "open", OpenUntil: t0.Add(time.Minute), Opened: opened}
	}
	d.fleet(f, t0)
	require.Equal(t, []string{"d0", "d3"}, candidatesOf(d, "m", t0))
	require.Equal(t, 1, limitsOf(d)["d0"], "one that should be let alone gets one task at a time")
	require.True(t, d.view.byID["d0"].probe)

	f = oldFleet(1)
	f.Healths["d0"] = device.Health{State: "open", OpenUntil: t0.Add(time.Minute)}
	d.fleet(f, t0)
	require.Empty(t, candidatesOf(d, "m", t0), "the only device, failing, is let alone too")
}

// A device that is let alone comes back by time alone, and by and by.
func TestADeviceComesBackSlowly(t *testing.T) {
	cfg := testConfig()
	cfg.SlowStart = 10 * time.Second
	d, l := newTestDecider(t, cfg)
	f := oldFleet(4)
	f.Healths["d1"] = device.Health{State: "open", OpenUntil: t0.Add(20 * time.Second), Opened: 1}
	d.fleet(f, t0)
	require.Equal(t, []string{"d0", "d2", "d3"}, candidatesOf(d, "m", t0))
	addMany(d, 200, "m", task.Normal, t0)
	d.step(t0)
	count := func() (n int) {
		for _, p := range l.picks {
			if p.state.ID == "d1" {
				n++
			}
		}
		return n
	}
	require.Zero(t, count())
	next := t0.Add(20 * time.Second)
	d.cfg.Refresh = time.Hour
	require.LessOrEqual(t, d.step(t0.Add(19*time.Second)), time.Second, "it wakes when the device may be back")
	d.step(next)
	require.Equal(t, 1, limitsOf(d)["d1"])
	require.Equal(t, 1, count())
	full := limitsOf(d)["d0"]
	last := 0
	for at := time.Duration(0); at <= cfg.SlowStart; at += time.Second {
		d.fleet(oldFleet(4), next.Add(at))
		require.GreaterOrEqual(t, limitsOf(d)["d1"], last)
		last = limitsOf(d)["d1"]
		if at < cfg.SlowStart/2 {
			require.Less(t, last, full)
		}
	}
	require.Equal(t, full, last)
}

func TestANewcomerStartsSlowlyButNotAWholeFleet(t *testing.T) {
	cfg := testConfig()
	cfg.SlowStart = 10 * time.Second
	d, _ := newTestDecider(t, cfg)
	f := oldFleet(3)
	for i := range f.Devices {
		f.Devices[i].JoinedAt = t0.Add(-time.Second)
	}
	d.fleet(f, t0)
	for _, limit := range limitsOf(d) {
		require.Greater(t, limit, 4, "all have just begun: there is nobody to protect")
	}
	f.Devices[0].JoinedAt, f.Devices[1].JoinedAt = t0.Add(-time.Hour), t0.Add(-time.Minute)
	d.fleet(f, t0)
	require.Equal(t, 1, limitsOf(d)["d2"])
	require.Greater(t, limitsOf(d)["d1"], 4)
}

// More credits where the hop is long and the work is short; never none.
func TestCreditsHideTheHop(t *testing.T) {
	cfg := testConfig()
	cfg.Hop, cfg.AheadMost = 2*time.Millisecond, 100
	limit := func(slots int, serviceMS, hopMS float64, health device.Health) int {
		d, _ := newTestDecider(t, cfg)
		health.HopMS = hopMS
		d.fleet(Fleet{
			Devices: []device.Device{dev("d", slots, "m")}, Healths: map[string]device.Health{"d": health},
			Rates: map[device.RateKey]device.Rate{{Device: "d", Model: "m"}: {ServiceMS: serviceMS}},
		}, t0)
		return limitsOf(d)["d"]
	}
	require.Equal(t, 1+1, limit(1, 240, 0, device.Health{}))
	require.Equal(t, 4+1, limit(4, 40, 0, device.Health{}))
	require.Equal(t, 4+4, limit(4, 40, 20, device.Health{}), "measured by the workers")
	require.Equal(t, 4+47, limit(4, 0.2, 0, device.Health{}))
	require.Equal(t, 4+100, limit(4, 0.01, 0, device.Health{}), "bounded")
	require.Equal(t, 2+1, limit(4, 40, 0, device.Health{Slots: 2}), "as many as it takes just now, after 429s")
	require.Equal(t, 1, limit(4, 40, 0, device.Health{State: "half-open"}))
	cfg.Binding, cfg.QueueAhead = "early", 50
	require.Equal(t, 4+50, limit(4, 40, 0, device.Health{}))
}

func TestADeviceThatWasLeftOutIsTriedNowAndThen(t *testing.T) {
	cfg := testConfig()
	cfg.Explore = 30 * time.Second
	d, l := newTestDecider(t, cfg)
	f := oldFleet(3)
	f.Rates[device.RateKey{Device: "d2", Model: "m"}] = device.Rate{ServiceMS: 60_000, At: t0}
	begin := func(now time.Time, n int) map[string]int {
		for k, r := range f.Rates {
			if k.Device != "d2" {
				r.At = now
				f.Rates[k] = r
			}
		}
		clear(l.used)
		l.picks = nil
		d.fleet(f, now)
		addMany(d, n, "m", task.Normal, now)
		d.step(now)
		got := map[string]int{}
		for _, p := range l.picks {
			got[p.state.ID]++
		}
		return got
	}
	require.Zero(t, begin(t0, 4)["d2"])
	require.Zero(t, begin(t0.Add(29*time.Second), 4)["d2"])
	require.Equal(t, 1, begin(t0.Add(31*time.Second), 4)["d2"])
	require.Zero(t, begin(t0.Add(32*time.Second), 4)["d2"], "once is enough for a while")
	require.Equal(t, 1, begin(t0.Add(62*time.Second), 4)["d2"])
}

func TestAnotherPolicyFromTheNextPickOn(t *testing.T) {
	d, l := newTestDecider(t, testConfig())
	d.fleet(oldFleet(2), t0)
	require.Equal(t, 5, limitsOf(d)["d0"])
	addMany(d, 1, "m", task.Normal, t0)
	d.step(t0)
	p, err := NewPolicy("round_robin", d.cfg)
	require.NoError(t, err)
	d.setPolicy(p, "auto", t0)
	require.Equal(t, 4+d.cfg.QueueAhead, limitsOf(d)["d0"], "round robin queues at the devices")
	addMany(d, 20, "m", task.Normal, t0)
	d.step(t0)
	var names []string
	for _, p := range l.picks {
		var why struct{ Policy string }
		require.NoError(t, json.Unmarshal(p.detail, &why))
		names = append(names, why.Policy)
	}
	require.Equal(t, append([]string{"expected_finish"}, slices.Repeat([]string{"round_robin"}, 20)...), names)
}

// What a router does when Redis has no answer: it tries again, later and later,
// and loses nothing.
func TestRoundsWithoutAnAnswer(t *testing.T) {
	d, l := newTestDecider(t, testConfig())
	d.fleet(oldFleet(1), t0)
	addMany(d, 3, "m", task.Normal, t0)
	l.fail = errors.New("away")
	now := t0
	for range 10 {
		d.step(now)
		require.Empty(t, l.picks)
		require.Equal(t, 3, d.window.ready)
		require.Zero(t, d.view.byID["d0"].each.Used)
		calls := l.calls
		d.step(now)
		require.Equal(t, calls, l.calls, "not at once again")
		require.LessOrEqual(t, d.retryAt.Sub(now), 3*time.Second)
		now = d.retryAt
	}
	l.fail = nil
	d.step(now)
	require.Len(t, l.picks, 3)
}

// While high tasks wait here for full devices, other routers are told; they are
// told again before they forget, and when it is over.
func TestOtherRoutersHearOfWaitingTasks(t *testing.T) {
	d, l := newTestDecider(t, testConfig())
	f := oldFleet(2)
	f.Routers = 2
	d.fleet(f, t0)
	pools := []string{device.Pool("d0", device.ClassEach), device.Pool("d1", device.ClassEach)}
	addMany(d, 10, "m", task.Low, t0)
	d.step(t0)
	require.Len(t, l.picks, 10)
	addMany(d, 5, "m", task.Low, t0)
	d.step(t0)
	require.Empty(t, l.asked, "nobody is below low")
	addMany(d, 3, "m", task.High, t0)
	d.step(t0)
	require.Equal(t, pools, slices.Sorted(maps.Keys(l.asked)))
	require.Equal(t, device.Ask{Pool: pools[0], Band: 0, N: 3}, l.asked[pools[0]])
	clear(l.asked)
	d.step(t0.Add(askEvery / 2))
	require.Empty(t, l.asked, "they know")
	d.step(t0.Add(askEvery))
	require.Len(t, l.asked, 2, "they would forget")
	l.used[pools[0]] = 0
	d.freed(map[string]int{pools[0]: 0})
	d.step(t0.Add(askEvery))
	require.Equal(t, device.Ask{Pool: pools[1], Band: 0}, l.asked[pools[1]], "it is over")
}

// A lower band that is told to leave credits to others does not ask for them
// again at once.
func TestALowerBandPausesForOthers(t *testing.T) {
	d, l := newTestDecider(t, testConfig())
	d.fleet(oldFleet(1), t0)
	addMany(d, 2, "m", task.Low, t0)
	h := &holding{ledger: l}
	d.fx = h
	wait := d.step(t0)
	require.Equal(t, 1, l.calls)
	require.LessOrEqual(t, wait, pauseFor)
	d.step(t0.Add(pauseFor / 2))
	require.Equal(t, 1, l.calls)
	high := addMany(d, 1, "m", task.High, t0)[0]
	h.open = true
	d.step(t0.Add(pauseFor / 2))
	require.Len(t, l.picks, 1)
	require.Same(t, high, l.picks[0].item, "a high one does not pause")
	d.step(t0.Add(pauseFor))
	require.Len(t, l.picks, 3)
}

// holding grants nothing, for others' sake.
type holding struct {
	*ledger
	open bool
}

func (h *holding) acquire(wants []device.Want, asks []device.Ask) ([]device.Grant, error) {
	if h.open {
		return h.ledger.acquire(wants, asks)
	}
	h.calls++
	grants := make([]device.Grant, len(wants))
	for i, w := range wants {
		grants[i] = device.Grant{Pool: w.Pool, Held: true}
	}
	return grants, nil
}

// Tasks of a model that nobody has cost the others nothing, and are found when a
// device with it joins.
func TestTasksWithoutADeviceAreSetAsideAndFoundAgain(t *testing.T) {
	cfg := testConfig()
	cfg.WindowCount = 100_000
	d, l := newTestDecider(t, cfg)
	f := oldFleet(2)
	for i := range f.Devices {
		f.Devices[i].Models = []string{"m"}
	}
	d.fleet(f, t0)
	addMany(d, 10_000, "nobody's", task.High, t0)
	d.step(t0)
	require.Empty(t, d.window.bands[0].flows.all, "they are out of the order")
	addMany(d, 1, "m", task.Low, t0)
	d.step(t0)
	require.Len(t, l.picks, 1)
	f.Devices[1].Models = []string{"m", "nobody's"}
	d.fleet(f, t0.Add(time.Second))
	d.step(t0.Add(time.Second))
	require.Len(t, l.picks, 1+limitsOf(d)["d1"], "as many as fit")
}

// A crowd of them passes through a filling window at once: what is behind them in
// the log does not wait.
func TestACrowdWithoutADevicePassesThrough(t *testing.T) {
	cfg := testConfig()
	d, l := newTestDecider(t, cfg)
	f := oldFleet(1)
	f.Devices[0].Models = []string{"m"}
	d.fleet(f, t0)
	addMany(d, 1, "nobody's", task.Normal, t0)
	d.step(t0)
	addMany(d, 5*cfg.WindowCount, "nobody's", task.Normal, t0)
	require.Less(t, d.window.len(), cfg.WindowCount/2)
	require.Equal(t, 5*cfg.WindowCount+1, d.window.len()+l.parked)
}

// A tenant whose devices do more work is ahead of one with slow devices. Who comes
// to the slow ones does not wait until they have caught up.
func TestANewcomerDoesNotPayForOthersDevices(t *testing.T) {
	d, l := newTestDecider(t, testConfig())
	f := oldFleet(11)
	for i := range f.Devices {
		f.Devices[i].Models = []string{"a"}
	}
	f.Devices[0].Models = []string{"m"}
	d.fleet(f, t0)
	put := func(tenant, model string, n int) {
		for range n {
			require.True(t, d.add(newItem(&task.Task{Tenant: tenant, Model: model, Priority: task.Normal}, stream.TasksNormal), t0))
		}
	}
	rounds := func(n int) map[string]int {
		l.picks = nil
		for i := range n {
			if i%20 == 0 {
				d.fleet(f, t0)
			}
			d.step(t0)
			clear(l.used)
			d.freed(nil)
		}
		got := map[string]int{}
		for _, p := range l.picks {
			got[p.item.task.Tenant]++
		}
		return got
	}
	put("slow", "m", 20_000)
	put("fast", "a", 20_000)
	got := rounds(200)
	require.Greater(t, got["fast"], 5*got["slow"])
	put("newcomer", "m", 300)
	put("newcomer", "a", 5000)
	got = rounds(100)
	require.Greater(t, got["newcomer"], 200)
	require.Greater(t, got["slow"], 100, "it has half of its device")
	require.Greater(t, got["fast"], 300, "and the other a part of its own")
}

// A device that is let alone although too many are is sent one task a refresh.
func TestAProbeIsOneTask(t *testing.T) {
	d, l := newTestDecider(t, testConfig())
	f := oldFleet(2)
	for i := range f.Devices {
		f.Healths[f.Devices[i].ID] = device.Health{State: "open", OpenUntil: t0.Add(time.Hour), Opened: 2 - i}
	}
	d.fleet(f, t0)
	addMany(d, 20, "m", task.Normal, t0)
	for range 5 { // they come back at once
		d.step(t0)
		clear(l.used)
		d.freed(nil)
	}
	require.Len(t, l.picks, 1)
	require.True(t, l.picks[0].state.probe)
	d.fleet(f, t0.Add(time.Second))
	d.step(t0.Add(time.Second))
	require.Len(t, l.picks, 2)
}
