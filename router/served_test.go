package router

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// What a round charged and did not get is taken back exactly, also where a debt is
// at its bound and when somebody else has come or gone meanwhile.
func TestWhatWasNotServedIsTakenBackExactly(t *testing.T) {
	cfg := testConfig()
	w := newWindow(cfg, nil)
	add := func(n int, p task.Priority) (q *queue) {
		for range n {
			it := newItem(&task.Task{Model: "m" + string(p), Priority: p}, stream.TasksTopic(p))
			require.True(t, w.add(it, time.Now()))
			q = it.queue
		}
		return q
	}
	high, low := add(1, task.High), add(300, task.Low)
	b := w.bands[2]
	b.debt = -maxDebt // it had more than its share
	vtime := low.flow.vtime
	var charged []charge
	for range 200 {
		charged = append(charged, w.served(low, 0.1, false))
	}
	for i, c := range charged {
		if i == 100 {
			w.unready(high.ready.first())
		}
		w.unserved(low, c)
	}
	require.InDelta(t, -maxDebt, b.debt, 0.001, "it got nothing, so nothing is owed to it")
	require.InDelta(t, vtime, low.flow.vtime, 0.001)
}

// A tenant whose only tasks are for a model that nobody has saves nothing up by it.
func TestWaitingForAModelThatNobodyHasSavesNothingUp(t *testing.T) {
	d, l := newTestDecider(t, testConfig())
	f := oldFleet(1)
	f.Devices[0].Models = []string{"m"}
	d.fleet(f, t0)
	put := func(tenant, model string, n int) {
		for range n {
			it := newItem(&task.Task{Tenant: tenant, Model: model, Priority: task.Normal}, stream.TasksNormal)
			require.True(t, d.add(it, t0))
		}
	}
	free := func() { clear(l.used); d.freed(nil) }
	put("patient", "nobody", 1)
	for range 200 {
		put("busy", "m", 4)
		d.step(t0)
		free()
	}
	b := d.window.bands[1]
	require.Greater(t, b.clock, 10.0)
	put("patient", "m", 100)
	put("busy", "m", 100)
	n := len(l.picks)
	for len(l.picks) < n+40 {
		d.step(t0)
		free()
	}
	busy := 0
	for _, p := range l.picks[n : n+40] {
		if p.item.task.Tenant == "busy" {
			busy++
		}
	}
	require.InDelta(t, 20, busy, 4, "half of the work is for each")

	f.Devices[0].Models = []string{"m", "nobody"}
	d.fleet(f, t0)
	for len(d.window.byKey) > 0 {
		d.step(t0)
		free()
	}
	for _, b := range d.window.bands {
		require.Zero(t, b.queued)
	}
	for _, f := range d.window.flows {
		require.Zero(t, f.queued)
	}
}

// A fleet whose heartbeats were all away for a while is back as a whole.
func TestAFleetThatWasAwayAsAWholeIsBackAtOnce(t *testing.T) {
	cfg := testConfig()
	cfg.SlowStart = 10 * time.Second
	d, _ := newTestDecider(t, cfg)
	d.fleet(oldFleet(4), t0)
	full := limitsOf(d)
	back := t0.Add(20 * time.Second)
	for _, s := range d.view.devices { // their heartbeats had been missed
		s.back = back
	}
	f := oldFleet(4)
	for i := range f.Devices { // joined anew, each at its own heartbeat
		f.Devices[i].JoinedAt = back.Add(time.Duration(i-4) * time.Second)
	}
	d.fleet(f, back)
	require.Equal(t, full, limitsOf(d))
}

// The clock of Redis may be another than ours.
func TestDevicesJoinByOurClock(t *testing.T) {
	cfg := testConfig()
	cfg.SlowStart = 10 * time.Second
	d, _ := newTestDecider(t, cfg)
	d.fleet(oldFleet(4), t0)
	full := limitsOf(d)
	for _, ahead := range []time.Duration{time.Hour, 0, -time.Hour} {
		f := oldFleet(4)
		for i := range f.Devices {
			dev := &f.Devices[i]
			dev.At, dev.Age, dev.JoinedAt = t0.Add(ahead-2*time.Second), 2*time.Second, t0.Add(ahead-time.Minute)
		}
		byOurClock(f.Devices, t0)
		require.Equal(t, t0.Add(-time.Minute), f.Devices[0].JoinedAt)
		d.fleet(f, t0)
		require.Equal(t, full, limitsOf(d), ahead)
	}
}

// What other routers know of our waiting tasks is told again before they forget.
func TestAsksAreRenewedInTime(t *testing.T) {
	cfg := testConfig()
	cfg.Refresh = 10 * time.Second
	d, l := newTestDecider(t, cfg)
	f := oldFleet(1)
	f.Routers = 2
	d.fleet(f, t0)
	addMany(d, 100, "m", task.High, t0)
	require.LessOrEqual(t, d.step(t0), askEvery)
	require.NotEmpty(t, l.asked)
	clear(l.asked)
	require.LessOrEqual(t, d.step(t0.Add(askEvery)), askEvery)
	require.NotEmpty(t, l.asked)
}

// A pool that is kept for others costs a step one question, not one for each class.
func TestManyClassesAskOnceForWhatIsKept(t *testing.T) {
	d, l := newTestDecider(t, testConfig())
	f := oldFleet(1)
	f.Routers = 2
	d.fleet(f, t0)
	k := &keeping{ledger: l}
	d.fx = k
	for i := range 200 {
		addMany(d, 1, fmt.Sprint("m", i), task.Low, t0)
	}
	require.LessOrEqual(t, d.step(t0), pauseFor)
	require.Empty(t, l.picks)
	require.LessOrEqual(t, k.calls, 3)
}

// A router without urgent tasks of its own still gets for its low ones the share
// that they are guaranteed while others ask for everything.
func TestLowTasksAreNotStarvedByTheAsksOfOthers(t *testing.T) {
	d, l := newTestDecider(t, testConfig())
	f := oldFleet(1)
	f.Routers = 2
	d.fleet(f, t0)
	d.fx = &keeping{ledger: l}
	addMany(d, 1000, "m", task.Low, t0)
	for at := time.Duration(0); at < 20*time.Second; at += pauseFor {
		d.step(t0.Add(at))
		clear(l.used)
		d.freed(nil)
	}
	// 20 s of 4 slots at 100 ms are 800 tasks, 6 % of them for two routers.
	require.Greater(t, len(l.picks), 16)
	require.Less(t, len(l.picks), 100)
}

// keeping is a ledger all of whose credits are kept for a higher band.
type keeping struct {
	*ledger
	calls int
}

func (k *keeping) acquire(wants []device.Want, asks []device.Ask) ([]device.Grant, error) {
	k.calls++
	urgent := make([]device.Want, len(wants))
	for i, w := range wants {
		urgent[i] = w
		urgent[i].N, urgent[i].Of = w.Of[0], [3]int{w.Of[0], 0, 0}
	}
	gs, err := k.ledger.acquire(urgent, asks)
	for i := range gs {
		gs[i].Held = wants[i].Of[1]+wants[i].Of[2] > 0
	}
	return gs, err
}
