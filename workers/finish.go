package workers

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/internal/text"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/workers/payload"
	"github.com/batchyard/batchyard/workers/verdict"
)

// ending is an attempt that ended, on its way to a result or back to its topic.
type ending struct {
	*work
	failure *Failure     // nil: success, or no attempt was made
	events  []task.Event // of the attempt; written together with what follows
	at      time.Time
}

// attemptEnded decides what follows an attempt. answer is the device's; f is nil on success.
func (s *Workers) attemptEnded(r *runner, w *work, answer []byte, f *Failure) {
	now := clock.Now()
	e := ending{work: w, failure: f, events: []task.Event{s.attemptEvent(w, answer, f, now)}, at: now}
	r.figures.Tokens(time.Now(), e.events[0].OutputTokens)
	if f == nil {
		r.contexts.Worked(w.task().Model, int(e.events[0].InputTokens))
	}
	switch cause := w.stopCause(); {
	case errors.Is(cause, errCancelled), errors.Is(cause, errLost):
		s.abandon(w, cause, e.events)
	case f == nil:
		s.succeed(e, answer)
	case cause != nil: // the worker is stopping and caused the failure itself
		s.abandon(w, cause, e.events)
	default:
		s.decide(r, e)
	}
}

// attemptRefused decides what follows when the device was not asked.
func (s *Workers) attemptRefused(r *runner, w *work, f *Failure) {
	if cause := w.stopCause(); cause != nil {
		s.abandon(w, cause, nil)
		return
	}
	s.decide(r, ending{work: w, failure: f, at: clock.Now()})
}

// decide carries out what [Decide] says about a failure.
func (s *Workers) decide(r *runner, e ending) {
	if e.expired(e.at) {
		s.expire(e)
		return
	}
	in := Situation{Task: e.task(), Attempts: e.attempts, Failure: *e.failure, LocalAttempts: e.localAttempts}
	if next := e.failure.Row().Next; next == verdict.Others || next == verdict.Second || next == verdict.Fifth {
		in.Others = s.others(e.work, r.id)
	}
	d := Decide(s.cfg, in, r.budget, e.at)
	if d.OverBudget {
		s.deps.Metrics.Workers.BudgetExceeded.Inc()
	}
	switch d.Action {
	case RetryHere:
		s.writeEvents(e.work, e.events)
		s.retryHere(r, e.work, d.After)
	case RetryElsewhere:
		s.retryElsewhere(e, d, r.id)
	case Degrade:
		s.degrade(e, d.Model)
	case Expire:
		s.expire(e)
	default:
		s.fail(e)
	}
}

// attemptEvent returns the event of an attempt that was made.
func (s *Workers) attemptEvent(w *work, answer []byte, f *Failure, now time.Time) task.Event {
	a := w.attempts[len(w.attempts)-1]
	action := task.AttemptSucceeded
	if f != nil {
		action = task.AttemptFailed
	}
	e := s.event(action, w, now)
	e.Attempt, e.DeviceID, e.BatchID = a.Number, a.DeviceID, w.batch
	e.Duration = time.Since(w.began)
	note := map[string]any{}
	if a.Status > 0 {
		note["status"] = a.Status
	}
	if w.share.tasks > 1 { // to count requests, or the time of a device, count the first task's only
		note["request_tasks"], note["request_index"] = w.share.tasks, w.share.index
	}
	if f != nil {
		e.Outcome, e.ErrorClass = task.OutcomeFailed, f.Class
		note["message"] = f.Message
	} else {
		u := payload.UsageOf(answer)
		e.InputTokens, e.OutputTokens = u.InputTokens, u.OutputTokens
		e.OutputSize, e.OutputSHA256 = int64(len(answer)), digest(answer)
	}
	e.Detail = detail(note)
	return e
}

