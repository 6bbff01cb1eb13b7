package router

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// maxFrameBytes bounds one record of assignments; one giant task may exceed it
// alone.
const maxFrameBytes = 512 << 10

// assigned writes the assignments of a round: one record a device, and an event
// each that says why. The tasks are out of the window; their records are finished
// when the assignments are acknowledged. If we die before, another router
// assigns them again, and the credits taken here end as leases do.
func (s *scheduler) assigned(picks []pick, now time.Time) {
	s.deps.Metrics.Router.RoundPicks.Observe(float64(len(picks)))
	for len(picks) > 0 {
		n, size := 0, int64(0)
		st := picks[0].state
		for n < len(picks) && picks[n].state == st && (n == 0 || size < maxFrameBytes) {
			size += picks[n].item.size
			n++
		}
		s.assignTo(st, picks[:n], now)
		picks = picks[n:]
	}
}

func (s *scheduler) assignTo(st *state, picks []pick, now time.Time) {
	m := s.deps.Metrics.Router
	m.Assigned.WithLabelValues(st.ID).Add(float64(len(picks)))
	as := make([]task.Assignment, 0, len(picks))
	events := make([]task.Event, 0, len(picks))
	items := make([]*item, 0, len(picks))
	for i := range picks {
		p := &picks[i]
		it := p.item
		items = append(items, it)
		attempt := it.task.Tried() + 1
		as = append(as, task.Assignment{
			Task:    *it.task,
			Device:  task.DeviceRef{ID: st.ID, URL: st.URL, Slots: max(1, st.Slots)},
			Attempt: attempt, IdleSlots: p.idle, AssignedAt: now.UTC(),
			Lease: task.Lease{Pool: p.pool().name, ID: p.lease}, Probe: st.probe,
		})
		e := task.NewEvent(task.TaskAssigned, it.task, s.name, now)
		e.Device, e.Attempt = st.ID, attempt
		e.Duration = max(0, now.Sub(later(it.since, it.ready)))
		e.Detail = p.detail
		events = append(events, e)
		m.WaitSeconds.WithLabelValues(string(it.task.Priority)).Observe(e.Duration.Seconds())
	}
	frame, err := task.EncodeFrame(task.FrameAssignments, as)
	if err != nil { // our own types do not fail to encode
		s.deps.Logger.Error("encoding assignments", "error", err)
		return
	}
	fault.At("router.before_assignment")
	unit := stream.Unit{
		Messages: []stream.Message{{Topic: stream.Assignments, Key: st.ID, Value: frame}},
		Events:   events,
		Acked: func(err error) {
			if err != nil {
				s.deps.Logger.Error("assignments were not written; their tasks are read again", "device_id", st.ID, "error", err)
				return
			}
			fault.At("router.after_assignment")
			for _, it := range items {
				it.ticket.release()
			}
		},
	}
	_ = s.outbox.Put(s.ctx, unit) // an error means that ctx ended: the tasks are read again
}

// finish writes the end of an item's stay and finishes its record then.
func (s *scheduler) finish(it *item, u stream.Unit) {
	s.finishOr(it, u, func() { s.tooLarge(it) })
}

// finishOr is finish; large is called when a topic will never take the unit for
// its size. The task has to end all the same: its record, never finished, would
// keep its share of the window for ever.
func (s *scheduler) finishOr(it *item, u stream.Unit, large func()) {
	u.Acked = func(err error) {
		var tooLarge *stream.TooLargeError
		switch {
		case err == nil:
			fault.At("router.after_end")
			it.ticket.release()
		case errors.As(err, &tooLarge) && large != nil:
			go large() // it must not wait here for room in the outbox, which has none until this returns
		default:
			s.deps.Logger.Error("a task's way on was not written; it is read again", "record", it.rec.Position(), "error", err)
		}
	}
	_ = s.outbox.Put(s.ctx, u) // an error means that ctx ended: it is read again
}

