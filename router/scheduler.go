package router

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/internal/lifecycle"
	"github.com/batchyard/batchyard/internal/waiting"
	"github.com/batchyard/batchyard/router/decide"
	"github.com/batchyard/batchyard/router/policy"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// scheduler owns the decider: everything that happens reaches its goroutine by a channel, so no
// decision takes a lock. What the decider decides goes out through the emitter.
type scheduler struct {
	cfg     Config
	deps    Deps
	decider *decide.Decider
	out     *emitter

	disputes *disputes

	arrivals   chan []*decide.Item
	lost       chan struct{} // partitions belong to another router now, or records are read again
	stragglers chan holder
	sorts      chan sorting
	landed     chan struct{} // tasks that were sorted have arrived
	cancels    chan []task.Key
	changes    chan []device.PriorityChange
	gaps       chan struct{} // messages about overrides may have been missed
	policies   chan policyChange
	fleets     chan decide.Fleet
	used       chan map[string]int // credits in use of pools that got room; nil: of unknown pools

	refresh  chan struct{} // the fleet and the operators' settings should be read again soon
	steering steering

	ages     ages
	oldest   *oldest
	landings landings
	open     [len(topics)]atomic.Bool // whether the tasks of a topic enter unsorted
	unsorted []sorting                // there was no room
}

// policyChange is a policy for the decider to use from now on.
type policyChange struct {
	policy  policy.Policy
	binding decide.Binding
}

// newScheduler returns a scheduler; its parts run it.
func newScheduler(cfg Config, deps Deps, outbox *stream.Outbox) (*scheduler, error) {
	s := &scheduler{
		cfg: cfg, deps: deps, disputes: &disputes{}, oldest: newOldest(),
		arrivals: make(chan []*decide.Item), lost: make(chan struct{}, 1),
		stragglers: make(chan holder, 64), sorts: make(chan sorting, 64), landed: make(chan struct{}, 1), cancels: make(chan []task.Key, 64),
		changes: make(chan []device.PriorityChange, 64), gaps: make(chan struct{}, 1),
		policies: make(chan policyChange), fleets: make(chan decide.Fleet, 1), used: make(chan map[string]int, 1),
		refresh: make(chan struct{}, 1), steering: steering{file: cfg, now: cfg},
		ages: ages{marks: map[*stream.Ownership][]mark{}},
	}
	s.out = &emitter{deps: deps, outbox: outbox, dead: deadLetters(deps, outbox), ctx: context.Background(), admit: s.admitWaiting, redis: &s.oldest.redis}
	var err error
	s.decider, err = NewDecider(cfg, rand.Uint64(), s.out) //nolint:gosec // choices, not secrets
	return s, err
}

// parts are the goroutines of the scheduler.
func (s *scheduler) parts() []lifecycle.Part {
	return append(s.watchers(), lifecycle.Func(s.run))
}

// straggler takes a record that holds up the commit of its partition. It is reported again if the channel
// is full.
func (s *scheduler) straggler(o *stream.Ownership, offset int64) {
	select {
	case s.stragglers <- holder{o, offset}:
	default:
	}
}

// partitionLost notes that a partition belongs to another router now.
func (s *scheduler) partitionLost(int) { signal(s.lost) }

// recordsAgain notes that records will be read again, because what they became was refused.
func (s *scheduler) recordsAgain() { signal(s.lost) }

// signal sets a flag that a goroutine waits for.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// lastRound bounds how long the round under way may take once the router stops.
const lastRound = 2 * time.Second

// run decides until ctx ends. The round under way is finished: if it were cut off between taking credits and
// handing its assignments to the outbox, no router would know about the credits, and their devices would look busy
// until the leases expire.
func (s *scheduler) run(ctx context.Context) {
	round, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(lastRound, end) })()
	s.out.ctx = round
	timer := time.NewTimer(0)
	defer timer.Stop()
	look := time.NewTicker(waiting.Interval)
	defer look.Stop()
	for stepped := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case items := <-s.arrivals:
			s.admit(items)
			s.admitWaiting()
		case <-s.lost:
			s.forgetLost()
		case h := <-s.stragglers:
			s.parkHolder(h)
		case req := <-s.sorts:
			s.sortWaiting(req)
			if time.Since(stepped) < sortInterval { // reading a backlog must not wait for a decision each time
				timer.Reset(sortInterval)
				continue
			}
		case <-s.landed:
		case keys := <-s.cancels:
			s.cancel(keys)
		case changes := <-s.changes:
			s.reprioritize(changes)
		case <-s.gaps:
			s.recheckOverrides()
		case p := <-s.policies:
			s.decider.SetPolicy(p.policy, p.binding, clock.Now())
		case f := <-s.fleets:
			now := clock.Now()
			s.decider.UpdateFleet(f, now)
			s.dropLost() // also what belonged to a topic that was recreated
			s.rewriteOld(now)
			s.observe()
		case used := <-s.used:
			s.decider.UpdateUsed(used)
		case now := <-look.C:
			s.reportWaiting(now)
			continue
		case <-timer.C:
		}
		s.landAll()
		s.sortAll()
		timer.Reset(s.decider.Step(clock.Now()))
		s.publishOpen()
		stepped = time.Now()
	}
}

// admitWaiting admits what else has arrived, so that one round sees it together.
func (s *scheduler) admitWaiting() {
	for range 16 {
		select {
		case items := <-s.arrivals:
			s.admit(items)
		default:
			return
		}
	}
}

