package workers

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/workers/verdict"
)

// requeue is a task on its way back to its topic, and why it goes there.
type requeue struct {
	task   *task.Task
	class  task.ErrorClass // of the failure; ClassNone when there was none
	detail map[string]any  // of the event; has a "reason"
}

// requeued returns the task as it goes back to its topic; the backoff may be 0.
func (w *work) requeued(backoff time.Duration) *task.Task {
	t := w.task().Requeued()
	t.Progress.Attempts, t.Progress.BackoffMS = w.attempts, backoff.Milliseconds()
	t.Progress.Moved = t.Progress.Moved && w.localAttempts == 0
	return t
}

// retryElsewhere writes a task back for another device, or for this one later. If it has failed here before, it does
// not come back while there is another, whatever it leaves for now: an open breaker would close for its next failure.
func (s *Workers) retryElsewhere(e ending, d Decision, device string) {
	t := e.requeued(d.After)
	d.Exclude = d.Exclude || slices.ContainsFunc(e.attempts, func(a task.Attempt) bool { return a.DeviceID == device && a.Model == t.Model && Counts(a.Class) })
	if d.Exclude {
		t.Progress.Exclude = excluding(t.Progress.Exclude, device)
	}
	class := e.failure.Class
	s.writeBack(e, requeue{t, class, map[string]any{
		"reason": class, "after_ms": d.After.Milliseconds(), "without_device": d.Exclude, "message": e.failure.Message,
	}})
}

// degrade writes a task back with a smaller model.
func (s *Workers) degrade(e ending, model string) {
	t := e.requeued(0)
	t.Progress.Exclude, t.Progress.Moved = nil, false
	if t.Progress.RequestedModel == "" {
		t.Progress.RequestedModel = t.Model
	}
	from := t.Model
	t.Model = model
	s.deps.Metrics.Workers.Degraded.Inc()
	ev := s.event(task.TaskDegraded, e.work, e.at)
	ev.Detail = detail(map[string]any{"from": from, "to": model})
	e.events = append(e.events, ev)
	s.writeBack(e, requeue{t, e.failure.Class, map[string]any{"reason": "degraded"}})
}

// giveBack writes a task back because the worker is stopping. The device is not to blame, and the
// attempt, if there was one, does not count.
func (s *Workers) giveBack(w *work, events []task.Event) {
	s.writeBack(ending{work: w, events: events, at: clock.Now()},
		requeue{w.requeued(0), task.ClassDraining, map[string]any{"reason": task.ClassDraining}})
}

// Why waiting tasks leave a device other than after an attempt; reasons of requeue events.
const (
	awaySilent   = "device_silent"
	awayDraining = "device_draining"
	awayLeft     = "device_left"
	awayPaused   = "device_paused"
	awayDeclines = "device_declines"
	movedEven    = "moved"
)

// requeueFromAway writes a task back because its device takes no more work. It comes with a backoff,
// because a router that does not know yet would send it here again at once.
func (s *Workers) requeueFromAway(w *work, why string) {
	s.writeBack(ending{work: w, at: clock.Now()},
		requeue{w.requeued(s.cfg.backoff(1)), task.ClassNone, map[string]any{"reason": why}})
}

// requeueMoved writes back a task that waits here while another device would be done with it sooner.
func (s *Workers) requeueMoved(w *work, note map[string]any) {
	t := w.requeued(0)
	t.Progress.Moved = true
	s.writeBack(ending{work: w, at: clock.Now()}, requeue{t, task.ClassNone, note})
}

// writeBack writes a task back to its topic. If the topic refuses it for its size, which its attempts
// increased, it fails.
func (s *Workers) writeBack(e ending, q requeue) {
	t := q.task
	// Readers refuse more attempts; dropping the oldest keeps their numbers.
	if n := len(t.Progress.Attempts) - 4*task.MaxAttemptsLimit; n > 0 {
		t.Progress.Attempts = t.Progress.Attempts[n:]
	}
	msg, err := records.TaskMessage(stream.TasksTopic(t.Priority), t, records.RequeueHeaders(nil)...)
	if err != nil {
		s.deps.Logger.Error("encoding a task", "tenant", t.Tenant, "task_id", t.ID, "error", err)
		return
	}
	ev := s.event(task.TaskRequeued, e.work, e.at)
	ev.Attempt, ev.DeviceID, ev.BatchID = max(e.assignment.Attempt, t.Tried()), e.assignment.Device.ID, e.batch
	ev.ErrorClass, ev.Detail = q.class, detail(q.detail)
	s.deps.Metrics.Workers.Requeued.WithLabelValues(cmp.Or(string(q.class), fmt.Sprint(q.detail["reason"]))).Inc()
	s.conclude(e.work, stream.Unit{Messages: []stream.Message{msg}, Events: append(e.events, ev)}, func(err error) {
		var large *stream.TooLargeError
		if errors.As(err, &large) {
			f := verdict.New(verdict.Oversized, "", "the task with its attempts is larger than its topic allows")
			s.fail(ending{work: e.work, failure: f, at: clock.Now()})
			return
		}
		s.deps.Logger.Error("a task was not written back; it will run again", "tenant", t.Tenant, "task_id", t.ID, "error", err)
		e.ack.Refused(err)
	})
}

// excluding adds a device to the list of those that a task must not go to. Only the last 32 are
// kept: trying a device again is better than a task that grows without bound.
func excluding(list []string, id string) []string {
	if slices.Contains(list, id) {
		return list
	}
	const most = 32
	if len(list) >= most {
		list = list[1:]
	}
	return append(list, id)
}
