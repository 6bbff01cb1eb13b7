package router

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/router/decide"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// Pauses between tries while Redis does not answer.
const (
	minRedisBackoff = 50 * time.Millisecond
	maxRedisBackoff = 2 * time.Second
)

// redisBackoff is the schedule of tries; without a limit, they end with the context.
func redisBackoff(limit time.Duration) backoff.BackOff {
	return backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(minRedisBackoff), backoff.WithMaxInterval(maxRedisBackoff), backoff.WithMaxElapsedTime(limit))
}

// intake takes consecutive records of one partition: it decodes them, moves invalid ones to the
// dead-letter topic, claims the tasks, drops duplicates, and hands the rest to the scheduler. It blocks
// while the scheduler is behind, which stops the fetching of this partition.
func (r *Router) intake(ctx context.Context, recs []*stream.Record) {
	r.deps.Metrics.Router.Read.WithLabelValues(recs[0].Topic).Add(float64(len(recs)))
	fault.At("router.after_read")
	items := r.decodeAll(ctx, recs)
	if len(items) == 0 {
		return
	}
	duplicate, overrides, err := r.claim(ctx, items)
	if err != nil {
		return // ctx ended: the owner of the partition reads the records again
	}
	fault.At("router.after_claim")
	a := arrivals{actor: r.deps.Instance, now: time.Now()}
	for i, it := range items {
		switch {
		case duplicate[i]:
			r.deps.Metrics.Router.Duplicates.Inc()
			a.end(it, task.TaskDuplicate)
		case overrides[i].Cancelled:
			a.end(it, task.TaskCancelled)
		default:
			overrides[i].Apply(it.Task) // of a time when it was only in the log; later copies keep it
			a.accept(it)
		}
	}
	if len(a.unit.Events) > 0 {
		a.unit.Acked = a.acked
		if r.outbox.Put(ctx, a.unit) != nil {
			return // ctx ended
		}
	} else {
		a.acked(nil)
	}
	select {
	case r.sched.arrivals <- a.items:
	case <-ctx.Done():
	}
}

// arrivals sorts the items of one intake, and collects their events.
type arrivals struct {
	actor string
	now   time.Time
	items []*decide.Item // for the scheduler
	unit  stream.Unit
	acks  []*records.Ack // released when the events are acknowledged
}

// end is for an item whose stay ends here: its event is all that it becomes.
func (a *arrivals) end(it *decide.Item, action task.Action) {
	a.unit.Events = append(a.unit.Events, a.event(action, it))
	a.acks = append(a.acks, originOf(it).ack)
}

// accept is for an item that goes to the scheduler.
func (a *arrivals) accept(it *decide.Item) {
	o := originOf(it)
	if o.rec.Header(records.HeaderAccepted) == "" {
		a.unit.Events = append(a.unit.Events, task.Accepted(it.Task, submitter(o.rec, it.Task), a.now))
	}
	if !it.Parked {
		a.unit.Events = append(a.unit.Events, a.event(task.TaskQueued, it))
	}
	o.ack.Hold()
	a.acks = append(a.acks, o.ack)
	a.items = append(a.items, it)
}

func (a *arrivals) acked(err error) {
	if err != nil {
		return // the outbox is closed: the records are not done, and read again
	}
	fault.At("router.after_arrival")
	for _, ack := range a.acks {
		ack.Release()
	}
}

// event is an event about a task that was just read, with where it came from.
func (a *arrivals) event(action task.Action, it *decide.Item) task.Event {
	e := task.NewEvent(action, it.Task, a.actor, a.now)
	e.SourceAddr = "kafka:" + originOf(it).rec.Position()
	e.Endpoint, e.Priority, e.CustomID = it.Task.Endpoint, it.Task.Priority, it.Task.CustomID
	e.SubmittedAt, e.Deadline = it.Task.SubmittedAt, it.Task.Deadline
	if it.Task.Callback != nil {
		e.CallbackURL = it.Task.Callback.URL
	}
	switch action {
	case task.TaskDuplicate:
		e.Outcome = task.OutcomeRefused
	case task.TaskQueued:
		e.Detail = task.ConstraintsOf(it.Task).Detail()
	}
	return e
}