// admit adds items to the window. The record of a twin is a duplicate: it is done after its event
// and after the item that it rides with.
func (s *scheduler) admit(items []*decide.Item) {
	now := clock.Now()
	for _, it := range items {
		if it.Origin.Lost() { // on the way here; its new owner reads it
			continue
		}
		if other := s.decider.Other(it); other != nil {
			// The window does not know whose id it is, and may hold the wrong one: claims were lost, and Postgres
			// did not answer.
			if o := originOf(it); !o.disputed {
				o.disputed = true
				s.disputes.add(it)
				continue
			}
			s.decider.Evict(other) // meanwhile Postgres says that the id is ours
			s.out.refuse(other)
		}
		if rider := s.decider.Add(it, now); rider != nil {
			s.out.duplicate(rider, now)
		}
	}
}

// forgetLost drops the items that another router reads from now on, and those that this one reads again.
func (s *scheduler) forgetLost() {
	now := clock.Now()
	for it := range s.decider.Pending() {
		if it.Origin.Lost() {
			s.decider.Forget(it, now)
		}
	}
	s.dropLost()
}

// dropLost forgets what was set aside and cannot be recalled any more.
func (s *scheduler) dropLost() {
	s.decider.DropLost()
	s.ages.dropLost()
}

// cancel takes cancelled tasks out of the window. Their result is in the log already: the API wrote
// it before the message.
func (s *scheduler) cancel(keys []task.Key) {
	for _, k := range keys {
		if it, ok := s.decider.Cancel(k); ok {
			s.out.cancelled(it, clock.Now())
		}
	}
}

// reprioritize changes the priority or level of waiting tasks. The API has written the event.
func (s *scheduler) reprioritize(changes []device.PriorityChange) {
	now := clock.Now()
	for _, c := range changes {
		s.decider.Reprioritize(c, now)
	}
}

// recheckOverrides looks up which of the waiting tasks were cancelled or reprioritized while
// messages were missed.
func (s *scheduler) recheckOverrides() {
	keys := make([]task.Key, 0, s.decider.Len())
	for it := range s.decider.Pending() {
		keys = append(keys, it.Task.Key())
	}
	overrides, err := s.deps.Cancels.Get(s.out.ctx, keys...)
	if err != nil {
		return // Redis went away again; the next reconnect signals another gap
	}
	var cancelled []task.Key
	var changes []device.PriorityChange
	for i, k := range keys {
		switch o := &overrides[i]; {
		case o.Cancelled:
			cancelled = append(cancelled, k)
		case !o.Zero():
			changes = append(changes, o.PriorityChange)
		}
	}
	s.cancel(cancelled)
	s.reprioritize(changes)
}

// maxRewrites bounds the tasks that are written again per reading of the fleet.
const maxRewrites = 256

// rewriteOld parks the tasks whose records have been in the log for half of its retention, wherever they
// wait. They may wait longer than their records are kept, and a router that starts would not find them.
// Those that were set aside are recalled, and parked when they come.
func (s *scheduler) rewriteOld(now time.Time) {
	n := 0
	for it := range s.decider.Pending() {
		if n == maxRewrites {
			return
		}
		keep := s.deps.retention(it.Source)
		if keep <= 0 || !s.isOlder(it, keep/2, now) {
			continue
		}
		reason := parkedForTime
		if it.WaitsForDevice() {
			reason = parkedForDevice
		}
		s.decider.Park(it, reason, now)
		n++
	}
	s.decider.RecallBefore(func(o decide.Owner) int64 { return s.ages.oldBelow(o, s.deps.retention, now) }, maxRewrites-n)
}

// isOlder reports whether the record of an item has been in the log for so long. Of one without a time, it is
// only known how long the item has been in the window.
func (s *scheduler) isOlder(it *decide.Item, age time.Duration, now time.Time) bool {
	written, ok := writtenAt(originOf(it).rec)
	if !ok {
		written = it.Added()
	}
	return now.Sub(written) >= age
}

// Why tasks are parked.
const (
	parkedForTime      = "not_before" // its time is far away
	parkedForDevice    = "no_device"  // no device could run it for so long
	parkedForStraggler = "straggler"  // it holds up the commit of its partition
)

// stragglerAge is the least age of a record that is parked because it holds up the commit of its partition.
// It bounds what a task costs that waits: at most one record per hour.
const stragglerAge = time.Hour

// parkHolder parks the task of a record that holds up the commit of its partition; if it was set aside, when
// it has been read again.
func (s *scheduler) parkHolder(h holder) {
	now := clock.Now()
	for it := range s.decider.Pending() {
		if h.carries(it) {
			if s.isOlder(it, stragglerAge, now) {
				s.decider.Park(it, parkedForStraggler, now)
			}
			return
		}
	}
	if s.ages.olderThan(h, now.Add(-stragglerAge)) {
		s.decider.RecallAt(h.owner, h.offset)
	}
}

// observe publishes metrics of the window and the fleet.
func (s *scheduler) observe() {
	m := s.deps.Metrics.Router
	silent := 0
	for d, used := range s.decider.Devices() {
		if d.Silent {
			silent++
		}
		m.CreditsHeld.WithLabelValues(d.ID).Set(float64(used))
	}
	m.DevicesSilent.Set(float64(silent))
	waiting := map[task.Priority]int{}
	bytes := int64(0)
	for it := range s.decider.Pending() {
		waiting[it.Task.Priority]++
		bytes += it.Size
	}
	for _, p := range task.Priorities {
		m.Waiting.WithLabelValues(string(p)).Set(float64(waiting[p]))
	}
	m.WindowBytes.Set(float64(bytes))
	for _, topic := range topics {
		aside, memory := s.decider.Aside(topic)
		m.Aside.WithLabelValues(topic).Set(float64(aside))
		m.AsideBytes.WithLabelValues(topic).Set(float64(memory))
	}
}
