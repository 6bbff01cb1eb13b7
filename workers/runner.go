package workers

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// call is what goes to the device in one request: one task, or a merged group.
type call struct {
	works []*work
	group *group // nil: one task alone
}

// runner runs the calls of one device: as many at a time as it has slots, the
// others wait in order. It never blocks who hands over work; how much can wait
// is bounded by the stage's budget of records.
type runner struct {
	w         *Workers
	id        string
	partition int         // of its batches
	gone      atomic.Bool // it is another worker's device now, or forgotten
	breaker   *gobreaker.TwoStepCircuitBreaker[struct{}]
	budget    *Budget
	rates     *rates

	mu        sync.Mutex
	device    task.DeviceRef // as the newest assignment knows it
	queue     []*call
	running   int
	slowUntil time.Time // it answered 429: nothing is sent before
	timer     *time.Timer
	used      time.Time
}

func newRunner(w *Workers, d task.DeviceRef, partition int) *runner {
	r := &runner{w: w, id: d.ID, partition: partition, device: d, budget: NewBudget(w.cfg.RetryBudget), rates: newRates(), used: time.Now()}
	cfg := w.cfg
	r.breaker = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Name: d.ID, MaxRequests: 1, Interval: cfg.BreakerWindow, BucketPeriod: cfg.BreakerWindow / 10, Timeout: cfg.BreakerOpen,
		ReadyToTrip: func(c gobreaker.Counts) bool {
			return int(c.ConsecutiveFailures) >= cfg.BreakerFails ||
				(c.Requests >= 20 && float64(c.TotalFailures) >= cfg.BreakerRatio*float64(c.Requests))
		},
		IsSuccessful: func(err error) bool { return err == nil },
		IsExcluded:   func(err error) bool { return errors.Is(err, errNobodysFault) },
		// Called under the breaker's lock: it must not wait.
		OnStateChange: func(_ string, _, to gobreaker.State) {
			if !r.gone.Load() {
				w.breakers.changed(d.ID, to)
			}
		},
	})
	w.breakers.fresh(d.ID)
	return r
}

// errNobodysFault marks attempts that say nothing of the device's health.
var errNobodysFault = errors.New("not the device's fault")

// blame is what the breaker is told of a failure: only the device's own faults
// count. A task's fault is a healthy answer; 429 and cancellation are neither.
func blame(f *Failure) error {
	if f == nil {
		return nil
	}
	switch f.Class {
	case task.ClassInvalid:
		return nil
	case task.ClassThrottled, task.ClassCancelled, task.ClassExpired, task.ClassDraining, task.ClassInternal:
		return errNobodysFault
	}
	return errors.New(f.Message)
}

// submit queues calls and starts what there are slots for.
func (r *runner) submit(d task.DeviceRef, calls ...*call) {
	if r.w.draining.Load() {
		r.w.giveBackCalls(calls)
		return
	}
	r.mu.Lock()
	r.device = d
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
func (r *runner) dispatch() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.used = now
	for len(r.queue) > 0 && r.running < max(1, r.device.Slots) {
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
		r.running++
		d := r.device
		r.w.calls.Go(func() {
			r.run(d, c)
			r.mu.Lock()
			r.running--
			r.mu.Unlock()
			r.dispatch()
		})
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
	return r.used, len(r.queue) == 0 && r.running == 0
}

// run makes one call. It holds a slot of the device.
func (r *runner) run(d task.DeviceRef, c *call) {
	c = r.living(c)
	if c == nil {
		return
	}
	report, err := r.breaker.Allow()
	if err != nil {
		for _, w := range c.works {
			r.w.settle(r, w, d, nil, &Failure{Class: task.ClassBreakerOpen, Message: fmt.Sprintf("the breaker of device %s is open", r.id)}, false)
		}
		return
	}
	now := time.Now()
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
	answers, status, f := r.request(d, c)
	report(blame(f))
	took := time.Since(now)
	r.observe(c, f, took, status)
	if f != nil && f.Class == task.ClassThrottled {
		r.slowDown(f.RetryAfter)
	}
	if c.group != nil && f != nil && f.spoiled() {
		// One of the merged tasks spoils the others, or the device does not
		// answer lists: each alone. That is no attempt of theirs. Should the
		// device fail them all, the breaker soon stops that.
		r.w.deps.Logger.Debug("a merged request failed; its tasks go one by one", "device", r.id, "tasks", len(c.works), "error", f.Message)
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
		return &call{works: kept}
	}
	groups, alone := merge(kept[0].a.Task.Endpoint, kept, len(kept)*r.w.cfg.MaxMerged)
	if len(groups) == 1 && len(alone) == 0 {
		return &call{works: kept, group: groups[0]}
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
	if !r.gone.Load() {
		r.w.breakers.slow(r.id, until)
	}
}

// observe counts the request and learns from it how fast the device is.
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
	if f == nil {
		r.rates.learn(device.RateKey{Device: r.id, Model: t.Model, Merged: task.Merged(t.Endpoint)}, took, len(c.works))
	}
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
