package workers

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/learn"
	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/workers/payload"
	"github.com/batchyard/batchyard/workers/verdict"
)

// call is what goes to the device in one request: one task, or a group of batched tasks.
type call struct {
	works    []*work
	group    *payload.Group // nil: one task
	trial    *trial         // nil, or it is a part of a batched request that failed
	freeSlot bool           // there was a slot for it when it came
	began    time.Time      // when it got a slot; guarded by the runner's mu
}

// probe reports whether a router sent it to test a device whose breaker is half-open.
func (c *call) probe() bool {
	for _, w := range c.works {
		if w.assignment.Probe {
			return true
		}
	}
	return false
}

// runner runs the calls of one device: as many at a time as the device takes; the others wait in
// order. It never blocks its callers. How much can wait is bounded by the stage's budget of
// records.
//
// What mu does not guard is immutable, atomic, or has a lock of its own.
type runner struct {
	workers     *Workers
	id          string
	partition   int         // of its batches
	retired     atomic.Bool // the device belongs to another worker now, or is forgotten
	ejector     *learn.Breaker
	concurrency *learn.Concurrency
	rates       *learn.Estimator
	declines    *learn.Declines
	batches     *learn.BatchSizes
	contexts    learn.Contexts
	figures     learn.Figures
	latency     dispatchLatency
	budget      *Budget

	mu           sync.Mutex
	device       task.DeviceRef // from the newest assignment
	queue        []*call
	running      map[*call]struct{}
	hung         map[*call]struct{} // requests that are unlikely to end; they occupy no slot
	slowUntil    time.Time          // the device asked for a pause: send nothing before
	ownPause     time.Duration      // the last pause, if the device has answered nothing since, as we would have it
	away         string             // why nothing may wait here: the device is silent, draining or gone
	seen         bool               // in the registry
	missedChecks int                // checks since then that did not find it in the registry
	timer        *time.Timer
	lastUsed     time.Time
	moved        time.Time // when a call began or ended
}

func newRunner(s *Workers, d task.DeviceRef, partition int) *runner {
	cfg := s.cfg
	return &runner{
		workers: s, id: d.ID, partition: partition, device: d, budget: NewBudget(cfg.RetryBudget), lastUsed: time.Now(), moved: time.Now(),
		running: map[*call]struct{}{}, hung: map[*call]struct{}{},
		ejector: learn.NewBreaker(learn.BreakerConfig{
			Faults: cfg.BreakerFails, Ratio: cfg.BreakerRatio, Window: cfg.BreakerWindow, Open: cfg.BreakerOpen, MaxOpen: cfg.BreakerOpenMax,
			HangFactor: cfg.HangFactor, MinHang: cfg.HangMin, Jitter: rand.Float64,
		}),
		concurrency: learn.NewConcurrency(d.Slots), rates: learn.NewEstimator(learn.EstimatorConfig{}),
		declines: learn.NewDeclines(), batches: learn.NewBatchSizes(),
	}
}

// inherit takes over what an earlier owner of the device learned. The breaker starts closed.
func (r *runner) inherit(h *device.Health) {
	r.slowUntil = h.ThrottledUntil
	r.declines.Seed(h.Declines, time.Now())
	r.batches.Seed(h.MaxBatch)
	r.contexts.Seed(h.Context)
}

// submit queues calls and starts those for which there are slots.
func (r *runner) submit(d task.DeviceRef, calls ...*call) {
	if r.workers.draining.Load() {
		r.workers.giveBackCalls(calls)
		return
	}
	r.concurrency.SetSlots(d.Slots)
	r.mu.Lock()
	r.device = d
	if len(r.queue) == 0 && !r.slowUntil.After(time.Now()) {
		for _, c := range calls[:max(0, min(len(calls), r.concurrency.Slots()-len(r.running)))] {
			c.freeSlot = true
		}
	}
	r.queue = append(r.queue, calls...)
	r.mu.Unlock()
	if r.workers.draining.Load() { // it may have started, and emptied the queue, in between
		r.workers.giveBackCalls(r.takeQueue())
		return
	}
	r.dispatch()
}

// resubmit queues calls in front, because they have waited before.
func (r *runner) resubmit(calls ...*call) {
	if r.workers.draining.Load() {
		r.workers.giveBackCalls(calls)
		return
	}
	r.mu.Lock()
	r.queue = append(calls, r.queue...)
	r.mu.Unlock()
	r.dispatch()
}

