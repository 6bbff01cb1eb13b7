package router

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// ticket finishes a record when everything that it became is acknowledged: the
// events of its arrival, and what it ended as.
type ticket struct {
	rec  *stream.Record
	open atomic.Int32
	with []*ticket // of records that ride along; written while the task is in the window
}

func newTicket(rec *stream.Record) *ticket {
	t := &ticket{rec: rec}
	t.open.Store(1) // the end of the task's stay here
	return t
}

func (t *ticket) hold() { t.open.Add(1) }

func (t *ticket) release() {
	if t.open.Add(-1) == 0 {
		t.rec.Done()
		for _, other := range t.with {
			other.release()
		}
	}
}

// intake takes consecutive records of one partition: it decodes, dead-letters
// what is broken, claims, drops duplicates, and hands the rest to the
// scheduler. It blocks while the scheduler is behind, which stops the fetching
// of this partition.
func (r *Router) intake(ctx context.Context, recs []*stream.Record) {
	r.deps.Metrics.Router.Read.WithLabelValues(recs[0].Topic).Add(float64(len(recs)))
	fault.At("router.after_read")
	items := make([]*item, 0, len(recs))
	for _, rec := range recs {
		it, err := r.decode(rec)
		if err != nil {
			r.refuse(ctx, rec, err)
			continue
		}
		items = append(items, it)
	}
	if len(items) == 0 {
		return
	}
	taken, marks, err := r.claim(ctx, items)
	if err != nil {
		return // ctx ended: the records are read again by whoever owns the partition
	}
	fault.At("router.after_claim")
	now := time.Now()
	var unit stream.Unit
	fresh := items[:0]
	var told []*ticket
	for i, it := range items {
		switch {
		case taken[i]:
			unit.Events = append(unit.Events, r.arrival(task.TaskDuplicate, it, now))
			r.deps.Metrics.Router.Duplicates.Inc()
			told = append(told, it.ticket) // its end and its event are one
			continue
		case marks[i].Cancelled:
			unit.Events = append(unit.Events, r.arrival(task.TaskCancelled, it, now))
			told = append(told, it.ticket)
			continue
		}
		// Somebody changed it while it was in the log. It keeps that from here on,
		// also when it is written again.
		marks[i].Apply(it.task)
		if it.rec.Header(stream.HeaderAccepted) == "" {
			unit.Events = append(unit.Events, task.Accepted(it.task, origin(it.rec, it.task), now))
		}
		if it.rec.Topic != stream.TasksParked {
			unit.Events = append(unit.Events, r.arrival(task.TaskQueued, it, now))
		}
		it.ticket.hold()
		told = append(told, it.ticket)
		fresh = append(fresh, it)
	}
	unit.Acked = func(err error) {
		if err != nil {
			return // closed: not finished, read again
		}
		fault.At("router.after_arrival")
		for _, t := range told {
			t.release()
		}
	}
	if len(unit.Events) == 0 {
		unit.Acked(nil)
	} else if r.outbox.Put(ctx, unit) != nil {
		return
	}
	select {
	case r.sched.arrivals <- fresh:
	case <-ctx.Done():
	}
}

