package router

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// maxFrameBytes bounds one record of assignments; one giant task may exceed it
// alone.
const maxFrameBytes = 512 << 10

// assign writes the assignments of a round: one record a device, and an event
// each that says why. The tasks leave the window; their records are finished
// when the assignments are acknowledged. If we die before, another router
// assigns them again, and the credits taken here end as leases do.
func (s *scheduler) assign(ctx context.Context, picks []pick, now time.Time) {
	for len(picks) > 0 {
		n, size := 0, 0
		st := picks[0].state
		for n < len(picks) && picks[n].state == st && (n == 0 || size < maxFrameBytes) {
			size += len(picks[n].item.rec.Value)
			n++
		}
		s.assignTo(ctx, st, picks[:n], now)
		picks = picks[n:]
	}
}

func (s *scheduler) assignTo(ctx context.Context, st *state, picks []pick, now time.Time) {
	m := s.deps.Metrics.Router
	m.Assigned.WithLabelValues(st.ID).Add(float64(len(picks)))
	as := make([]task.Assignment, 0, len(picks))
	events := make([]task.Event, 0, len(picks))
	items := make([]*item, 0, len(picks))
	for _, p := range picks {
		it := p.item
		s.window.remove(it)
		items = append(items, it)
		attempt := it.task.Tried() + 1
		as = append(as, task.Assignment{
			Task:    *it.task,
			Device:  task.DeviceRef{ID: st.ID, URL: st.URL, Slots: max(1, st.Slots)},
			Attempt: attempt, IdleSlots: p.idle, AssignedAt: now.UTC(),
			Lease: task.Lease{Pool: st.pool(it.class.merged).name, ID: p.lease},
		})
		e := task.NewEvent(task.TaskAssigned, it.task, s.name, now)
		e.Device, e.Attempt = st.ID, attempt
		e.Duration = max(0, now.Sub(later(it.since, it.ready)))
		e.Detail = detail("policy", s.policy.Name(), "why", p.why)
		events = append(events, e)
		m.WaitSeconds.WithLabelValues(string(it.task.Priority)).Observe(e.Duration.Seconds())
	}
	frame, err := task.EncodeFrame(task.FrameAssignments, as)
	if err != nil { // our own types do not fail to encode
		s.deps.Logger.Error("encoding assignments", "error", err)
		return
	}
	unit := stream.Unit{
		Messages: []stream.Message{{Topic: stream.Assignments, Key: st.ID, Value: frame}},
		Events:   events,
		Acked: func(err error) {
			if err != nil {
				s.deps.Logger.Error("assignments were not written; their tasks are read again", "device", st.ID, "error", err)
				return
			}
			for _, it := range items {
				it.ticket.release()
			}
		},
	}
	_ = s.outbox.Put(ctx, unit) // an error means that ctx ended: the tasks are read again
}

// finish writes the end of an item's stay and finishes its record then.
func (s *scheduler) finish(ctx context.Context, it *item, u stream.Unit) {
	s.finishOr(ctx, it, u, func() { s.tooLarge(ctx, it) })
}

// finishOr is finish; large is called when a topic will never take the unit for
// its size. The task has to end all the same: its record, never finished, would
// keep its share of the window for ever.
func (s *scheduler) finishOr(ctx context.Context, it *item, u stream.Unit, large func()) {
	u.Acked = func(err error) {
		var tooLarge *stream.TooLargeError
		switch {
		case err == nil:
			it.ticket.release()
		case errors.As(err, &tooLarge) && large != nil:
			go large() // it must not wait here for room in the outbox, which has none until this returns
		default:
			s.deps.Logger.Error("a task's way on was not written; it is read again", "record", it.rec.Position(), "error", err)
		}
	}
	_ = s.outbox.Put(ctx, u) // an error means that ctx ended: it is read again
}

// tooLarge ends a task that no topic takes as what it became. The result leaves
// out all that can be large.
func (s *scheduler) tooLarge(ctx context.Context, it *item) {
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
	s.finishOr(ctx, it, stream.Unit{Messages: []stream.Message{msg}, Events: []task.Event{e}}, nil)
}

// expire ends a task whose deadline passed while it waited. It is out of the
// window already.
func (s *scheduler) expire(ctx context.Context, it *item, now time.Time) {
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
	s.finish(ctx, it, stream.Unit{Messages: []stream.Message{msg}, Events: []task.Event{e}})
}

