package router

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/internal/waiting"
	"github.com/batchyard/batchyard/router/decide"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// maxFrameBytes bounds one record of assignments; a single larger task exceeds it alone.
const maxFrameBytes = 512 << 10

// emitter is the [decide.Effects] of a router: it takes credits in Redis, and writes what became of
// tasks to the log. It runs on the scheduler's goroutine.
type emitter struct {
	deps    Deps
	outbox  *stream.Outbox
	ctx     context.Context //nolint:containedctx // of the scheduler's rounds; the decider passes none
	dead    records.DeadLetters
	admit   func()
	failing bool // Redis gives no credits
	redis   *waiting.Condition
}

// Admit lets in what has arrived since the last round.
func (e *emitter) Admit() { e.admit() }

// Acquire takes the credits of a round in Redis.
func (e *emitter) Acquire(wants []device.Want, asks []device.Ask) ([]device.Grant, error) {
	began := time.Now()
	grants, err := e.deps.Credits.AcquireFor(e.ctx, e.deps.Instance, wants, asks)
	switch {
	case err != nil && !e.failing && e.ctx.Err() == nil:
		e.failing = true
		e.redis.Begin("it gives no credits: " + err.Error())
		e.deps.Logger.Warn("cannot take credits in Redis: tasks wait until it answers", "error", err)
	case err == nil && e.failing:
		e.failing = false
		e.redis.End()
		e.deps.Logger.Info("Redis gives credits again")
	}
	fault.At("router.after_credits")
	e.deps.Metrics.Router.RoundSeconds.Observe(time.Since(began).Seconds())
	return grants, err
}

// Assign writes the assignments of a round: one record per device, and one event per task that says
// why. The tasks have left the window; their records are done when the assignments are acknowledged.
// If the process dies before, another router assigns them again, and the credits taken here expire with
// their leases.
func (e *emitter) Assign(picks []decide.Pick, now time.Time) {
	e.deps.Metrics.Router.RoundPicks.Observe(float64(len(picks)))
	for len(picks) > 0 {
		n, size := 0, int64(0)
		for d := picks[0].Device; n < len(picks) && picks[n].Device == d && (n == 0 || size < maxFrameBytes); n++ {
			size += picks[n].Item.Size
		}
		e.assignTo(picks[0].Device, picks[:n], now)
		picks = picks[n:]
	}
}

// assignTo writes one frame. d belongs to the decider, which overwrites it with the next reading of the
// fleet: nothing that outlives this call may keep the pointer.
func (e *emitter) assignTo(d *device.Device, picks []decide.Pick, now time.Time) {
	m := e.deps.Metrics.Router
	deviceID := d.ID
	m.Assigned.WithLabelValues(d.ID).Add(float64(len(picks)))
	as := make([]task.Assignment, 0, len(picks))
	events := make([]task.Event, 0, len(picks))
	origins := make([]*origin, 0, len(picks))
	for i := range picks {
		p := &picks[i]
		it := p.Item
		origins = append(origins, depart(it))
		attempt := it.Task.Tried() + 1
		own, _ := d.ModelName(it.Task.Model)
		if own == it.Task.Model {
			own = ""
		}
		as = append(as, task.Assignment{
			Task:    *it.Task,
			Device:  task.DeviceRef{ID: d.ID, URL: d.URL, Slots: max(1, d.Slots), Model: own},
			Attempt: attempt, IdleSlots: p.IdleSlots, AssignedAt: now.UTC(),
			Lease: task.Lease{Pool: p.Pool, ID: p.Lease}, Probe: p.Probe,
		})
		ev := task.NewEvent(task.TaskAssigned, it.Task, e.deps.Instance, now)
		ev.DeviceID, ev.Attempt = d.ID, attempt
		ev.Duration = max(0, now.Sub(it.Since()))
		ev.Detail = p.Why
		events = append(events, ev)
		m.WaitSeconds.WithLabelValues(string(it.Task.Priority)).Observe(ev.Duration.Seconds())
	}
	frame, err := wire.EncodeFrame(wire.FrameAssignments, as)
	if err != nil { // not reached: our own types can be encoded
		e.deps.Logger.Error("encoding assignments", "error", err)
		return
	}
	fault.At("router.before_assignment")
	e.put(stream.Unit{
		Messages: []stream.Message{{Topic: stream.Assignments, Key: d.ID, Value: frame}},
		Events:   events,
		Acked:    func(err error) { e.assignmentsAcked(origins, deviceID, err) },
	})
}

func (e *emitter) assignmentsAcked(origins []*origin, deviceID string, err error) {
	if err != nil {
		e.deps.Logger.Error("assignments were not written: their tasks will be read again", "device_id", deviceID, "error", err)
		for _, o := range origins {
			o.ack.Refused(err)
		}
		return
	}
	fault.At("router.after_assignment")
	for _, o := range origins {
		o.ack.Release()
	}
}

// put hands a unit to the outbox. An error means that the router is stopping: the records are read
// again.
func (e *emitter) put(u stream.Unit) { _ = e.outbox.Put(e.ctx, u) }

// finish writes how an item leaves the router, other than by an assignment, and finishes its record
// when that is acknowledged.
func (e *emitter) finish(it *decide.Item, u stream.Unit) {
	o := depart(it)
	e.write(o, u, func(error) { e.failTooLarge(it, o) })
}

// write puts a unit that ends the stay of a record. tooLarge runs if a topic will never take the unit
// for its size, because an unfinished record would use its share of the window forever.
func (e *emitter) write(o *origin, u stream.Unit, tooLarge func(err error)) {
	u.Acked = func(err error) {
		var large *stream.TooLargeError
		switch {
		case err == nil:
			fault.At("router.after_end")
			o.ack.Release()
		case errors.As(err, &large):
			go tooLarge(err) // not here: it may wait for room in the outbox, which frees none until this returns
		default:
			e.unwritten(o, err)
		}
	}
	e.put(u)
}