// decode reads and checks the task of a record.
func (r *Router) decode(rec *stream.Record) (*item, error) {
	t, err := task.DecodeTask(rec.Value, rec.Header(task.HeaderContentType))
	if err != nil {
		return nil, err
	}
	// The topic is the priority: it decides who reads the record when.
	switch rec.Topic {
	case stream.TasksHigh:
		t.Priority = task.High
	case stream.TasksNormal:
		t.Priority = task.Normal
	case stream.TasksLow:
		t.Priority = task.Low
	}
	if t.ID == "" {
		t.ID = stream.TaskID(rec)
	}
	if t.TraceID == "" {
		t.TraceID = traceOf(rec, t)
	}
	if t.SubmittedAt.IsZero() || rec.Header(stream.HeaderAccepted) == "" {
		// The log's time, not the sender's: it decides who goes first.
		t.SubmittedAt = rec.Time.UTC()
	}
	t.Normalize(time.Now())
	if err := t.Validate(r.deps.Limits); err != nil {
		return nil, err
	}
	it := &item{
		task: t, rec: rec, ticket: newTicket(rec), source: rec.Topic, size: int64(len(rec.Value)), client: hostOf(rec.Header(stream.HeaderAddr)),
		ready: t.ReadyAt(), index: -1, wakeAt: -1,
	}
	if rec.Topic == stream.TasksParked {
		if until := stream.ParkedUntil(rec); until.After(it.ready) {
			it.ready = until
			it.early = rec.Header(stream.HeaderParkedFor) == parkedForDevice
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

// traceOf takes the trace from a W3C traceparent header, else derives it from
// the identity: the same task read twice keeps its trace.
func traceOf(rec *stream.Record, t *task.Task) string {
	if tp := rec.Header("traceparent"); len(tp) == 55 && tp[2] == '-' && tp[35] == '-' {
		probe := task.Task{TraceID: tp[3:35]}
		if probe.CheckTrace() == nil {
			return probe.TraceID
		}
	}
	return fmt.Sprintf("%x", t.Key().Hash())
}

func origin(rec *stream.Record, t *task.Task) task.Origin {
	o := task.Origin{Actor: rec.Header(stream.HeaderActor), Addr: rec.Header(stream.HeaderAddr), UserAgent: rec.Header(stream.HeaderAgent)}
	if o.Actor == "" {
		o.Actor = t.Tenant
	}
	if o.Addr == "" {
		o.Addr = "kafka:" + rec.Position()
	}
	return o
}

// arrival is an event of the router about a task that it has just read; it
// carries where the task came from.
func (r *Router) arrival(a task.Action, it *item, now time.Time) task.Event {
	e := task.NewEvent(a, it.task, r.deps.Instance, now)
	e.SourceAddr = "kafka:" + it.rec.Position()
	e.Endpoint, e.Priority, e.CustomID = it.task.Endpoint, it.task.Priority, it.task.CustomID
	e.SubmittedAt, e.Deadline = it.task.SubmittedAt, it.task.Deadline
	if it.task.Callback != nil {
		e.CallbackURL = it.task.Callback.URL
	}
	switch a {
	case task.TaskDuplicate:
		e.Outcome = task.OutcomeRefused
	case task.TaskQueued:
		e.Detail = task.WishesOf(it.task).Detail()
	}
	return e
}

// claim takes the claims and looks up what was cancelled or ranks anew. While
// Redis is away it waits: tasks are late, none is lost. The error is ctx's.
func (r *Router) claim(ctx context.Context, items []*item) (taken []bool, marks []device.Mark, err error) {
	keys := make([]task.Key, len(items))
	for i, it := range items {
		keys[i] = it.task.Key()
	}
	b := backoff.NewExponentialBackOff(backoff.WithInitialInterval(50*time.Millisecond), backoff.WithMaxInterval(2*time.Second), backoff.WithMaxElapsedTime(0))
	first := true
	err = backoff.RetryNotify(func() error {
		if taken, err = r.claims.take(ctx, items); err != nil {
			return err
		}
		marks, err = r.deps.Cancels.Marks(ctx, keys...)
		return err
	}, backoff.WithContext(b, ctx), func(err error, _ time.Duration) {
		r.deps.Metrics.Router.ClaimErrors.Inc()
		if first {
			r.deps.Logger.Warn("Redis does not take claims; tasks wait until it does", "error", err)
			first = false
		}
	})
	return taken, marks, err
}

// refuse sends a record that can never succeed to the dead letters, and says
// so in the audit log. If we die before the acknowledgement it is read again.
func (r *Router) refuse(ctx context.Context, rec *stream.Record, cause error) {
	r.deps.Metrics.Stream.DeadLetters.WithLabelValues(Stage, "invalid").Inc()
	unit := stream.Unit{
		Messages: []stream.Message{stream.DeadLetter(rec, Stage, "invalid", cause)},
		Events:   []task.Event{stream.DeadLetterEvent(rec, r.deps.Instance, cause)},
		Acked: func(err error) {
			var large *stream.TooLargeError
			switch {
			case err == nil:
				rec.Done()
			case errors.As(err, &large):
				// Cannot be: the dead-letter topic takes more than the tasks topics.
				r.deps.Logger.Error("a dead letter is larger than its topic takes; raise max.message.bytes of dlq", "record", rec.Position(), "error", err)
			}
		},
	}
	_ = r.outbox.Put(ctx, unit) // an error means that ctx ended: it is read again
}