// parkedForDevice is why a task is parked that no device could run: one that
// joins brings it back before its time.
const parkedForDevice = "no_device"

// park sets a task aside in the log: it leaves the window and is read again
// later. What it waits for (a device, a time) does not hold up others.
func (s *scheduler) park(ctx context.Context, it *item, reason string, now time.Time) {
	s.window.remove(it)
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
	s.finish(ctx, it, unit)
}

// rewrite parks the tasks whose records have been in the log for half of its
// retention: they wait here longer than their records last, and a router that
// starts anew would not find them.
func (s *scheduler) rewrite(ctx context.Context, now time.Time) {
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
		s.park(ctx, it, reason, now)
		n++
	}
}

// parkRecord parks the task of a record that holds up its partition's commit.
func (s *scheduler) parkRecord(ctx context.Context, rec *stream.Record) {
	for _, it := range s.window.byKey {
		if it.rec == rec {
			s.park(ctx, it, "straggler", time.Now())
			return
		}
	}
}

// reliefEvery bounds how often the window is looked through.
const reliefEvery = 100 * time.Millisecond

// fullShare of the window in use means that a partition may be stuck: half of
// the window is split among the partitions, and a partition stops when its own
// part and the common half are used up, however empty those of the others are.
const fullShare = 0.45

// relieve makes room when the window of a topic is full of tasks that cannot go
// on, so that what is behind them in the log can: tasks that no device can take
// now, tasks whose time is far away, and, while a device idles for which the
// window holds nothing, the last of the largest class that waits for devices
// that are busy. What is parked costs one more record each, so this is done
// only when the window is full, and a bounded number at a time.
func (s *scheduler) relieve(ctx context.Context, now time.Time) (full bool) {
	const most = 1024
	if now.Before(s.relief) {
		return false
	}
	s.relief = now.Add(reliefEvery)
	for topic, n := range s.window.bySrc {
		if n < int(fullShare*float64(s.cfg.WindowCount)) && s.window.bytes[topic] < int64(fullShare*float64(s.cfg.WindowBytes)) {
			continue
		}
		full = true
		s.relieveTopic(ctx, topic, most, now)
	}
	return full
}

func (s *scheduler) relieveTopic(ctx context.Context, topic string, most int, now time.Time) {
	var unable, far []*item
	largest := map[*class]int{}
	for _, it := range s.window.byKey {
		if it.rec.Topic != topic {
			continue
		}
		switch {
		case it.index < 0 && it.ready.After(now.Add(s.cfg.ParkFor)):
			// What was parked before goes round again, but only after a while.
			if topic != stream.TasksParked || now.Sub(it.since) >= s.cfg.ParkFor {
				far = append(far, it)
			}
		case it.index >= 0 && it.class.unable:
			unable = append(unable, it)
		case it.index >= 0:
			largest[it.class]++
		}
	}
	byAge := func(a, b *item) int { return a.since.Compare(b.since) }
	slices.SortFunc(unable, byAge)
	slices.SortFunc(far, byAge)
	for _, it := range unable[:min(len(unable), most)] {
		s.park(ctx, it, parkedForDevice, now)
	}
	for _, it := range far[:min(len(far), most)] {
		s.park(ctx, it, "not_before", now)
	}
	if len(unable)+len(far) > 0 || !s.idleDevice(now) {
		return
	}
	var biggest *class
	for c, n := range largest {
		if biggest == nil || n > largest[biggest] {
			biggest = c
		}
	}
	if biggest == nil {
		return
	}
	last := slices.Clone([]*item(biggest.ready)) // the last by rank go first
	slices.SortFunc(last, func(a, b *item) int { return int(min(1, max(-1, b.rank-a.rank))) })
	for _, it := range last[:min(len(last)/2, most)] {
		if it.rec.Topic == topic {
			s.park(ctx, it, "busy_devices", now)
		}
	}
}

// idleDevice reports whether a device has nothing to do and the window nothing
// for it.
func (s *scheduler) idleDevice(now time.Time) bool {
	for _, d := range s.view.devices {
		if d.Silent() || d.Draining || d.each.used+d.batch.used > 0 {
			continue
		}
		wanted := false
		for _, c := range s.window.classes {
			if c.ready.Len() > 0 && d.usable(c, now) {
				wanted = true
				break
			}
		}
		if !wanted {
			return true
		}
	}
	return false
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
