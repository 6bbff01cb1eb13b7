package decide

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
)

// A refund takes back exactly what was charged, even where a deficit is at its bound and after other
// tasks have come or gone.
func TestARefundIsExactlyTheCharge(t *testing.T) {
	cfg := testConfig()
	w := newWindow(cfg)
	add := func(n int, p task.Priority) (q *queue) {
		for range n {
			it := newItem(&task.Task{Model: "m" + string(p), Priority: p}, topicOf(p))
			require.True(t, w.add(it, time.Now()))
			q = it.queue
		}
		return q
	}
	high, low := add(1, task.High), add(300, task.Low)
	lows := w.classes[2]
	lows.deficit = -maxDeficit // it got more than its share
	vtime := low.flow.vtime
	var charged []charge
	for range 200 {
		charged = append(charged, w.charge(low, 0.1, byPriority))
	}
	for i, c := range charged {
		if i == 100 {
			w.dequeue(high.ready.first())
		}
		w.refund(low, c)
	}
	require.InDelta(t, -maxDeficit, lows.deficit, 0.001, "everything was refunded")
	require.InDelta(t, vtime, low.flow.vtime, 0.001)
}

// A tenant whose only task is for a model that no device serves saves nothing up meanwhile.
func TestATenantWithoutADeviceSavesNothingUp(t *testing.T) {
	d, l := newTestDecider(t, testConfig())
	f := oldFleet(1)
	f.Devices[0].Models = []string{"m"}
	d.UpdateFleet(f, t0)
	put := func(tenant, model string, n int) {
		for range n {
			it := newItem(&task.Task{Tenant: tenant, Model: model, Priority: task.Normal}, topicOf(task.Normal))
			require.Nil(t, d.Add(it, t0))
		}
	}
	free := func() { clear(l.used); d.UpdateUsed(nil) }
	put("patient", "unknown", 1)
	for range 200 {
		put("busy", "m", 4)
		d.Step(t0)
		free()
	}
	require.Greater(t, d.window.classes[1].clock, 10.0)
	put("patient", "m", 100)
	put("busy", "m", 100)
	n := len(l.picks)
	for len(l.picks) < n+40 {
		d.Step(t0)
		free()
	}
	busy := 0
	for _, p := range l.picks[n : n+40] {
		if p.Item.Task.Tenant == "busy" {
			busy++
		}
	}
	require.InDelta(t, 20, busy, 4, "each tenant gets half of the work")

	f.Devices[0].Models = []string{"m", "unknown"}
	d.UpdateFleet(f, t0)
	for len(d.window.byKey) > 0 {
		d.Step(t0)
		free()
	}
	for _, c := range d.window.classes {
		require.Zero(t, c.backlogged)
	}
	for _, f := range d.window.flows {
		require.Zero(t, f.backlogged)
	}
}

// A fleet that was silent as a whole, and returns as a whole, has no slow start.
func TestAWholeFleetReturnsAtOnce(t *testing.T) {
	cfg := testConfig()
	cfg.SlowStart = 10 * time.Second
	d, _ := newTestDecider(t, cfg)
	d.UpdateFleet(oldFleet(4), t0)
	full := limitsOf(d)
	back := t0.Add(20 * time.Second)
	for _, s := range d.view.devices { // they had been silent
		s.returned = back
	}
	f := oldFleet(4)
	for i := range f.Devices { // they joined again, each with its own heartbeat
		f.Devices[i].JoinedAt = back.Add(time.Duration(i-4) * time.Second)
	}
	d.UpdateFleet(f, back)
	require.Equal(t, full, limitsOf(d))
}

// Asks are renewed before the other routers forget them.
func TestAsksAreRenewedInTime(t *testing.T) {
	cfg := testConfig()
	cfg.RefreshInterval = 10 * time.Second
	d, l := newTestDecider(t, cfg)
	f := oldFleet(1)
	f.Routers = 2
	d.UpdateFleet(f, t0)
	addMany(d, 100, "m", task.High, t0)
	require.LessOrEqual(t, d.Step(t0), askInterval)
	require.NotEmpty(t, l.asked)
	clear(l.asked)
	require.LessOrEqual(t, d.Step(t0.Add(askInterval)), askInterval)
	require.NotEmpty(t, l.asked)
}

// A pool that is kept for another router costs one call per step, not one per demand.
func TestManyDemandsTryAKeptPoolOnce(t *testing.T) {
	d, l := newTestDecider(t, testConfig())
	f := oldFleet(1)
	f.Routers = 2
	d.UpdateFleet(f, t0)
	k := &keeping{ledger: l}
	d.effects = k
	for i := range 200 {
		addMany(d, 1, fmt.Sprint("m", i), task.Low, t0)
	}
	require.LessOrEqual(t, d.Step(t0), yieldFor)
	require.Empty(t, l.picks)
	require.LessOrEqual(t, k.calls, 3)
}

// While other routers ask for every credit, the low tasks of a router still get their guaranteed share.
func TestLowTasksAreNotStarvedByTheAsksOfOtherRouters(t *testing.T) {
	d, l := newTestDecider(t, testConfig())
	f := oldFleet(1)
	f.Routers = 2
	d.UpdateFleet(f, t0)
	d.effects = &keeping{ledger: l}
	addMany(d, 1000, "m", task.Low, t0)
	for at := time.Duration(0); at < 20*time.Second; at += yieldFor {
		d.Step(t0.Add(at))
		clear(l.used)
		d.UpdateUsed(nil)
	}
	// 20 s of 4 slots at 100 ms are 800 tasks; 6 % of them are shared by two routers.
	require.Greater(t, len(l.picks), 16)
	require.Less(t, len(l.picks), 100)
}

// keeping is a ledger that keeps all of its credits for the highest priority.
type keeping struct {
	*ledger
	calls int
}

func (k *keeping) Acquire(wants []device.Want, asks []device.Ask) ([]device.Grant, error) {
	k.calls++
	urgent := make([]device.Want, len(wants))
	for i, w := range wants {
		urgent[i] = w
		urgent[i].N, urgent[i].ByPriority = w.ByPriority[0], [3]int{w.ByPriority[0], 0, 0}
	}
	gs, err := k.ledger.Acquire(urgent, asks)
	for i := range gs {
		gs[i].Outranked = wants[i].ByPriority[1]+wants[i].ByPriority[2] > 0
	}
	return gs, err
}
