package workers

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/workers/payload"
	"github.com/batchyard/batchyard/workers/verdict"
)

// request sends the call and returns one answer per task.
func (r *runner) request(d task.DeviceRef, c *call) ([][]byte, int, *Failure) {
	ctx, cancel := r.callContext(c)
	defer cancel()
	first := c.works[0].task()
	req := request{device: d, endpoint: first.Endpoint, tasks: len(c.works), traceID: first.TraceID, id: requestID(c)}
	var err error
	if c.group != nil {
		req.body, err = c.group.Body(req.endpoint)
		req.traceID = ""
	} else {
		req.body, err = payload.Body(first, c.works[0].ownModel())
	}
	if err != nil {
		return nil, 0, verdict.New(verdict.Unsendable, r.id, err.Error())
	}
	running := r.workers.deps.Metrics.Workers.Running.WithLabelValues(r.id)
	running.Add(float64(len(c.works)))
	answer, status, f := r.await(c, func() ([]byte, int, *Failure) { return r.workers.engine.do(ctx, req) })
	running.Sub(float64(len(c.works)))
	switch {
	case f != nil:
		return nil, status, f
	case c.group == nil:
		return [][]byte{answer}, status, nil
	}
	answers, err := c.group.Split(req.endpoint, answer)
	if err != nil {
		return nil, status, verdict.New(verdict.Unsplit, r.id, err.Error())
	}
	return answers, status, nil
}

// callContext returns the context of a request. It ends at the request timeout, when the worker must stop, and when no
// task needs the answer any more: each has been cancelled, or its deadline has passed.
func (r *runner) callContext(c *call) (context.Context, context.CancelFunc) {
	timeout := r.workers.cfg.RequestTimeout
	if c.group != nil {
		return r.groupContext(c, timeout)
	}
	w := c.works[0]
	if dl := w.task().Deadline; !dl.IsZero() {
		if left := clock.Until(dl); left < timeout {
			return context.WithTimeoutCause(w.ctx, left, errExpired)
		}
	}
	return context.WithTimeout(w.ctx, timeout)
}

// groupContext returns the context of a batched request, which ends with the last of its tasks that does.
func (r *runner) groupContext(c *call, timeout time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(r.workers.life)
	var needed atomic.Int64
	needed.Store(int64(len(c.works)))
	stops := make([]func() bool, len(c.works))
	for i, w := range c.works {
		stops[i] = context.AfterFunc(w.ctx, func() {
			if needed.Add(-1) > 0 {
				return
			}
			cause := context.Cause(w.ctx)
			if errors.Is(cause, context.Canceled) { // it has ended: its deadline passed
				cause = errExpired
			}
			cancel(cause)
		})
	}
	ctx, stop := context.WithTimeout(ctx, timeout)
	return ctx, func() {
		for _, s := range stops {
			s()
		}
		stop()
		cancel(nil)
	}
}

// reply is what a request ended in.
type reply struct {
	answer []byte
	status int
	f      *Failure
}

// await makes a request, and ends the tasks of a batched one whose deadlines pass meanwhile: the others may need the
// device for much longer.
func (r *runner) await(c *call, do func() ([]byte, int, *Failure)) ([]byte, int, *Failure) {
	next, some := nextDeadline(c.works)
	if c.group == nil || !some {
		return do()
	}
	ended := make(chan reply, 1)
	r.workers.calls.Go(func() {
		answer, status, f := do()
		ended <- reply{answer, status, f}
	})
	timer := time.NewTimer(clock.Until(next))
	defer timer.Stop()
	for {
		select {
		case e := <-ended:
			return e.answer, e.status, e.f
		case <-timer.C:
			r.expireParts(c)
			if next, some = nextDeadline(c.works); some {
				timer.Reset(clock.Until(next))
			}
		}
	}
}

// nextDeadline returns the first deadline of the tasks that have neither ended nor been stopped.
func nextDeadline(works []*work) (first time.Time, some bool) {
	for _, w := range works {
		if dl := w.task().Deadline; !dl.IsZero() && w.stopCause() == nil && (!some || dl.Before(first)) {
			first, some = dl, true
		}
	}
	return first, some
}

// expireParts ends the tasks of a running request whose deadlines have passed.
func (r *runner) expireParts(c *call) {
	now := clock.Now()
	for i, w := range c.works {
		if !w.expired(now) || w.stopCause() != nil {
			continue
		}
		f := verdict.New(verdict.Expired, r.id, "")
		w.share = share{tasks: len(c.works), index: i}
		w.attempts = append(w.attempts, task.Attempt{Number: w.number(), Model: w.task().Model, DeviceID: r.id, Class: f.Class, Message: f.Message,
			At: w.started.UTC(), Duration: time.Since(w.began).Milliseconds()})
		r.workers.expire(ending{work: w, failure: f, events: []task.Event{r.workers.attemptEvent(w, nil, f, now)}, at: now})
	}
}

// computesOn reports whether the device may go on with a request that has ended so: engines do not always notice that
// their client has left, and what is behind a proxy does not know.
func computesOn(k verdict.Kind) bool {
	switch k {
	case verdict.NoFirstByte, verdict.SlowBody, verdict.GatewayTimeout, verdict.Expired:
		return true
	}
	return false
}