// retryHere runs a task again on the same device after a backoff, during which its slot is free. If
// the worker is stopping, the task is given back.
func (s *Workers) retryHere(r *runner, w *work, after time.Duration) {
	if !s.backoffs.add(after, r, w) {
		s.giveBack(w, nil)
	}
}

// succeed ends a task with the device's answer.
func (s *Workers) succeed(e ending, answer []byte) {
	if int64(len(answer)) > s.cfg.MaxAnswer {
		e.failure = verdict.New(verdict.Oversized, "", fmt.Sprintf("the answer has %d bytes, more than workers.max_answer (%d)", len(answer), s.cfg.MaxAnswer))
		s.fail(e)
		return
	}
	res := s.result(e, task.Success)
	res.Output, res.Usage = answer, payload.UsageOf(answer)
	m := s.deps.Metrics.Workers
	m.Tokens.WithLabelValues("input").Add(float64(res.Usage.InputTokens))
	m.Tokens.WithLabelValues("output").Add(float64(res.Usage.OutputTokens))
	ev := s.endEvent(task.TaskSucceeded, e, res)
	ev.InputTokens, ev.OutputTokens = res.Usage.InputTokens, res.Usage.OutputTokens
	s.writeResult(e.work, res, append(e.events, ev))
}

// fail ends a task without an answer. The result lists the errors of all attempts.
func (s *Workers) fail(e ending) {
	f := *e.failure
	if f.Class == task.ClassDeclined { // by all
		f.Class = task.ClassInvalid
		if n := len(task.DeclinedBy(e.task().Model, e.attempts)); n > 1 {
			f.Message += fmt.Sprintf("; %d devices have refused it, and no other could run it", n)
		}
	}
	res := s.result(e, task.Failed)
	res.Error = &task.Error{Class: f.Class, Message: f.Message}
	if f.Class == task.ClassInvalid && len(f.Body) > 0 && int64(len(f.Body)) <= s.cfg.MaxAnswer {
		res.Output = f.Body // the device explains what is wrong with the request
	}
	ev := s.endEvent(task.TaskFailed, e, res)
	ev.Outcome, ev.ErrorClass = task.OutcomeFailed, f.Class
	ev.Detail = detail(map[string]any{"attempts": reasons(res.Attempts)})
	s.writeResult(e.work, res, append(e.events, ev))
}

// expire ends a task whose deadline has passed.
func (s *Workers) expire(e ending) {
	res := s.result(e, task.Expired)
	res.Error = &task.Error{Class: task.ClassExpired, Message: "the deadline passed before a device answered"}
	ev := s.endEvent(task.TaskExpired, e, res)
	ev.Outcome, ev.ErrorClass = task.OutcomeFailed, task.ClassExpired
	ev.DeviceID, ev.Attempt = e.assignment.Device.ID, e.assignment.Attempt
	s.writeResult(e.work, res, append(e.events, ev))
}

// endEvent returns the event of a task's terminal state.
func (s *Workers) endEvent(a task.Action, e ending, res *task.Result) task.Event {
	ev := s.event(a, e.work, e.at)
	ev.DeviceID, ev.Attempt, ev.BatchID = res.DeviceID, res.Attempt(), e.batch
	ev.Duration = max(0, e.at.Sub(e.task().SubmittedAt))
	return ev
}

func (s *Workers) result(e ending, st task.State) *task.Result {
	res := task.NewResult(e.task(), st, e.at)
	res.Attempts = e.attempts
	res.AssignedAt, res.StartedAt = e.assignment.AssignedAt.UTC(), e.started.UTC()
	if n := len(e.attempts); n > 0 {
		res.DeviceID, res.Status = e.attempts[n-1].DeviceID, e.attempts[n-1].Status
	}
	return res
}

