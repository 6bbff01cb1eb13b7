package workers

import (
	"fmt"
	"slices"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/learn"
	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/workers/verdict"
)

// run makes one call. It holds a slot of the device, and returns for how much longer the device may need that.
func (r *runner) run(d task.DeviceRef, c *call) (linger time.Duration) {
	c = r.runnable(c)
	if c == nil {
		return 0
	}
	if parts := r.tooLarge(c); parts != nil {
		r.resubmit(parts...)
		return 0
	}
	now := time.Now()
	start := r.ejector.Start
	if c.probe() {
		start = r.ejector.StartProbe
	}
	if !start(now) {
		r.refuseCall(c)
		return 0
	}
	r.attemptStarted(c)
	r.budget.Earn()
	fault.At("workers.before_request")
	answers, status, f := r.request(d, c)
	f = r.doubted(c, f)
	fault.At("workers.after_answer")
	took := r.learn(c, f, now)
	r.observe(c, f, took, status)
	if f != nil && computesOn(f.Kind) {
		linger = r.workers.cfg.Linger
	}
	if c.group != nil && f != nil && f.Row().Alone == verdict.MayBeOne {
		r.bisect(c, f)
		return linger
	}
	for i, w := range c.works {
		if w.concluded.Load() {
			continue // its deadline passed meanwhile
		}
		w.share = share{tasks: len(c.works), index: i}
		a := task.Attempt{Number: w.number(), Model: w.task().Model, DeviceID: r.id, Status: status, At: w.started.UTC(), Duration: took.Milliseconds()}
		var answer []byte
		if f != nil {
			a.Class, a.Message = f.Class, f.Message
		} else {
			answer = answers[i]
		}
		w.attempts = append(w.attempts, a)
		r.workers.attemptEnded(r, w, answer, f)
	}
	return linger
}

// attemptStarted writes the events of attempts that begin now.
func (r *runner) attemptStarted(c *call) {
	now := clock.Now()
	events := make([]task.Event, 0, len(c.works))
	for _, w := range c.works {
		w.localAttempts++
		w.started, w.began = now, time.Now()
		e := r.workers.event(task.AttemptStarted, w, now)
		e.Attempt, e.DeviceID, e.BatchID = w.number(), r.id, w.batch
		events = append(events, e)
	}
	r.workers.writeEvents(c.works[0], events)
}

// learn updates what is known of the device after a request that started at began, and returns how
// long the request took.
func (r *runner) learn(c *call, f *Failure, began time.Time) time.Duration {
	now := time.Now()
	took, o := now.Sub(began), outcomeOf(f, r.charged(c, f))
	r.ejector.Ended(now, o, took)
	r.concurrency.Ended(now, o, took)
	failure := ""
	if f != nil {
		failure = f.Message
	}
	r.figures.Ended(now, o, took, failure)
	if f == nil {
		r.rates.Learn(r.rateKey(c.works[0].task()), took, len(c.works), now)
	}
	r.learnOffer(c, f, now)
	if c.freeSlot {
		r.latency.observe(c.works[0].started.Sub(c.works[0].assignment.AssignedAt))
	}
	switch {
	case f == nil:
		r.pauseOver()
	case f.Row().Next == verdict.AfterPause:
		r.slowDown(f.Pause)
	}
	if r.ejector.Changed() {
		r.workers.reportSoon()
	}
	return took
}

// outcomeOf is what the end of a request says about the device. charged means that a fault is the task's.
func outcomeOf(f *Failure, charged bool) learn.Outcome { //nolint:revive // it is one of two facts, and selects no path
	if f == nil {
		return learn.OK
	}
	o := learn.Neutral
	switch f.Row().Counts {
	case verdict.CountsFault:
		return learn.Fault
	case verdict.CountsFirst:
		o = learn.Fault
	case verdict.CountsTimeout:
		o = learn.TimedOut
	case verdict.CountsSuspect:
		o = learn.Suspect
	case verdict.CountsSuccess:
		return learn.OK
	case verdict.CountsThrottle:
		return learn.Throttled
	case verdict.CountsNothing:
	}
	if o != learn.Neutral && charged {
		return learn.Charged
	}
	return o
}

// charged reports whether a fault is charged to the tasks of a call: because they failed on another
// device before, or here, which has counted; or because the others of a batched request go well.
func (r *runner) charged(c *call, f *Failure) bool {
	if c.trial != nil {
		return c.trial.ended(f == nil)
	}
	for _, w := range c.works {
		if w.localAttempts > 1 {
			continue
		}
		if !slices.ContainsFunc(w.attempts, func(a task.Attempt) bool {
			return a.DeviceID != r.id && (a.Class == task.ClassDevice || a.Class == task.ClassTimeout)
		}) {
			return false
		}
	}
	return true
}

func (r *runner) rateKey(t *task.Task) device.RateKey {
	return device.RateKey{DeviceID: r.id, Model: t.Model, Batched: task.Batched(t.Endpoint)}
}

// observe counts a request in the metrics.
func (r *runner) observe(c *call, f *Failure, took time.Duration, status int) {
	m := r.workers.deps.Metrics.Workers
	outcome, code := "ok", "none"
	if f != nil {
		outcome = string(f.Class)
	}
	if status > 0 {
		code = fmt.Sprintf("%dxx", status/100)
	}
	m.Requests.WithLabelValues(c.works[0].task().Endpoint, code).Inc()
	m.Attempts.WithLabelValues(r.id, outcome).Add(float64(len(c.works)))
	m.AttemptSeconds.WithLabelValues(r.id).Observe(took.Seconds())
}
