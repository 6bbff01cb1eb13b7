package router

import (
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/router/decide"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
)

// Pauses between tries while Redis does not answer.
const (
	minRedisBackoff = 50 * time.Millisecond
	maxRedisBackoff = time.Second
)

// redisBackoff is the schedule of tries; without a limit, they end with the context.
func redisBackoff(limit time.Duration) backoff.BackOff {
	return backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(minRedisBackoff), backoff.WithMaxInterval(maxRedisBackoff), backoff.WithMaxElapsedTime(limit))
}

// intake takes records of one partition: consecutive ones, or some that were set aside and are read
// again. It decodes them, moves invalid ones to the dead-letter topic, sets aside what the window has no
// room for, and lets the rest in. It blocks while the scheduler is behind, which stops the fetching of this
// partition.
func (r *Router) intake(ctx context.Context, recs []*stream.Record) {
	r.deps.Metrics.Router.Read.WithLabelValues(recs[0].Topic).Add(float64(len(recs)))
	fault.At("router.after_read")
	r.sched.ages.note(recs[0], clock.Now())
	kept, sorted := r.sched.sort(ctx, recs[0], r.decodeAll(ctx, recs))
	if sorted {
		defer r.sched.land(recs)
	}
	if len(kept) == 0 {
		return
	}
	for _, it := range r.admit(ctx, kept) {
		select {
		case r.contested <- it:
		case <-ctx.Done():
			return
		}
	}
}

// admit claims tasks, asks Postgres about them, drops duplicates and what has been answered, refuses other
// requests under a known id, and hands the rest to the scheduler. It returns the items whose id is
// contested: whose it is will be known later.
func (r *Router) admit(ctx context.Context, items []*decide.Item) (unsettled []*decide.Item) {
	verdicts, overrides, err := r.claim(ctx, items)
	if err != nil {
		return nil // ctx ended: the owner of the partition reads the records again
	}
	fault.At("router.after_claim")
	for i, it := range items {
		if originOf(it).disputed && (verdicts[i] == claimed || verdicts[i] == reclaimed) {
			verdicts[i] = contested // its claim is not enough: the window has the other
		}
	}
	ends, checked := r.lookUp(ctx, items, verdicts)
	a := arrivals{actor: r.deps.Instance, now: clock.Now(), retention: r.deps.retention(items[0].Source), ends: ends, unchecked: !checked}
	for i, it := range items {
		switch {
		case verdicts[i] == contested:
			unsettled = append(unsettled, it)
		case verdicts[i] == reused:
			// An error of Put means that ctx ended: the record is read again.
			_ = r.dead.Put(ctx, reusedID(it))
		case verdicts[i] == duplicate:
			r.deps.Metrics.Router.Duplicates.Inc()
			a.end(it, task.TaskDuplicate)
		case overrides[i].Cancelled:
			a.end(it, task.TaskCancelled)
		case verdicts[i] == answered:
			r.deps.Metrics.Router.Duplicates.Inc()
			a.end(it, task.TaskDuplicate)
		case verdicts[i] == reread:
			a.end(it, task.TaskReread)
		default:
			overrides[i].Apply(it.Task) // of a time when it was only in the log; later copies keep it
			a.accept(it)
		}
	}
	if len(a.unit.Events) > 0 {
		a.unit.Acked = a.acked
		if r.outbox.Put(ctx, a.unit) != nil {
			return nil // ctx ended
		}
	} else {
		a.acked(nil)
	}
	select {
	case r.sched.arrivals <- a.items:
	case <-ctx.Done():
	}
	return unsettled
}

// arrivals sorts the items of one intake, and collects their events.
type arrivals struct {
	actor     string
	now       time.Time
	retention time.Duration
	ends      map[*decide.Item]task.State // of tasks that have been answered
	unchecked bool                        // Postgres did not say whether the tasks have been answered
	items     []*decide.Item              // for the scheduler
	unit      stream.Unit
	acks      []*records.Ack // released when the events are acknowledged
}

// end is for an item whose stay ends here: its event is all that it becomes.
func (a *arrivals) end(it *decide.Item, action task.Action) {
	a.unit.Events = append(a.unit.Events, a.event(action, it))
	a.acks = append(a.acks, originOf(it).ack)
}

