package workers

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// call is what goes to the device in one request: one task, or a merged group.
type call struct {
	works []*work
	group *group // nil: one task alone
	free  bool   // there was a slot for it when it came
}

// probe says that routers sent it to test a device that is let alone.
func (c *call) probe() bool {
	for _, w := range c.works {
		if w.a.Probe {
			return true
		}
	}
	return false
}

// runner runs the calls of one device: as many at a time as it takes, the
// others wait in order. It never blocks who hands over work; how much can wait
// is bounded by the stage's budget of records.
type runner struct {
	w         *Workers
	id        string
	partition int         // of its batches
	gone      atomic.Bool // it is another worker's device now, or forgotten
	ejector   *device.Ejector
	fit       *device.Concurrency
	rates     *device.Estimator
	hop       hop
	budget    *Budget

	mu        sync.Mutex
	device    task.DeviceRef // as the newest assignment knows it
	queue     []*call
	running   map[*call]struct{}
	hung      map[*call]struct{} // what runs there but will hardly end: it counts as nobody's slot
	slowUntil time.Time          // it answered 429: nothing is sent before
	away      string             // why nothing is to wait here: the device is silent, drained or gone
	seen      bool               // in the registry
	missing   int                // looks at the registry since, in which it was not there
	timer     *time.Timer
	used      time.Time

	told   device.Health // the goroutine's that reports
	toldAt time.Time
	seeded bool // the goroutine's that looks
}

func newRunner(w *Workers, d task.DeviceRef, partition int) *runner {
	cfg := w.cfg
	return &runner{
		w: w, id: d.ID, partition: partition, device: d, budget: NewBudget(cfg.RetryBudget), used: time.Now(),
		running: map[*call]struct{}{}, hung: map[*call]struct{}{},
		ejector: device.NewEjector(device.EjectorConfig{
			Faults: cfg.BreakerFails, Ratio: cfg.BreakerRatio, Window: cfg.BreakerWindow, Open: cfg.BreakerOpen, OpenMax: cfg.BreakerOpenMax,
			Hang: cfg.HangFactor, HangMin: cfg.HangMin, Jitter: rand.Float64,
		}),
		fit: device.NewConcurrency(d.Slots), rates: device.NewEstimator(device.EstimatorConfig{}),
	}
}

// outcomeOf is what an end says of the device: only its own faults count against
// it. A task's fault is a healthy answer; cancellation is nothing.
func outcomeOf(f *Failure) device.Outcome {
	if f == nil {
		return device.OK
	}
	switch f.Class {
	case task.ClassInvalid:
		return device.OK
	case task.ClassThrottled:
		return device.Throttled
	case task.ClassTimeout:
		return device.TimedOut
	case task.ClassCancelled, task.ClassExpired, task.ClassDraining, task.ClassInternal:
		return device.Neutral
	}
	return device.Fault
}

// submit queues calls and starts what there are slots for.
func (r *runner) submit(d task.DeviceRef, calls ...*call) {
	if r.w.draining.Load() {
		r.w.giveBackCalls(calls)
		return
	}
	r.fit.SetSlots(d.Slots)
	r.mu.Lock()
	r.device = d
	if len(r.queue) == 0 && !r.slowUntil.After(time.Now()) {
		for _, c := range calls[:max(0, min(len(calls), r.fit.Slots()-len(r.running)))] {
			c.free = true
		}
	}
	r.queue = append(r.queue, calls...)
	r.mu.Unlock()
	if r.w.draining.Load() { // since we looked: drain may have emptied the queue before
		r.w.giveBackCalls(r.takeQueue())
		return
	}
	r.dispatch()
}

// resubmit queues calls in front: they have waited already.
func (r *runner) resubmit(calls ...*call) {
	if r.w.draining.Load() {
		r.w.giveBackCalls(calls)
		return
	}
	r.mu.Lock()
	r.queue = append(calls, r.queue...)
	r.mu.Unlock()
	r.dispatch()
}

// dispatch starts calls while there are slots and the device wants requests.
// Nothing waits at a device that is ejected or away: it goes elsewhere.
func (r *runner) dispatch() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.used = now
	for len(r.queue) > 0 {
		if r.away != "" || !r.ejector.Allow(now) {
			r.turnAway(r.away)
			return
		}
		if len(r.running) >= r.fit.Slots() {
			return
		}
		if wait := r.slowUntil.Sub(now); wait > 0 {
			if r.timer == nil {
				r.timer = time.AfterFunc(wait, func() {
					r.mu.Lock()
					r.timer = nil
					r.mu.Unlock()
					r.dispatch()
				})
			}
			return
		}
		c := r.queue[0]
		r.queue[0] = nil
		r.queue = r.queue[1:]
		r.running[c] = struct{}{}
		d := r.device
		r.w.calls.Go(func() {
			r.run(d, c)
			r.mu.Lock()
			delete(r.running, c)
			delete(r.hung, c)
			r.mu.Unlock()
			r.dispatch()
		})
	}
}

