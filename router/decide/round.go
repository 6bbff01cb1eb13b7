package decide

import (
	"cmp"
	"slices"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/router/policy"
)

// maxHeldRounds bounds the tasks that may wait for a better device in one round, as a multiple of its
// picks.
const maxHeldRounds = 4

// round is the working memory of one round, kept for the next one.
type round struct {
	number    uint64
	patience  int      // tasks of one demand that may wait for a better device before the demand is passed over
	held      []*Item  // tasks that wait for a better device
	suspended []*queue // queues whose demand can go nowhere in this round
	wants     []device.Want
	wantOf    map[*pool]int // index in wants
	kept      int           // picks that got no credit because another router's higher priority asks for it
}

// plan chooses devices for up to MaxRoundTasks tasks, in the order of the window. It takes the credits
// in its own books only. A demand whose devices are all full is passed over without a look at each of
// its tasks. more reports that plan stopped at the bound, and not for want of tasks or credits.
func (d *Decider) plan(now time.Time) (picks []Pick, more bool) {
	r, w := &d.round, d.window
	r.number++
	r.held, r.suspended = r.held[:0], r.suspended[:0]
	r.patience = max(32, maxHeldRounds*d.cfg.MaxRoundTasks/max(1, len(w.demands)))
	for len(picks) < d.cfg.MaxRoundTasks {
		q, why := w.nextQueue()
		if q == nil {
			break
		}
		q.demand.beginRound(r.number)
		snap := d.view.snapshotOf(q.demand, now, d.rng)
		if len(snap.devices) == 0 {
			q.demand.unservable = true
			w.block(q)
			continue
		}
		why, mayGo := d.mayGo(q, why, now)
		if !mayGo || q.demand.exhausted {
			w.suspend(q)
			r.suspended = append(r.suspended, q)
			continue
		}
		if p, ok := d.pick(q, snap, why, now); ok {
			picks = append(picks, p)
		}
	}
	for _, q := range r.suspended {
		if q.suspended && q.ready.len() > 0 {
			w.resume(q)
		}
	}
	for _, it := range r.held {
		w.enqueue(it)
	}
	return picks, len(picks) == d.cfg.MaxRoundTasks
}

// mayGo reports whether a queue may take its turn, and by which entitlement. It may not while its
// demand yields to a higher priority at another router, unless its share owes it a task.
func (d *Decider) mayGo(q *queue, why entitlement, now time.Time) (entitlement, bool) {
	priority := q.flow.key.priority
	switch {
	case why == byShare, !d.yields(q.demand, priority, now):
		return why, true
	case d.window.owesTask(priority, q.demand):
		return byShare, true
	}
	return why, false
}

// pick lets the policy choose a device for the first task of a queue; false if the task waits.
func (d *Decider) pick(q *queue, snap *snapshot, why entitlement, now time.Time) (Pick, bool) {
	it, dm := q.ready.first(), q.demand
	if it.lost() {
		d.Forget(it, now)
		return Pick{}, false
	}
	if dm.heldThisRound < dm.holdWhileFewerThan { // the policy would hold it, like the one before
		d.hold(it)
		return Pick{}, false
	}
	choice := d.policy.Pick(&policy.Request{
		ID: it.Task.ID, Tenant: it.Task.Tenant, Session: it.Task.SessionID, Client: it.Client,
		Priority: q.flow.key.priority, Level: it.Task.Level, Ahead: dm.heldThisRound,
	}, &snap.Snapshot)
	switch {
	case choice.Index != policy.Wait:
		p := d.book(it, snap, &choice, now)
		if why == byShare {
			p.priority = 0
		}
		p.charge = d.window.charge(q, snap.cost, why)
		d.window.dequeue(it)
		dm.holdWhileFewerThan = 0
		return p, true
	case choice.Defer && choice.DeferWhileAheadBelow <= dm.ready+dm.heldThisRound:
		dm.holdWhileFewerThan = choice.DeferWhileAheadBelow
		d.hold(it)
	default: // no credit is free, or the policy would hold all the others, too
		dm.exhausted = true
	}
	return Pick{}, false
}

