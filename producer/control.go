package producer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
)

// ErrNoRedis reports that a change could not be saved in Redis, so no router learns of it.
var ErrNoRedis = errors.New("Redis did not save the change") //nolint:staticcheck // a name

// PriorityLevel is a task's priority and level.
type PriorityLevel struct {
	Priority task.Priority `json:"priority"`
	Level    int           `json:"level"`
}

// With returns the standing after a change.
func (s PriorityLevel) With(c device.PriorityChange) PriorityLevel {
	if c.Priority != "" {
		s.Priority = c.Priority
	}
	if c.Level >= 0 {
		s.Level = c.Level
	}
	return s
}

// Reprioritize changes the priority or level of a waiting task. The event that says who asked is written
// first, so that no change goes unrecorded if the process dies in between. It returns nil once all
// in-sync replicas have the event, and Redis has the override. Routers apply it at once, or when
// they read the task. [ErrNoRedis] means that nothing has changed; a second event says so. from is
// what the task has now, as far as it is known.
func (p *Producer) Reprioritize(ctx context.Context, r *Recent, from PriorityLevel, change device.PriorityChange, o task.Origin) error {
	change.Key = r.Key()
	to := from.With(change)
	e := task.Event{
		Time: clock.Now().UTC(), Action: task.TaskReprioritized, Outcome: task.OutcomeOK, Tenant: r.Tenant,
		ActorType: task.ActorUser, ActorID: o.Actor, SourceAddr: o.Addr, UserAgent: o.UserAgent,
		ResourceType: "task", ResourceID: r.ID, TaskID: r.ID, JobID: r.Job, TraceID: r.TraceID, Model: r.Model, Generation: r.Generation, Priority: to.Priority,
	}
	detail, err := json.Marshal(map[string]PriorityLevel{"from": from, "to": to})
	if err != nil {
		return fmt.Errorf("changing the priority of task %s: %w", r.Key(), err)
	}
	e.Detail = detail
	return p.runToEnd(ctx, "changing the priority of task "+r.Key().String(), func(ctx context.Context) error { return p.reprioritize(ctx, change, e) })
}

// reprioritize writes the event and then the override.
func (p *Producer) reprioritize(ctx context.Context, change device.PriorityChange, e task.Event) error {
	if p.cancels == nil {
		return ErrNoRedis
	}
	if err := p.put(ctx, stream.Unit{Events: []task.Event{e}}); err != nil {
		return fmt.Errorf("writing the event of a new priority of task %s to Kafka: %w", change.Key, err)
	}
	within, cancel := context.WithTimeout(ctx, overrideTimeout)
	defer cancel()
	err := p.cancels.Reprioritize(within, change)
	if err == nil {
		return nil
	}
	e.Time, e.Outcome, e.Priority = clock.Now().UTC(), task.OutcomeFailed, ""
	return errors.Join(ErrNoRedis, err, p.put(ctx, stream.Unit{Events: []task.Event{e}}))
}

// overrideTimeout bounds how long a change waits for Redis, without which there is no change.
const overrideTimeout = 3 * time.Second

// Cancel cancels a task. It writes an event that says who asked, and a CANCELLED result, which is the
// task's result unless another came first. Then it notifies the stage that holds the task. It
// returns nil once all in-sync replicas have the result.
func (p *Producer) Cancel(ctx context.Context, r *Recent, o task.Origin) error {
	now := clock.Now().UTC()
	res := &task.Result{
		TaskID: r.ID, Tenant: r.Tenant, Generation: r.Generation, State: task.Cancelled, Model: r.Model, Endpoint: r.Endpoint, Priority: r.Priority,
		JobID: r.Job, CustomID: r.CustomID, Labels: r.Labels, Callback: r.Callback, TraceID: r.TraceID,
		SubmittedAt: r.SubmittedAt, FinishedAt: now,
		Error: &task.Error{Class: task.ClassCancelled, Message: "the task was cancelled on request"},
	}
	msg, err := records.ResultMessage(res)
	if err != nil {
		return err
	}
	asked := task.Event{
		Time: now, Action: task.TaskCancelRequested, Outcome: task.OutcomeOK, Tenant: r.Tenant,
		ActorType: task.ActorUser, ActorID: o.Actor, SourceAddr: o.Addr, UserAgent: o.UserAgent,
		ResourceType: "task", ResourceID: r.ID, TaskID: r.ID, JobID: r.Job, TraceID: r.TraceID, Model: r.Model, Generation: r.Generation,
	}
	return p.runToEnd(ctx, "cancelling task "+r.Key().String(), func(ctx context.Context) error { return p.cancel(ctx, r.Key(), msg, asked) })
}

// cancel writes the event, the result, and the override.
func (p *Producer) cancel(ctx context.Context, k task.Key, msg stream.Message, asked task.Event) error {
	p.metrics.Producer.CancelsAsked.Inc()
	// The event first, so that no cancelled result goes unexplained if the process dies in between.
	if err := p.put(ctx, stream.Unit{Events: []task.Event{asked}}); err != nil {
		return fmt.Errorf("writing the event of cancelling task %s to Kafka: %w", k, err)
	}
	if err := p.put(ctx, stream.Unit{Messages: []stream.Message{msg}}); err != nil {
		return fmt.Errorf("writing the result of cancelled task %s to Kafka: %w", k, err)
	}
	if p.cancels == nil {
		return nil
	}
	// Without Redis the task still ends as CANCELLED; only the work is wasted.
	if err := p.askRedis(ctx, func(ctx context.Context) error { return p.cancels.Cancel(ctx, k) }); err != nil {
		p.logger.Warn("a cancelled task may still run", "tenant", k.Tenant, "task_id", k.ID, "error", err)
	}
	return nil
}
