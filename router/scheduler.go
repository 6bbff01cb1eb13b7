package router

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// scheduler owns the decider. Everything that happens reaches its goroutine by a
// channel, so a decision needs no lock; what the decider does to the world goes
// out from here.
type scheduler struct {
	*decider
	deps   Deps
	name   string
	outbox *stream.Outbox
	ctx    context.Context //nolint:containedctx // of run; the decider knows none

	arrivals   chan []*item
	lost       chan struct{}
	stragglers chan *stream.Record
	cancels    chan []task.Key
	gaps       chan struct{} // marks may have been missed
	priorities chan []device.Repriority
	policies   chan newPolicy
	fleets     chan Fleet
	usage      chan map[string]int // credits in use of pools that got room

	look     chan struct{} // the fleet is to be read again soon
	steering steering
	failing  bool // Redis gives no credits
}

// newPolicy is another policy for the decider to take.
type newPolicy struct {
	policy  Policy
	binding string
}

func newScheduler(cfg Config, deps Deps, policy Policy, outbox *stream.Outbox) (*scheduler, error) {
	s := &scheduler{
		deps: deps, name: deps.Instance, outbox: outbox,
		arrivals: make(chan []*item), lost: make(chan struct{}, 1),
		stragglers: make(chan *stream.Record, 4*cfg.WindowCount), cancels: make(chan []task.Key, 64), gaps: make(chan struct{}, 1),
		priorities: make(chan []device.Repriority, 64), policies: make(chan newPolicy),
		fleets: make(chan Fleet, 1), usage: make(chan map[string]int, 1),
		ctx: context.Background(), look: make(chan struct{}, 1), steering: steering{file: cfg, now: cfg},
	}
	var err error
	s.decider, err = newDecider(cfg, policy, rand.Uint64(), s) //nolint:gosec // choices, not secrets
	return s, err
}

// straggler is told of a record that holds up the commit of its partition.
func (s *scheduler) straggler(rec *stream.Record) {
	select {
	case s.stragglers <- rec:
	default: // more than there can be in flight
	}
}

// run decides until ctx ends.
func (s *scheduler) run(ctx context.Context) {
	var helpers sync.WaitGroup
	defer helpers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.ctx = ctx
	s.startHelpers(ctx, &helpers)

	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case items := <-s.arrivals:
			s.arrive(items)
			s.arrived()
		case <-s.lost:
			s.sweep()
		case rec := <-s.stragglers:
			s.parkRecord(rec)
		case keys := <-s.cancels:
			s.cancelAll(keys)
		case changes := <-s.priorities:
			s.reprioritize(changes)
		case <-s.gaps:
			s.recheckMarks()
		case p := <-s.policies:
			s.setPolicy(p.policy, p.binding, time.Now())
		case f := <-s.fleets:
			s.fleet(f, time.Now())
			s.rewrite(time.Now())
			s.observe()
		case used := <-s.usage:
			s.freed(used)
		case <-timer.C:
		}
		timer.Reset(s.step(time.Now()))
	}
}

// arrived takes what else has come, so that one round sees it together.
func (s *scheduler) arrived() {
	for range 16 {
		select {
		case items := <-s.arrivals:
			s.arrive(items)
		default:
			return
		}
	}
}

func (s *scheduler) arrive(items []*item) {
	now := time.Now()
	for _, it := range items {
		if it.lost() { // on the way here; its new owner reads it
			continue
		}
		rider := s.meet(it, now)
		if rider == nil {
			continue
		}
		s.deps.Metrics.Router.Duplicates.Inc()
		e := task.NewEvent(task.TaskDuplicate, rider.task, s.name, now)
		e.Outcome, e.SourceAddr = task.OutcomeRefused, "kafka:"+rider.rec.Position()
		rider.ticket.hold()
		_ = s.outbox.Put(s.ctx, stream.Unit{Events: []task.Event{e}, Acked: func(err error) {
			if err == nil {
				rider.ticket.release()
			}
		}}) // an error means that ctx ended: it is read again
	}
}

// partitionLost is told when a partition belongs to another router now.
func (s *scheduler) partitionLost(int) {
	select {
	case s.lost <- struct{}{}:
	default:
	}
}

// sweep drops the items whose partition belongs to another router now.
func (s *scheduler) sweep() {
	now := time.Now()
	for _, it := range s.window.byKey {
		if it.lost() {
			s.forget(it, now)
		}
	}
}

// acquire takes the credits of a round in Redis.
func (s *scheduler) acquire(wants []device.Want, asks []device.Ask) ([]device.Grant, error) {
	began := time.Now()
	grants, err := s.deps.Credits.AcquireFor(s.ctx, s.name, wants, asks)
	switch {
	case err != nil && !s.failing && s.ctx.Err() == nil:
		s.failing = true
		s.deps.Logger.Warn("Redis gives no credits; tasks wait until it does", "error", err)
	case err == nil && s.failing:
		s.failing = false
		s.deps.Logger.Info("Redis gives credits again")
	}
	fault.At("router.after_credits")
	m := s.deps.Metrics.Router
	m.RoundSeconds.Observe(time.Since(began).Seconds())
	return grants, err
}

// cancelAll takes tasks that somebody cancelled out of the window. Their result
// is in the log already: whoever asked wrote it.
func (s *scheduler) cancelAll(keys []task.Key) {
	for _, k := range keys {
		it, ok := s.cancel(k)
		if !ok {
			continue
		}
		e := task.NewEvent(task.TaskCancelled, it.task, s.name, time.Now())
		s.finish(it, stream.Unit{Events: []task.Event{e}})
		s.deps.Metrics.Router.Ended.WithLabelValues(string(task.Cancelled)).Inc()
	}
}

// reprioritize gives waiting tasks other priorities. Who asked has recorded it.
func (s *scheduler) reprioritize(changes []device.Repriority) {
	now := time.Now()
	for _, c := range changes {
		s.window.reprioritize(c, now)
	}
}

// recheckMarks asks which of the waiting tasks were cancelled, or rank anew,
// while nobody could tell us.
func (s *scheduler) recheckMarks() {
	keys := make([]task.Key, 0, len(s.window.byKey))
	for k := range s.window.byKey {
		keys = append(keys, k)
	}
	marks, err := s.deps.Cancels.Marks(s.ctx, keys...)
	if err != nil {
		return // Redis went away again; the next gap asks again
	}
	var gone []task.Key
	var changes []device.Repriority
	for i, k := range keys {
		switch m := &marks[i]; {
		case m.Cancelled:
			gone = append(gone, k)
		case !m.Zero():
			changes = append(changes, m.Repriority)
		}
	}
	s.cancelAll(gone)
	s.reprioritize(changes)
}

// observe publishes what the window and the fleet look like.
func (s *scheduler) observe() {
	m := s.deps.Metrics.Router
	silent := 0
	for _, d := range s.view.devices {
		if d.Silent {
			silent++
		}
		m.CreditsHeld.WithLabelValues(d.ID).Set(float64(d.each.Used + d.batch.Used))
	}
	m.DevicesSilent.Set(float64(silent))
	waiting := map[task.Priority]int{}
	bytes := int64(0)
	for _, it := range s.window.byKey {
		waiting[it.task.Priority]++
		bytes += it.size
	}
	for _, p := range task.Priorities {
		m.Waiting.WithLabelValues(string(p)).Set(float64(waiting[p]))
	}
	m.WindowBytes.Set(float64(bytes))
}