// unwritten makes a record be read again, because what it became was refused.
func (e *emitter) unwritten(o *origin, err error) {
	e.deps.Logger.Error("what became of a task was not written: it will be read again", "record", o.rec.Position(), "error", err)
	o.ack.Refused(err)
}

// failTooLarge ends a task that no topic takes as what it became. The result leaves out everything that
// can be large.
func (e *emitter) failTooLarge(it *decide.Item, o *origin) {
	now := clock.Now()
	res := task.NewResult(it.Task, task.Failed, now)
	res.Labels, res.Attempts = nil, nil
	res.Error = &task.Error{Class: task.ClassInvalid, Message: "the task is larger than its topic accepts, counting what is added on its way: submit a smaller one"}
	ev := task.NewEvent(task.TaskFailed, it.Task, e.deps.Instance, now)
	ev.Outcome, ev.ErrorClass = task.OutcomeFailed, task.ClassInvalid
	ev.Duration = max(0, now.Sub(it.Task.SubmittedAt))
	u, ok := e.ended(res, ev)
	if !ok {
		return
	}
	e.write(o, u, func(err error) { e.unwritten(o, err) })
}

// Expire ends a task whose deadline passed while it waited.
func (e *emitter) Expire(it *decide.Item, now time.Time) {
	res := task.NewResult(it.Task, task.Expired, now)
	res.Error = &task.Error{Class: task.ClassExpired, Message: "the deadline passed before a device could take the task"}
	ev := task.NewEvent(task.TaskExpired, it.Task, e.deps.Instance, now)
	ev.Outcome, ev.ErrorClass = task.OutcomeFailed, task.ClassExpired
	ev.Duration = now.Sub(it.Task.SubmittedAt)
	if u, ok := e.ended(res, ev); ok {
		e.finish(it, u)
	}
}

// ended is the unit of a task that ends here: its result and event.
func (e *emitter) ended(res *task.Result, ev task.Event) (u stream.Unit, ok bool) {
	msg, err := records.ResultMessage(res)
	if err != nil { // not reached: our own types can be encoded
		e.deps.Logger.Error("encoding a result", "task_id", res.TaskID, "error", err)
		return u, false
	}
	e.deps.Metrics.Router.Ended.WithLabelValues(string(res.State)).Inc()
	return stream.Unit{Messages: []stream.Message{msg}, Events: []task.Event{ev}}, true
}

// cancelled records that a cancelled task has left the window. Its result is in the log already.
func (e *emitter) cancelled(it *decide.Item, now time.Time) {
	e.finish(it, stream.Unit{Events: []task.Event{task.NewEvent(task.TaskCancelled, it.Task, e.deps.Instance, now)}})
	e.deps.Metrics.Router.Ended.WithLabelValues(string(task.Cancelled)).Inc()
}

// refuse ends an item whose id belongs to another request, and those that ride with it. If the process dies
// before the dead letter is acknowledged, their records are read again, and refused again.
func (e *emitter) refuse(it *decide.Item) {
	depart(it)
	_ = e.dead.Put(e.ctx, reusedID(it)) // an error means that ctx ended
}

// duplicate records that an item rides with its twin.
func (e *emitter) duplicate(rider *decide.Item, now time.Time) {
	e.deps.Metrics.Router.Duplicates.Inc()
	o := originOf(rider)
	ev := task.NewEvent(task.TaskDuplicate, rider.Task, e.deps.Instance, now)
	ev.Outcome, ev.SourceAddr = task.OutcomeRefused, "kafka:"+o.rec.Position()
	o.ack.Hold()
	e.put(stream.Unit{Events: []task.Event{ev}, Acked: func(err error) {
		if err != nil {
			o.ack.Refused(err)
			return
		}
		o.ack.Release()
	}})
}

// Park writes a task back to the log, where its copy waits.
func (e *emitter) Park(it *decide.Item, p decide.Parking) {
	t, rec := it.Task.Requeued(), originOf(it).rec
	msg, err := records.TaskMessage(stream.TasksParked, t, records.RequeueHeaders(rec)...)
	if err != nil { // not reached: our own types can be encoded
		e.deps.Logger.Error("encoding a task", "task_id", t.ID, "error", err)
		return
	}
	unit := stream.Unit{Messages: []stream.Message{msg}}
	if !it.Parked { // parking again is no news, and may repeat without end
		ev := task.NewEvent(task.TaskParked, t, e.deps.Instance, p.Now)
		ev.Detail = detail("reason", p.Reason)
		unit.Events = append(unit.Events, ev)
	}
	e.deps.Metrics.Router.Parked.WithLabelValues(p.Reason).Inc()
	e.finish(it, unit)
}

// SetAside frees the memory of a task. Its record is not done, so if the process dies here, another
// router reads it.
func (e *emitter) SetAside(it *decide.Item) { originOf(it).rec.SetAside() }

// Recall reads tasks again that were set aside.
func (e *emitter) Recall(o decide.Owner, wanted []decide.Wanted) {
	ws := make([]stream.Wanted, len(wanted))
	for i, w := range wanted {
		ws[i] = stream.Wanted{Offset: w.Offset, Marked: w.Seen}
	}
	o.(*stream.Ownership).Recall(ws) //nolint:forcetypeassert // intake makes all items
}

// maxDetailValue bounds one value in the detail of an event.
const maxDetailValue = 1024

// detail writes one name and value as a JSON object.
func detail(name, value string) []byte {
	b, err := json.Marshal(map[string]string{name: value[:min(len(value), maxDetailValue)]})
	if err != nil { // not reached
		return nil
	}
	return b
}