// tooLarge ends a task that no topic takes as what it became. The result leaves
// out all that can be large.
func (s *scheduler) tooLarge(it *item) {
	now := time.Now()
	res := task.NewResult(it.task, task.Failed, now)
	res.Labels, res.Attempts = nil, nil
	res.Error = &task.Error{Class: task.ClassInvalid, Message: "the task with what is added on its way is larger than its topic takes; send less"}
	msg, err := stream.ResultMessage(res)
	if err != nil {
		s.deps.Logger.Error("encoding a result", "error", err)
		return
	}
	e := task.NewEvent(task.TaskFailed, it.task, s.name, now)
	e.Outcome, e.ErrorClass = task.OutcomeFailed, task.ClassInvalid
	e.Duration = max(0, now.Sub(it.task.SubmittedAt))
	s.deps.Metrics.Router.Ended.WithLabelValues(string(task.Failed)).Inc()
	s.finishOr(it, stream.Unit{Messages: []stream.Message{msg}, Events: []task.Event{e}}, nil)
}

// expired ends a task whose deadline passed while it waited. It is out of the
// window already.
func (s *scheduler) expired(it *item, now time.Time) {
	res := task.NewResult(it.task, task.Expired, now)
	res.Error = &task.Error{Class: task.ClassExpired, Message: "the deadline passed before a device could take the task"}
	msg, err := stream.ResultMessage(res)
	if err != nil {
		s.deps.Logger.Error("encoding a result", "error", err)
		return
	}
	e := task.NewEvent(task.TaskExpired, it.task, s.name, now)
	e.Outcome, e.ErrorClass = task.OutcomeFailed, task.ClassExpired
	e.Duration = now.Sub(it.task.SubmittedAt)
	s.deps.Metrics.Router.Ended.WithLabelValues(string(task.Expired)).Inc()
	s.finish(it, stream.Unit{Messages: []stream.Message{msg}, Events: []task.Event{e}})
}

// park writes a task to the log again, to be looked at later. It is out of the
// window.
func (s *scheduler) park(it *item, reason string, now time.Time) {
	t := it.task.Requeued()
	until := later(now.Add(s.cfg.ParkFor), it.ready)
	headers := append(stream.Requeued(it.rec),
		stream.Header{Key: stream.HeaderParkedUntil, Value: []byte(until.UTC().Format(time.RFC3339Nano))},
		stream.Header{Key: stream.HeaderParkedFor, Value: []byte(reason)})
	msg, err := stream.TaskMessage(stream.TasksParked, t, headers...)
	if err != nil {
		s.deps.Logger.Error("encoding a task", "error", err)
		return
	}
	unit := stream.Unit{Messages: []stream.Message{msg}}
	if it.rec.Topic != stream.TasksParked { // going round again is no news, and may go on for ever
		e := task.NewEvent(task.TaskParked, t, s.name, now)
		e.Detail = detail("reason", reason)
		unit.Events = append(unit.Events, e)
	}
	s.deps.Metrics.Router.Parked.WithLabelValues(reason).Inc()
	s.finish(it, unit)
}

// rewrite parks the tasks whose records have been in the log for half of its
// retention: they wait here longer than their records last, and a router that
// starts anew would not find them.
func (s *scheduler) rewrite(now time.Time) {
	const most = 256
	if s.deps.Retention <= 0 {
		return
	}
	n := 0
	for _, it := range s.window.byKey {
		if n == most {
			return
		}
		if it.rec.Time.IsZero() || now.Sub(it.rec.Time) < s.deps.Retention/2 {
			continue
		}
		reason := "retention"
		if it.early || it.index >= 0 {
			reason = parkedForDevice
		}
		s.setAside(it, reason, now)
		n++
	}
}

// parkRecord parks the task of a record that holds up its partition's commit.
func (s *scheduler) parkRecord(rec *stream.Record) {
	for _, it := range s.window.byKey {
		if it.of(rec) {
			s.setAside(it, "straggler", time.Now())
			return
		}
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// detail writes pairs of names and values as a small JSON object.
func detail(pairs ...string) []byte {
	m := make(map[string]string, len(pairs)/2)
	for i := 0; i+1 < len(pairs); i += 2 {
		if v := pairs[i+1]; v != "" {
			m[pairs[i]] = v[:min(len(v), 1024)]
		}
	}
	b, err := json.Marshal(m)
	if err != nil {
		return nil
	}
	return b
}