// decodeAll decodes records; those that can never succeed become dead letters.
func (r *Router) decodeAll(ctx context.Context, recs []*stream.Record) []*decide.Item {
	items := make([]*decide.Item, 0, len(recs))
	for _, rec := range recs {
		it, err := r.decode(rec)
		if err != nil {
			// An error of Put means that ctx ended: the record is read again.
			_ = r.dead.Put(ctx, records.Letter{Record: rec, Reason: records.ReasonInvalid, Cause: err})
			continue
		}
		items = append(items, it)
	}
	return items
}

// topicPriority is the priority of the tasks in a topic: the topic decides when a record is read.
var topicPriority = map[string]task.Priority{
	stream.TasksHigh: task.High, stream.TasksNormal: task.Normal, stream.TasksLow: task.Low,
}

// decode reads and checks the task of a record.
func (r *Router) decode(rec *stream.Record) (*decide.Item, error) {
	t, err := wire.DecodeTask(rec.Value, rec.Header(wire.HeaderContentType))
	if err != nil {
		return nil, err
	}
	if p, ok := topicPriority[rec.Topic]; ok {
		t.Priority = p
	}
	if t.ID == "" {
		t.ID = records.TaskID(rec)
	}
	if t.TraceID == "" {
		t.TraceID = traceOf(rec, t)
	}
	if t.SubmittedAt.IsZero() || rec.Header(records.HeaderAccepted) == "" {
		// The log's time, not the sender's: it decides who goes first.
		t.SubmittedAt = rec.Time.UTC()
	}
	t.Normalize(time.Now())
	if err := t.Validate(r.deps.Limits); err != nil {
		return nil, err
	}
	it := &decide.Item{
		Task: t, Origin: newOrigin(rec), Source: rec.Topic, Size: int64(len(rec.Value)), Client: hostOf(rec.Header(records.HeaderAddr)),
		ReadyAt: t.ReadyAt(), Parked: rec.Topic == stream.TasksParked,
	}
	if it.Parked {
		if until := records.ParkedUntil(rec); until.After(it.ReadyAt) {
			it.ReadyAt = until
			it.WakesForDevice = rec.Header(records.HeaderParkedFor) == decide.ParkedForDevice
		}
	}
	return it, nil
}

// hostOf is an address without its port.
func hostOf(addr string) string {
	if host, _, err := net.SplitHostPort(addr); err == nil {
		return host
	}
	return addr
}

// traceOf takes the trace from a W3C traceparent header, or derives it from the identity, so that a
// task that is read twice keeps its trace.
func traceOf(rec *stream.Record, t *task.Task) string {
	if tp := rec.Header("traceparent"); len(tp) == 55 && tp[2] == '-' && tp[35] == '-' {
		probe := task.Task{TraceID: tp[3:35]}
		if probe.CheckTrace() == nil {
			return probe.TraceID
		}
	}
	return fmt.Sprintf("%x", t.Key().Hash())
}

// submitter is who sent a record: as the headers of the API say, or else the tenant.
func submitter(rec *stream.Record, t *task.Task) task.Origin {
	o := task.Origin{Actor: rec.Header(records.HeaderActor), Addr: rec.Header(records.HeaderAddr), UserAgent: rec.Header(records.HeaderAgent)}
	if o.Actor == "" {
		o.Actor = t.Tenant
	}
	if o.Addr == "" {
		o.Addr = "kafka:" + rec.Position()
	}
	return o
}

// claim claims the tasks, and looks up their overrides. While Redis is away it waits: tasks are late,
// none is lost. The error is that of ctx.
func (r *Router) claim(ctx context.Context, items []*decide.Item) (duplicate []bool, overrides []device.Override, err error) {
	keys := make([]task.Key, len(items))
	for i, it := range items {
		keys[i] = it.Task.Key()
	}
	warned := false
	err = backoff.RetryNotify(func() error {
		if duplicate, err = r.claims.take(ctx, items); err != nil {
			return err
		}
		overrides, err = r.deps.Cancels.Get(ctx, keys...)
		return err
	}, backoff.WithContext(redisBackoff(0), ctx), func(err error, _ time.Duration) {
		r.deps.Metrics.Router.ClaimErrors.Inc()
		if !warned {
			warned = true
			r.deps.Logger.Warn("cannot claim tasks in Redis: they wait until it answers", "error", err)
		}
	})
	return duplicate, overrides, err
}