// dispatch starts calls while there are slots and the device accepts requests. If the breaker is
// open or the device is away, the queue goes elsewhere.
func (r *runner) dispatch() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.lastUsed = now
	for len(r.queue) > 0 {
		if r.away != "" || !r.ejector.Allow(now) {
			r.turnAway(r.away)
			return
		}
		if len(r.running) >= r.concurrency.Slots() {
			return
		}
		if wait := r.slowUntil.Sub(now); wait > longPause {
			r.turnAway(awayPaused)
			return
		} else if wait > 0 {
			r.dispatchAfter(wait)
			return
		}
		c := r.queue[0]
		r.queue[0] = nil
		r.queue = r.queue[1:]
		if r.wouldRefuse(c, now) {
			r.sendAway([]*call{c}, awayDeclines)
			continue
		}
		r.running[c] = struct{}{}
		c.began, r.moved = now, now
		d := r.device
		r.workers.calls.Go(func() {
			if linger := r.run(d, c); linger > 0 {
				time.AfterFunc(linger, func() { r.ended(c) })
				return
			}
			r.ended(c)
		})
	}
}

// ended frees the slot of a call.
func (r *runner) ended(c *call) {
	r.mu.Lock()
	delete(r.running, c)
	delete(r.hung, c)
	r.moved = time.Now()
	r.mu.Unlock()
	r.dispatch()
}

// dispatchAfter dispatches again after a while. The caller holds mu.
func (r *runner) dispatchAfter(d time.Duration) {
	if r.timer != nil {
		return
	}
	r.timer = time.AfterFunc(d, func() {
		r.mu.Lock()
		r.timer = nil
		r.mu.Unlock()
		r.dispatch()
	})
}

// turnAway empties the queue. Its tasks go to other devices, in the background, because the caller
// holds mu and the outbox may be full. why is empty when the breaker is open.
func (r *runner) turnAway(why string) {
	q := r.queue
	r.queue = nil
	r.sendAway(q, why)
}

// sendAway sends calls that were not made to other devices.
func (r *runner) sendAway(q []*call, why string) {
	r.workers.calls.Go(func() {
		for _, c := range q {
			if c = r.runnable(c); c == nil {
				continue
			}
			if why == "" {
				r.refuseCall(c)
				continue
			}
			for _, w := range c.works {
				r.workers.requeueFromAway(w, why)
			}
		}
	})
}

// refuseCall ends a call that the breaker does not allow.
func (r *runner) refuseCall(c *call) {
	for _, w := range c.works {
		r.workers.attemptRefused(r, w, verdict.New(verdict.BreakerOpen, r.id, ""))
	}
}

// takeQueue empties the queue, for draining.
func (r *runner) takeQueue() []*call {
	r.mu.Lock()
	defer r.mu.Unlock()
	q := r.queue
	r.queue = nil
	return q
}

// idleSince returns when the runner was last used; false when it has work.
func (r *runner) idleSince() (time.Time, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lastUsed, len(r.queue) == 0 && len(r.running)+len(r.hung) == 0
}

// runnable drops the tasks of a call that must not run any more. It returns nil when none is left.
func (r *runner) runnable(c *call) *call {
	kept := c.works[:0:0]
	now := clock.Now()
	for _, w := range c.works {
		if cause := w.stopCause(); cause != nil {
			r.workers.abandon(w, cause, nil)
		} else if w.expired(now) {
			r.workers.expire(ending{work: w, at: now})
		} else {
			kept = append(kept, w)
		}
	}
	switch {
	case len(kept) == 0:
		return nil
	case len(kept) == len(c.works):
		return c
	case len(kept) == 1 || c.group == nil:
		return &call{works: kept, freeSlot: c.freeSlot, trial: c.trial}
	}
	groups, singles := payload.Groups(kept[0].task().Endpoint, kept[0].ownModel(), tasksOf(kept), len(kept)*r.workers.cfg.MaxBatchedTasks)
	if len(groups) == 1 && len(singles) == 0 {
		return &call{works: kept, group: groups[0], freeSlot: c.freeSlot, trial: c.trial}
	}
	return &call{works: kept[:1]} // cannot happen: they were one group before
}

// longPause is how long a pause may be for which tasks wait at the device; for longer ones they go back to
// the routers, which know of other devices, and wait there if there are none.
const longPause = time.Second

// Pauses of devices that ask for none, or for one that was too short.
const (
	minPause      = 100 * time.Millisecond
	longestOfOurs = 30 * time.Second
)

// slowDown sends nothing for as long as the device asks, and reports that to the routers. If it has answered nothing since the
// last pause, the pause is at least twice as long.
func (r *runner) slowDown(d time.Duration) {
	now := time.Now()
	r.mu.Lock()
	if !r.slowUntil.After(now) { // else the request was sent before the last pause began
		r.ownPause = min(max(minPause, 2*r.ownPause), longestOfOurs)
	}
	until := now.Add(max(d, r.ownPause))
	if until.After(r.slowUntil) {
		r.slowUntil = until
	}
	r.mu.Unlock()
	r.workers.reportSoon()
}

// pauseOver notes that the device answers again.
func (r *runner) pauseOver() {
	r.mu.Lock()
	r.ownPause = 0
	r.mu.Unlock()
}
