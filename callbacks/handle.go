package callbacks

import (
	"cmp"
	"context"
	"encoding/json"
	"time"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// outcomeLabels are the values of the metric's outcome label, by state.
var outcomeLabels = map[string]string{stateDelivered: "delivered", stateDue: "failed", stateGivenUp: "given_up"}

// handle delivers one callback and records the outcome: first the event, then the row. If the process
// dies in between, the callback is delivered again; then there are two events, because it was
// delivered twice. It reports whether the host timed out.
func (s *Callbacks) handle(ctx context.Context, c *callback) (timedOut bool) {
	fault.At("callbacks.after_claim")
	o := s.poster.deliver(ctx, c)
	o.at = time.Now().UTC().Truncate(time.Microsecond)
	fault.At("callbacks.after_delivery")
	s.m.DeliverySeconds.Observe(o.took.Seconds())
	s.m.Deliveries.WithLabelValues(outcomeLabels[o.state]).Inc()
	if o.state == stateGivenUp {
		s.deps.Logger.Warn("giving up a callback", "callback", c.id, "host", c.host, "attempts", c.attempts, "problem", o.problem)
	}
	// When the lease expires, another process delivers; don't record the outcome after that.
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), c.leaseEnd)
	defer cancel()
	s.record(ctx, s.event(c, o), time.Until(c.leaseEnd)/2)
	fault.At("callbacks.after_event")
	wait := newBackoff()
	for {
		err := s.table.saveOutcome(ctx, c, o)
		if err == nil {
			fault.At("callbacks.after_row")
			return o.class == task.ClassTimeout
		}
		if !sleep(ctx, wait.NextBackOff(), nil) {
			s.deps.Logger.Warn("the outcome of a callback could not be saved; it will be delivered again", "callback", c.id, "error", describe(err))
			return o.class == task.ClassTimeout
		}
	}
}

// record writes an event and waits for the acknowledgement, but not beyond patience: while Kafka is
// unreachable the outbox keeps the event, and the row must not come due again.
func (s *Callbacks) record(ctx context.Context, e task.Event, patience time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	acked := make(chan error, 1)
	err := s.outbox.Put(ctx, stream.Unit{Events: []task.Event{e}, Acked: func(err error) { acked <- err }})
	if err == nil {
		select {
		case err = <-acked:
		case <-ctx.Done():
			return
		}
	}
	if err != nil {
		s.deps.Logger.Warn("the event of a callback was not written", "callback", e.ResourceID, "error", err)
	}
}

// event returns the event of a delivery. It leaves out the URL's path and query, which may contain
// secrets.
func (s *Callbacks) event(c *callback, o outcome) task.Event {
	e := task.Event{
		Time: o.at, Action: task.CallbackSent, Outcome: task.OutcomeOK, Tenant: c.tenant,
		ActorType: task.ActorStage, ActorID: s.deps.Instance, ResourceType: "callback", ResourceID: c.id,
		TaskID: c.taskID, JobID: cmp.Or(c.job, c.data.Job), TraceID: c.data.TraceID, Duration: o.took, ErrorClass: o.class,
	}
	d := c.digest(o)
	detail := map[string]any{"host": c.host, "delivery": c.attempts, "digests": audit.TextOfDigests(d.Append(nil))}
	if o.status != 0 {
		detail["status"] = o.status
	}
	if o.state != stateDelivered {
		e.Action, e.Outcome = task.CallbackFailed, task.OutcomeFailed
		detail["problem"] = o.problem
		if o.state == stateGivenUp {
			e.Action = task.CallbackGivenUp
		} else {
			detail["retry_in_ms"] = o.pause.Milliseconds()
		}
	}
	e.Detail, _ = json.Marshal(detail) // text and numbers: it cannot fail
	return e
}
