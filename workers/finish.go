package workers

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// settle decides what follows the end of an attempt. tried is false when no
// request was made.
func (s *Workers) settle(r *runner, w *work, d task.DeviceRef, answer []byte, f *Failure, tried bool) {
	now := time.Now()
	var events []task.Event
	if tried {
		events = append(events, s.attemptEnded(w, answer, f, now))
	}
	switch cause := w.dead(); {
	case errors.Is(cause, errCancelled), errors.Is(cause, errLost):
		s.leave(w, cause, events)
		return
	case f == nil:
		s.succeed(w, answer, events, now)
		return
	case cause != nil: // we stop: the failure is our own doing
		s.leave(w, cause, events)
		return
	}
	if dl := w.a.Task.Deadline; !dl.IsZero() && !dl.After(now) {
		s.expireWith(w, events, now)
		return
	}
	dec := Decide(s.cfg, &w.a.Task, w.attempts, *f, w.here, r.budget, now)
	if dec.Late {
		s.deps.Metrics.Workers.BudgetExceeded.Inc()
	}
	switch dec.Action {
	case Again:
		s.tell(w, events)
		s.later(r, w, dec.After)
	case Reroute:
		s.requeue(w, d, dec, f, events, now)
	case Degrade:
		s.degrade(w, dec, f, events, now)
	case Expire:
		s.expireWith(w, events, now)
	default:
		s.fail(w, f, events, now)
	}
}

func (s *Workers) attemptEnded(w *work, answer []byte, f *Failure, now time.Time) task.Event {
	a := w.attempts[len(w.attempts)-1]
	action := task.AttemptSucceeded
	if f != nil {
		action = task.AttemptFailed
	}
	e := s.event(action, w, now)
	e.Attempt, e.Device, e.Batch = a.Number, a.Device, w.batch
	e.Duration = now.Sub(w.started)
	note := map[string]any{}
	if a.Status > 0 {
		note["status"] = a.Status
	}
	if f != nil {
		e.Outcome, e.ErrorClass = task.OutcomeFailed, f.Class
		note["message"] = f.Message
	} else {
		u := usageOf(answer)
		e.TokensIn, e.TokensOut = u.InputTokens, u.OutputTokens
		sum := digest(answer)
		e.OutputSize, e.OutputSHA256 = int64(len(answer)), sum
	}
	e.Detail = detail(note)
	return e
}

// later runs a task again on the same device after a pause; the slot is free
// meanwhile. When the worker stops first, it is given back.
func (s *Workers) later(r *runner, w *work, after time.Duration) {
	if !s.pauses.add(after, r, w) {
		s.giveBack(w, nil)
	}
}

// succeed ends a task well.
func (s *Workers) succeed(w *work, answer []byte, events []task.Event, now time.Time) {
	if int64(len(answer)) > s.cfg.MaxAnswer {
		s.fail(w, &Failure{Class: task.ClassInvalid, Message: fmt.Sprintf("the answer's %d bytes are more than workers.max_answer (%d)", len(answer), s.cfg.MaxAnswer)}, events, now)
		return
	}
	res := s.result(w, task.Success, now)
	res.Output, res.Usage = answer, usageOf(answer)
	m := s.deps.Metrics.Workers
	m.Tokens.WithLabelValues("input").Add(float64(res.Usage.InputTokens))
	m.Tokens.WithLabelValues("output").Add(float64(res.Usage.OutputTokens))
	e := s.event(task.TaskSucceeded, w, now)
	e.Device, e.Attempt, e.Batch = res.Device, res.Attempt(), w.batch
	e.Duration = max(0, now.Sub(w.a.Task.SubmittedAt))
	e.TokensIn, e.TokensOut = res.Usage.InputTokens, res.Usage.OutputTokens
	s.end(w, res, append(events, e))
}

// fail ends a task without an answer; the result holds every attempt's reason.
func (s *Workers) fail(w *work, f *Failure, events []task.Event, now time.Time) {
	res := s.result(w, task.Failed, now)
	res.Error = &task.Error{Class: f.Class, Message: f.Message}
	if f.Class == task.ClassInvalid && len(f.Body) > 0 && int64(len(f.Body)) <= s.cfg.MaxAnswer {
		res.Output = f.Body // what the device says is wrong with the request
	}
	e := s.event(task.TaskFailed, w, now)
	e.Outcome, e.ErrorClass = task.OutcomeFailed, f.Class
	e.Device, e.Attempt, e.Batch = res.Device, res.Attempt(), w.batch
	e.Duration = max(0, now.Sub(w.a.Task.SubmittedAt))
	e.Detail = detail(map[string]any{"attempts": reasons(res.Attempts)})
	s.end(w, res, append(events, e))
}

func (s *Workers) expire(w *work) { s.expireWith(w, nil, time.Now()) }