// hold keeps a task back for a better device until the round ends.
func (d *Decider) hold(it *Item) {
	d.window.dequeue(it)
	d.round.held = append(d.round.held, it)
	dm := it.demand
	dm.heldThisRound++
	dm.exhausted = dm.heldThisRound >= d.round.patience
}

// book takes a credit in our own books.
func (d *Decider) book(it *Item, snap *snapshot, choice *policy.Choice, now time.Time) Pick {
	s := snap.devices[choice.Index]
	pl := s.pool(it.demand)
	p := Pick{
		Item: it, Device: &s.Device, Pool: pl.name, IdleSlots: max(0, pl.Slots-pl.Used), Probe: s.gate == device.GateProbe,
		Why:  snap.explain(d.policy, choice, make([]byte, 0, 512)),
		view: s, priority: it.flow.key.priority,
	}
	pl.Used++
	d.view.picks++
	pl.Last = d.view.picks
	snap.Picks = d.view.picks
	snap.Candidates[choice.Index].ProbeDue = false
	s.picked = now
	return p
}

// take gets the credits for the picks in one call, and returns the picks that got one, sorted by
// device. The others go back to their place in the window.
func (d *Decider) take(picks []Pick, asks []device.Ask, now time.Time) ([]Pick, error) {
	d.countWants(picks)
	grants, err := d.effects.Acquire(d.round.wants, asks)
	if err != nil {
		for i := range picks {
			picks[i].pool().Used--
			d.giveUp(&picks[i])
		}
		clear(d.asked) // the other routers may not know of them
		return nil, err
	}
	for i := range grants {
		if pl := d.view.pools[grants[i].Pool]; pl != nil {
			pl.Used = grants[i].Used
		}
	}
	// Credits are granted to the highest priorities first.
	slices.SortStableFunc(picks, func(a, b Pick) int { return cmp.Compare(a.priority, b.priority) })
	got := picks[:0]
	for _, p := range picks {
		if d.grant(&p, &grants[d.round.wantOf[p.pool()]], now) {
			got = append(got, p)
		}
	}
	slices.SortStableFunc(got, func(a, b Pick) int { return cmp.Compare(a.Device.ID, b.Device.ID) })
	return got, nil
}

// countWants adds up the picks by pool.
func (d *Decider) countWants(picks []Pick) {
	r := &d.round
	r.wants, r.kept = r.wants[:0], 0
	clear(r.wantOf)
	for i := range picks {
		pl := picks[i].pool()
		k, ok := r.wantOf[pl]
		if !ok {
			k = len(r.wants)
			r.wantOf[pl] = k
			r.wants = append(r.wants, device.Want{Pool: pl.name, Limit: pl.Limit})
		}
		r.wants[k].N++
		r.wants[k].ByPriority[picks[i].priority]++
	}
}

// grant gives a pick one of the granted credits, and takes its task out of the window; without a
// credit the task goes back, and the answer is false.
func (d *Decider) grant(p *Pick, g *device.Grant, now time.Time) bool {
	if g.N == 0 {
		if g.Outranked && p.priority > 0 {
			d.yield(p.Item.demand, p.priority, now)
			if !d.window.owesTask(p.priority, p.Item.demand) { // otherwise the next round serves it
				d.round.kept++
			}
		}
		d.giveUp(p)
		return false
	}
	g.N--
	p.Lease = g.Lease
	d.window.remove(p.Item)
	p.Item.demand.assigned++
	if p.Probe { // no second task before the next reading of the fleet: this one probably fails
		p.pool().Limit = 0
	}
	return true
}

// giveUp returns a task that got no credit to the window.
func (d *Decider) giveUp(p *Pick) {
	d.window.refund(p.Item.queue, p.charge)
	d.window.enqueue(p.Item)
}