// turnAway empties the queue: to other devices. It is called under the lock and
// does not wait for the outbox.
func (r *runner) turnAway(why string) {
	q, d := r.queue, r.device
	r.queue = nil
	r.w.calls.Go(func() {
		for _, c := range q {
			if c = r.living(c); c == nil {
				continue
			}
			if why == "" {
				r.refuse(c, d)
				continue
			}
			for _, w := range c.works {
				r.w.moveAway(w, why)
			}
		}
	})
}

// refuse ends the attempt of a call that is not to be made.
func (r *runner) refuse(c *call, d task.DeviceRef) {
	for _, w := range c.works {
		r.w.settle(r, w, d, nil, &Failure{Class: task.ClassBreakerOpen, Message: fmt.Sprintf("the breaker of device %s is open", r.id)}, false)
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

func (r *runner) idleSince() (time.Time, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.used, len(r.queue) == 0 && len(r.running)+len(r.hung) == 0
}

// run makes one call. It holds a slot of the device.
func (r *runner) run(d task.DeviceRef, c *call) {
	c = r.living(c)
	if c == nil {
		return
	}
	now := time.Now()
	start := r.ejector.Start
	if c.probe() {
		start = r.ejector.StartProbe
	}
	if !start(now) {
		r.refuse(c, d)
		return
	}
	events := make([]task.Event, 0, len(c.works))
	for _, w := range c.works {
		w.here++
		w.started = now
		e := r.w.event(task.AttemptStarted, w, now)
		e.Attempt, e.Device, e.Batch = w.number(), r.id, w.batch
		events = append(events, e)
	}
	r.w.tell(c.works[0], events)
	r.budget.Earn()
	fault.At("workers.before_request")
	answers, status, f := r.request(d, c)
	fault.At("workers.after_answer")
	took := r.ended(c, f, now)
	r.observe(c, f, took, status)
	if c.group != nil && f != nil && f.spoiled() {
		// One of the merged tasks spoils the others, or the device does not
		// answer lists: each alone. That is no attempt of theirs. Should the
		// device fail them all, the breaker soon stops that.
		r.w.deps.Logger.Debug("a merged request failed; its tasks go one by one", "device_id", r.id, "tasks", len(c.works), "error", f.Message)
		singles := make([]*call, 0, len(c.works))
		for _, w := range c.works {
			w.here--
			w.single = true
			singles = append(singles, &call{works: []*work{w}})
		}
		r.resubmit(singles...)
		return
	}
	for i, w := range c.works {
		a := task.Attempt{Number: w.number(), Model: w.a.Task.Model, Device: r.id, Status: status, At: now.UTC(), Duration: took.Milliseconds()}
		var answer []byte
		if f != nil {
			a.Class, a.Message = f.Class, f.Message
		} else {
			answer = answers[i]
		}
		w.attempts = append(w.attempts, a)
		r.w.settle(r, w, d, answer, f, true)
	}
}

// ended learns from the end of a request that began at the time given.
func (r *runner) ended(c *call, f *Failure, began time.Time) time.Duration {
	now := time.Now()
	took, o := now.Sub(began), outcomeOf(f)
	r.ejector.Ended(now, o, took)
	r.fit.Ended(now, o, took)
	t := &c.works[0].a.Task
	if f == nil {
		r.rates.Learn(r.rateKey(t), took, len(c.works), now)
	}
	if c.free {
		r.hop.learn(began.Sub(c.works[0].a.AssignedAt))
	}
	if o == device.Throttled {
		r.slowDown(f.RetryAfter)
	}
	if r.ejector.Changed() {
		r.w.poke()
	}
	return took
}

func (r *runner) rateKey(t *task.Task) device.RateKey {
	return device.RateKey{Device: r.id, Model: t.Model, Merged: task.Merged(t.Endpoint)}
}

// spoiled reports whether one task may be to blame for the failure of a merged
// request. 502 to 504 say that the device is down or has too much to do.
func (f *Failure) spoiled() bool {
	return f.Class == task.ClassInvalid || f.Class == errSplit || f.Class == task.ClassDevice && f.Status == http.StatusInternalServerError
}

// errSplit is the class of a merged answer that could not be taken apart.
const errSplit task.ErrorClass = "split"

// living drops from a call what is not to be run any more; nil: nothing left.
func (r *runner) living(c *call) *call {
	kept := c.works[:0:0]
	now := time.Now()
	for _, w := range c.works {
		switch err := w.dead(); {
		case err != nil:
			r.w.leave(w, err, nil)
		case !w.a.Task.Deadline.IsZero() && !w.a.Task.Deadline.After(now):
			r.w.expire(w)
		default:
			kept = append(kept, w)
		}
	}
	switch {
	case len(kept) == 0:
		return nil
	case len(kept) == len(c.works):
		return c
	case len(kept) == 1 || c.group == nil:
		return &call{works: kept, free: c.free}
	}
	groups, alone := merge(kept[0].a.Task.Endpoint, kept, len(kept)*r.w.cfg.MaxMerged)
	if len(groups) == 1 && len(alone) == 0 {
		return &call{works: kept, group: groups[0], free: c.free}
	}
	return &call{works: kept[:1]} // cannot be: they were one group before
}

// request sends the call and returns one answer a task.
func (r *runner) request(d task.DeviceRef, c *call) ([][]byte, int, *Failure) {
	ctx, cancel := r.callContext(c)
	defer cancel()
	first := c.works[0]
	req := request{device: d, endpoint: first.a.Task.Endpoint, tasks: len(c.works), traceID: first.a.Task.TraceID}
	for _, w := range c.works {
		req.ids = append(req.ids, w.a.Task.ID)
	}
	var err error
	if c.group != nil {
		req.body, err = c.group.body(req.endpoint)
		req.traceID = ""
	} else {
		req.body, err = body(&first.a.Task)
	}
	if err != nil {
		return nil, 0, &Failure{Class: task.ClassInvalid, Message: err.Error()}
	}
	running := r.w.deps.Metrics.Workers.Running.WithLabelValues(r.id)
	running.Add(float64(len(c.works)))
	answer, status, f := r.w.engine.do(ctx, req)
	running.Sub(float64(len(c.works)))
	switch {
	case f != nil:
		return nil, status, f
	case c.group == nil:
		return [][]byte{answer}, status, nil
	}
	answers, err := c.group.split(req.endpoint, answer)
	if err != nil {
		return nil, status, &Failure{Class: errSplit, Status: status, Message: err.Error()}
	}
	return answers, status, nil
}

// callContext ends when the request may take no longer, when the worker must
// stop, and, for one task alone, when it is cancelled or its deadline passes.
func (r *runner) callContext(c *call) (context.Context, context.CancelFunc) {
	if c.group != nil {
		return context.WithTimeout(r.w.hard, r.w.cfg.Timeout)
	}
	w := c.works[0]
	timeout := r.w.cfg.Timeout
	if dl := w.a.Task.Deadline; !dl.IsZero() && time.Until(dl) < timeout {
		return context.WithDeadlineCause(w.ctx, dl, errExpired)
	}
	return context.WithTimeout(w.ctx, timeout)
}

// slowDown sends nothing for as long as the device asks, and tells the routers.
func (r *runner) slowDown(d time.Duration) {
	d = min(max(d, 100*time.Millisecond), r.w.cfg.BackoffMax)
	until := time.Now().Add(d)
	r.mu.Lock()
	if until.After(r.slowUntil) {
		r.slowUntil = until
	}
	r.mu.Unlock()
	r.w.poke()
}

// observe counts the request.
func (r *runner) observe(c *call, f *Failure, took time.Duration, status int) {
	m := r.w.deps.Metrics.Workers
	t := &c.works[0].a.Task
	outcome, code := "ok", "none"
	if f != nil {
		outcome = string(f.Class)
	}
	if status > 0 {
		code = fmt.Sprintf("%dxx", status/100)
	}
	m.Requests.WithLabelValues(t.Endpoint, code).Inc()
	m.Attempts.WithLabelValues(r.id, outcome).Add(float64(len(c.works)))
	m.AttemptSeconds.WithLabelValues(r.id).Observe(took.Seconds())
}

// tell writes events whose record is not finished by them; w's is finished
// later, and by then they are acknowledged too.
func (s *Workers) tell(w *work, events []task.Event) {
	from := w.from
	from.open.Add(1)
	s.put(stream.Unit{Events: events, Acked: func(err error) {
		if err == nil {
			from.release()
		}
	}})
}