func (s *Workers) expireWith(w *work, events []task.Event, now time.Time) {
	res := s.result(w, task.Expired, now)
	res.Error = &task.Error{Class: task.ClassExpired, Message: "the deadline passed before a device answered"}
	e := s.event(task.TaskExpired, w, now)
	e.Outcome, e.ErrorClass = task.OutcomeFailed, task.ClassExpired
	e.Device, e.Batch = w.a.Device.ID, w.batch
	e.Duration = max(0, now.Sub(w.a.Task.SubmittedAt))
	s.end(w, res, append(events, e))
}

func (s *Workers) result(w *work, st task.State, now time.Time) *task.Result {
	res := task.NewResult(&w.a.Task, st, now)
	res.Attempts = w.attempts
	res.AssignedAt, res.StartedAt = w.a.AssignedAt.UTC(), w.started.UTC()
	if n := len(w.attempts); n > 0 {
		res.Device, res.Status = w.attempts[n-1].Device, w.attempts[n-1].Status
	}
	return res
}

// end writes a result. Should the topic not take it for its size, the task
// fails instead: it has to end.
func (s *Workers) end(w *work, res *task.Result, events []task.Event) {
	msg, err := stream.ResultMessage(res)
	if err != nil { // cannot be: the answer was checked to be JSON
		s.deps.Logger.Error("encoding a result", "tenant", w.a.Task.Tenant, "task_id", w.a.Task.ID, "error", err)
		return
	}
	m := s.deps.Metrics.Workers
	m.Ended.WithLabelValues(string(res.State)).Inc()
	m.TotalSeconds.WithLabelValues(string(res.Priority)).Observe(max(0, res.FinishedAt.Sub(res.SubmittedAt).Seconds()))
	s.away(w, stream.Unit{Messages: []stream.Message{msg}, Events: events}, func(err error) {
		var large *stream.TooLargeError
		if !errors.As(err, &large) || (res.Output == nil && len(res.Labels) == 0) {
			s.deps.Logger.Error("a result was not written; the task is run again", "tenant", w.a.Task.Tenant, "task_id", w.a.Task.ID, "error", err)
			return
		}
		small := *res
		small.State, small.Output, small.Labels, small.Attempts = task.Failed, nil, nil, nil
		small.Error = &task.Error{Class: task.ClassInvalid, Message: "the result is larger than the results topic takes; ask for less"}
		s.end(w, &small, nil)
	})
}

// requeue writes a task back to its topic, for another device or a later time.
func (s *Workers) requeue(w *work, d task.DeviceRef, dec Decision, f *Failure, events []task.Event, now time.Time) {
	t := w.a.Task.Requeued()
	t.Progress.Attempts, t.Progress.Moved = w.attempts, t.Progress.Moved && w.here == 0
	t.Progress.NotBefore = time.Time{}
	if dec.After > 0 {
		t.Progress.NotBefore = now.Add(dec.After).UTC()
	}
	if dec.Exclude {
		t.Progress.Exclude = excluding(t.Progress.Exclude, d.ID)
	}
	s.back(w, t, task.TaskRequeued, f.Class, map[string]any{"reason": f.Class, "after_ms": dec.After.Milliseconds(), "without_device": dec.Exclude}, events, now)
}

// degrade writes a task back with a smaller model.
func (s *Workers) degrade(w *work, dec Decision, f *Failure, events []task.Event, now time.Time) {
	t := w.a.Task.Requeued()
	t.Progress.Attempts, t.Progress.Exclude, t.Progress.NotBefore, t.Progress.Moved = w.attempts, nil, time.Time{}, false
	if t.Progress.Requested == "" {
		t.Progress.Requested = t.Model
	}
	from := t.Model
	t.Model = dec.Model
	s.deps.Metrics.Workers.Degraded.Inc()
	e := s.event(task.TaskDegraded, w, now)
	e.Detail = detail(map[string]any{"from": from, "to": dec.Model})
	s.back(w, t, task.TaskRequeued, f.Class, map[string]any{"reason": "degraded"}, append(events, e), now)
}

// giveBack returns a task that was not tried to the end because we stop: that is
// no attempt of its own, and the device is not to blame.
func (s *Workers) giveBack(w *work, events []task.Event) {
	t := w.a.Task.Requeued()
	t.Progress.Attempts, t.Progress.NotBefore, t.Progress.Moved = w.attempts, time.Time{}, t.Progress.Moved && w.here == 0
	s.back(w, t, task.TaskRequeued, task.ClassDraining, map[string]any{"reason": task.ClassDraining}, events, time.Now())
}

// Why waiting work leaves a device, when not because of an attempt.
const (
	awaySilent   = "device_silent"
	awayDraining = "device_draining"
	awayLeft     = "device_left"
	movedEven    = "moved"
)

// moveAway returns a task that has not been started, because its device takes no
// more work. It pauses: the routers may not know yet, and would send it here
// again at once.
func (s *Workers) moveAway(w *work, why string) {
	t := w.a.Task.Requeued()
	now := time.Now()
	t.Progress.Attempts, t.Progress.NotBefore, t.Progress.Moved = w.attempts, now.Add(s.cfg.pause(1)).UTC(), t.Progress.Moved && w.here == 0
	s.back(w, t, task.TaskRequeued, task.ClassNone, map[string]any{"reason": why}, nil, now)
}