// writeResult writes a result. If the topic refuses it for its size, the task fails instead, because
// it has to end.
func (s *Workers) writeResult(w *work, res *task.Result, events []task.Event) {
	key := w.task().Key()
	msg, err := records.ResultMessage(res)
	if err != nil { // cannot happen: the answer was checked to be JSON
		s.deps.Logger.Error("encoding a result", "tenant", key.Tenant, "task_id", key.ID, "error", err)
		return
	}
	m := s.deps.Metrics.Workers
	m.Ended.WithLabelValues(string(res.State)).Inc()
	m.TotalSeconds.WithLabelValues(string(res.Priority)).Observe(max(0, res.FinishedAt.Sub(res.SubmittedAt).Seconds()))
	s.conclude(w, stream.Unit{Messages: []stream.Message{msg}, Events: events}, func(err error) {
		var large *stream.TooLargeError
		if !errors.As(err, &large) || (res.Output == nil && len(res.Labels) == 0) {
			s.deps.Logger.Error("a result was not written; the task will run again", "tenant", key.Tenant, "task_id", key.ID, "error", err)
			w.ack.Refused(err)
			return
		}
		small := *res
		small.State, small.Output, small.Labels, small.Attempts = task.Failed, nil, nil, nil
		small.Error = &task.Error{Class: task.ClassInvalid, Message: "the result is larger than the results topic allows; ask for less output"}
		s.writeResult(w, &small, nil)
	})
}

// abandon ends work that must not run any more.
func (s *Workers) abandon(w *work, cause error, events []task.Event) {
	switch {
	case errors.Is(cause, errLost): // the new owner runs it and holds its credit
		if w.concluded.CompareAndSwap(false, true) {
			s.tasks.remove(w)
			w.stop(errLost)
			if w.creditReturned.CompareAndSwap(false, true) {
				s.leases.Drop(w.assignment.Lease, 1)
			}
		}
	case errors.Is(cause, errCancelled): // the result was written by the cancel
		e := s.event(task.TaskCancelled, w, clock.Now())
		e.DeviceID, e.BatchID = w.assignment.Device.ID, w.batch
		s.deps.Metrics.Workers.Ended.WithLabelValues(string(task.Cancelled)).Inc()
		s.conclude(w, stream.Unit{Events: append(events, e)}, nil)
	default:
		s.giveBack(w, events)
	}
}

// conclude hands over the last unit of a piece of work, returns its credit, and releases its share
// of the record when the unit is acknowledged. refused is called when the topic never takes it.
func (s *Workers) conclude(w *work, u stream.Unit, refused func(error)) {
	if w.concluded.CompareAndSwap(false, true) {
		s.tasks.remove(w)
		s.returnCredit(w)
		w.stop(nil)
	}
	fault.At("workers.before_result")
	u.Acked = func(err error) {
		switch {
		case err == nil:
			fault.At("workers.after_result")
			s.finished.add(w.mark)
			w.ack.Release()
		case refused != nil:
			// It writes again and may have to wait for room in the outbox, which gets none
			// until this call returns.
			go refused(err)
		default:
			w.ack.Refused(err)
		}
	}
	s.put(u)
}

// returnCredit returns the credit of a piece of work, once.
func (s *Workers) returnCredit(w *work) {
	if w.creditReturned.CompareAndSwap(false, true) {
		s.leases.Release(w.assignment.Lease)
	}
}

// reasons summarizes attempts for the audit row: the newest ten.
func reasons(as []task.Attempt) []map[string]any {
	const most = 10
	if len(as) > most {
		as = as[len(as)-most:]
	}
	out := make([]map[string]any, 0, len(as))
	for _, a := range as {
		out = append(out, map[string]any{"number": a.Number, "device_id": a.DeviceID, "class": a.Class, "status": a.Status, "message": text.Clip(a.Message, 120)})
	}
	return out
}

// detail encodes an event's detail; nil when it is empty or too large.
func detail(m map[string]any) []byte {
	b, err := json.Marshal(m)
	if err != nil || len(b) > task.MaxDetail || len(m) == 0 {
		return nil
	}
	return b
}

func digest(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:]
}
