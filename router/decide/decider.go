package decide

import (
	"iter"
	"math/rand/v2"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/router/policy"
	"github.com/batchyard/batchyard/task"
)

// Bounds of the pause after Acquire has failed.
const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = time.Second
)

// Decider holds the tasks that wait and what is known about the fleet, and decides. One goroutine owns
// it and passes in the time; everything happens on that goroutine, including the calls of [Effects].
type Decider struct {
	cfg     Config
	policy  policy.Policy
	window  *window
	view    *view
	rng     *rand.Rand
	effects Effects
	round   round

	retryAt  time.Time // after Acquire failed: no round before
	backoff  time.Duration
	refillAt time.Time // no look at the hungry queues before
	lookAt   time.Time // when refill has something to do again; zero: after the next change
	recalls  map[Owner][]Wanted
	owners   []Owner   // of these
	resumeAt time.Time // when the first demand stops yielding to other routers; zero: none yields

	asked        map[string]ask        // what other routers know about our waiting tasks, by pool
	askAt        time.Time             // when it is repeated
	accruedUntil [priorities]time.Time // the priority's share of what others get is counted up to then
	overdue      time.Time             // since when Oldest has seen a task that is not ready although its time has come; zero without one
}

// New returns a decider without tasks and devices. The seed makes its random choices, so that a
// simulation can repeat them.
func New(cfg Config, p policy.Policy, seed uint64, effects Effects) *Decider {
	d := &Decider{
		cfg: cfg, window: newWindow(cfg), view: newView(cfg), effects: effects,
		rng:   rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15)), //nolint:gosec // choices, not secrets
		round: round{wantOf: map[*pool]int{}},
		asked: map[string]ask{}, recalls: map[Owner][]Wanted{},
	}
	d.SetPolicy(p, cfg.Binding, time.Time{}) // there is no device yet
	return d
}

// SetPolicy changes the policy and the binding, from the next pick on. The number of credits of each
// device depends on the binding, too.
func (d *Decider) SetPolicy(p policy.Policy, b Binding, now time.Time) {
	d.policy = p
	d.view.late = b == BindLate || b != BindEarly && p.BindsLate()
	d.view.generation++
	d.window.setOrder(orderFor(p))
	for _, pl := range d.view.pools {
		pl.PolicyState = 0
	}
	d.view.setLimits(now)
}

func orderFor(p policy.Policy) order {
	if o, ok := p.(policy.Ordered); ok && o.ByArrival() {
		return byArrival
	}
	return byUrgency
}

// UpdateFleet takes a reading of the fleet; call it every Config.RefreshInterval.
func (d *Decider) UpdateFleet(f Fleet, now time.Time) {
	d.view.update(f, now)
	d.window.sweep()
	d.unblock(now)
}

// UpdateUsed takes the credits in use of pools that got room; nil means that pools got room and it is
// not known which.
func (d *Decider) UpdateUsed(used map[string]int) {
	if used == nil { // treat all as free; the next grant corrects that
		for _, p := range d.view.pools {
			p.Used = 0
		}
	}
	for name := range used {
		if p := d.view.pools[name]; p != nil {
			p.freed++
		}
	}
	d.view.setUsed(used)
}

// unblock resumes the queues of demands that a device can serve now, after the fleet has changed.
func (d *Decider) unblock(now time.Time) {
	for _, dm := range d.window.demands {
		if !dm.unservable || !d.servable(dm, now) {
			continue
		}
		dm.unservable = false
		for _, q := range dm.queues {
			if q.ready.len()+q.shelved > 0 {
				d.window.resume(q)
			}
		}
	}
}

func (d *Decider) servable(dm *demand, now time.Time) bool {
	return len(d.view.snapshotOf(dm, now, d.rng).devices) > 0
}

// Step does everything that can be done now, and returns the longest time until it must be called
// again.
func (d *Decider) Step(now time.Time) time.Duration {
	if d.view.pass(now) {
		d.unblock(now)
	}
	d.window.due(now, func(it *Item) { d.effects.Expire(it, now) })
	d.resumeAt = time.Time{}
	for !now.Before(d.retryAt) && d.runRound(now) {
		d.effects.Admit()
	}
	wait := d.cfg.RefreshInterval
	d.refill(now)
	return d.waitFor(wait, now)
}

// waitFor shortens the wait to the first moment at which something is due.
func (d *Decider) waitFor(wait time.Duration, now time.Time) time.Duration {
	var askAgain time.Time
	if len(d.asked) > 0 {
		askAgain = d.askAt
	}
	for _, at := range []time.Time{d.window.next(), d.view.changesAt, d.resumeAt, d.lookAt, askAgain} {
		if !at.IsZero() {
			wait = min(wait, max(0, at.Sub(now)))
		}
	}
	if now.Before(d.retryAt) {
		wait = min(wait, d.retryAt.Sub(now))
	}
	return max(wait, time.Millisecond)
}

// runRound makes one round of picks; true if another round may find more.
func (d *Decider) runRound(now time.Time) bool {
	picks, more := d.plan(now)
	asks := d.asks(now)
	if len(picks)+len(asks) == 0 {
		return false
	}
	planned := len(picks)
	picks, err := d.take(picks, asks, now)
	if err != nil {
		d.backoff = min(max(2*d.backoff, minBackoff), maxBackoff)
		d.retryAt = now.Add(d.backoff/2 + time.Duration(d.rng.Int64N(int64(d.backoff))))
		return false
	}
	d.backoff = 0
	if len(picks) > 0 {
		d.effects.Assign(picks, now)
	}
	// What is kept for other routers stays so for now, whichever demand asks next.
	return more || len(picks)+d.round.kept < planned
}

// Cancel takes a task out of the window; false if it is not there.
func (d *Decider) Cancel(k task.Key) (*Item, bool) {
	it := d.window.byKey[k]
	if it == nil {
		return nil, false
	}
	d.window.remove(it)
	return it, true
}

// Reprioritize changes the priority or level of a waiting task; false if it is not in the window.
func (d *Decider) Reprioritize(r device.PriorityChange, now time.Time) bool {
	return d.window.reprioritize(r, now)
}

// Pending iterates over the items in the window, in no particular order. The loop may remove the item
// that it is at.
func (d *Decider) Pending() iter.Seq[*Item] {
	return func(yield func(*Item) bool) {
		for _, it := range d.window.byKey {
			if !yield(it) {
				return
			}
		}
	}
}

// Len is the number of tasks in the window.
func (d *Decider) Len() int { return d.window.len() }

// Devices iterates over the known devices, in the order of their ids, with the credits of each that
// are in use.
func (d *Decider) Devices() iter.Seq2[*device.Device, int] {
	return func(yield func(*device.Device, int) bool) {
		for _, s := range d.view.devices {
			if !yield(&s.Device, s.single.Used+s.batched.Used) {
				return
			}
		}
	}
}