// moveOver returns a task that waits here while others have nothing to do.
func (s *Workers) moveOver(w *work, note map[string]any) {
	t := w.a.Task.Requeued()
	t.Progress.Attempts, t.Progress.NotBefore, t.Progress.Moved = w.attempts, time.Time{}, true
	s.back(w, t, task.TaskRequeued, task.ClassNone, note, nil, time.Now())
}

func (s *Workers) back(w *work, t *task.Task, a task.Action, class task.ErrorClass, note map[string]any, events []task.Event, now time.Time) {
	// More are refused by whoever reads it; their numbers go on.
	if n := len(t.Progress.Attempts) - 4*task.MaxAttemptsLimit; n > 0 {
		t.Progress.Attempts = t.Progress.Attempts[n:]
	}
	msg, err := stream.TaskMessage(stream.TasksTopic(t.Priority), t, stream.Requeued(nil)...)
	if err != nil {
		s.deps.Logger.Error("encoding a task", "tenant", t.Tenant, "task_id", t.ID, "error", err)
		return
	}
	e := s.event(a, w, now)
	e.Attempt, e.Device, e.Batch, e.ErrorClass = max(w.a.Attempt, t.Tried()), w.a.Device.ID, w.batch, class
	e.Detail = detail(note)
	s.deps.Metrics.Workers.Requeued.WithLabelValues(cmp.Or(string(class), fmt.Sprint(note["reason"]))).Inc()
	s.away(w, stream.Unit{Messages: []stream.Message{msg}, Events: append(events, e)}, func(err error) {
		var large *stream.TooLargeError
		if errors.As(err, &large) { // its attempts made it larger than its topic takes
			s.fail(w, &Failure{Class: task.ClassInvalid, Message: "the task with its attempts is larger than its topic takes"}, nil, time.Now())
			return
		}
		s.deps.Logger.Error("a task was not written back; it is run again", "tenant", t.Tenant, "task_id", t.ID, "error", err)
	})
}

// leave ends work that is not to be run any more.
func (s *Workers) leave(w *work, cause error, events []task.Event) {
	switch {
	case errors.Is(cause, errLost): // its new owner runs it; we do nothing more for it
		if w.over.CompareAndSwap(false, true) {
			s.live.remove(w)
			w.stop(errLost)
			if w.paid.CompareAndSwap(false, true) {
				s.leases.Drop(w.a.Lease, 1) // the new owner holds it
			}
		}
	case errors.Is(cause, errCancelled): // whoever cancelled it wrote its result
		e := s.event(task.TaskCancelled, w, time.Now())
		e.Device, e.Batch = w.a.Device.ID, w.batch
		s.deps.Metrics.Workers.Ended.WithLabelValues(string(task.Cancelled)).Inc()
		s.away(w, stream.Unit{Events: append(events, e)}, nil)
	default:
		s.giveBack(w, events)
	}
}

// away hands over the last that is written for a piece of work, gives its
// credit back, and finishes its share of the record when that is acknowledged.
func (s *Workers) away(w *work, u stream.Unit, refused func(error)) {
	if w.over.CompareAndSwap(false, true) {
		s.live.remove(w)
		s.giveCredit(w)
		w.stop(nil)
	}
	fault.At("workers.before_result")
	u.Acked = func(err error) {
		switch {
		case err == nil:
			fault.At("workers.after_result")
			w.from.release()
		case refused != nil:
			// It writes again, and must not wait here for room in the outbox: the
			// outbox has none until this call returns.
			go refused(err)
		}
	}
	s.put(u)
}

// giveCredit gives a piece of work's credit back, once.
func (s *Workers) giveCredit(w *work) {
	if w.paid.CompareAndSwap(false, true) {
		s.leases.GiveBack(w.a.Lease)
	}
}

func excluding(list []string, id string) []string {
	for _, x := range list {
		if x == id {
			return list
		}
	}
	const most = 32 // a device more than that is tried again: better than a task that grows for ever
	if len(list) >= most {
		list = list[1:]
	}
	return append(list, id)
}

// reasons is the attempts in short, for the audit row; the newest are kept when
// there is no room for all.
func reasons(as []task.Attempt) []map[string]any {
	const most = 10
	if len(as) > most {
		as = as[len(as)-most:]
	}
	out := make([]map[string]any, 0, len(as))
	for _, a := range as {
		out = append(out, map[string]any{"number": a.Number, "device_id": a.Device, "class": a.Class, "status": a.Status, "message": a.Message[:min(len(a.Message), 120)]})
	}
	return out
}

// detail writes a small JSON object; what does not fit is left out.
func detail(m map[string]any) []byte {
	b, err := json.Marshal(m)
	if err != nil || len(b) > task.MaxDetail || len(m) == 0 {
		return nil
	}
	return b
}