// accept is for an item that goes to the scheduler. If it was there before, it has its events.
func (a *arrivals) accept(it *decide.Item) {
	o := originOf(it)
	o.ack.Hold()
	a.acks = append(a.acks, o.ack)
	a.items = append(a.items, it)
	if o.disputed || it.Seen {
		return // its events were written when it came first
	}
	if believed(o.rec, records.HeaderAccepted) == "" {
		e := task.Accepted(it.Task, submitter(o.rec, it.Task), a.now)
		e.Detail = arrivalOf(o.rec, it.Task, a.now, a.retention).Detail()
		a.unit.Events = append(a.unit.Events, e)
	}
	if !it.Parked {
		a.unit.Events = append(a.unit.Events, a.event(task.TaskQueued, it))
	}
}

func (a *arrivals) acked(err error) {
	if err != nil {
		for _, ack := range a.acks {
			ack.Refused(err)
		}
		return
	}
	fault.At("router.after_arrival")
	for _, ack := range a.acks {
		ack.Release()
	}
}

// reusedID is the dead letter of a record whose id belongs to another request. It is done when the letter
// is acknowledged.
func reusedID(it *decide.Item) records.Letter {
	o := originOf(it)
	return records.Letter{Record: o.rec, Reason: records.ReasonIDReused,
		Cause: task.NewFieldError("task_id", "use an id of its own for each request",
			"%q belongs to another request of tenant %q: endpoint, model, input, needs or degrade differ", it.Task.ID, it.Task.Tenant),
		Done: func(err error) {
			if err != nil {
				o.ack.Refused(err)
				return
			}
			o.ack.Release()
		}}
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
		if a.ends[it] != "" { // perhaps a cancel ended the task before any record of it was read: then the id is bound by this one
			e.Fingerprint = it.Fingerprint.Bytes()
		}
	case task.TaskReread:
		e.Detail, e.Fingerprint = detail("state", string(a.ends[it])), it.Fingerprint.Bytes()
	case task.TaskCancelled:
		e.Fingerprint = it.Fingerprint.Bytes()
	case task.TaskQueued:
		e.Fingerprint = it.Fingerprint.Bytes()
		constraints := task.ConstraintsOf(it.Task)
		constraints.Unchecked = a.unchecked
		e.Detail = constraints.Detail()
	}
	return e
}

// decodeAll decodes records; those that can never succeed become dead letters. What was set aside and deleted
// before it was recalled has been reported as a gap.
func (r *Router) decodeAll(ctx context.Context, recs []*stream.Record) []*decide.Item {
	items := make([]*decide.Item, 0, len(recs))
	for _, rec := range recs {
		if rec.Incomplete != nil && errors.Is(rec.Incomplete.Err, stream.ErrRemoved) {
			rec.Done()
			continue
		}
		it, err := r.decode(rec)
		if err != nil {
			// An error of Put means that ctx ended: the record is read again.
			_ = r.dead.Put(ctx, records.Letter{Record: rec, Reason: records.ReasonOf(err, records.ReasonInvalid), Cause: err})
			continue
		}
		items = append(items, it)
	}
	return items
}

// claim claims the tasks, and looks up their overrides. While Redis is away it waits: tasks are late,
// none is lost. The error is that of ctx.
func (r *Router) claim(ctx context.Context, items []*decide.Item) (verdicts []verdict, overrides []device.Override, err error) {
	keys := make([]task.Key, len(items))
	for i, it := range items {
		keys[i] = it.Task.Key()
	}
	warned := false
	err = backoff.RetryNotify(func() error {
		if verdicts, err = r.claims.take(ctx, items); err != nil {
			return err
		}
		overrides, err = r.deps.Cancels.Get(ctx, keys...)
		return err
	}, backoff.WithContext(redisBackoff(0), ctx), func(err error, _ time.Duration) {
		r.deps.Metrics.Router.ClaimErrors.Inc()
		r.sched.oldest.redis.Begin("it gives no claims: " + err.Error())
		if !warned {
			warned = true
			r.deps.Logger.Warn("cannot claim tasks in Redis: they wait until it answers", "error", err)
		}
	})
	if err == nil && warned {
		r.sched.oldest.redis.End()
	}
	return verdicts, overrides, err
}
