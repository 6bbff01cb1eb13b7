package producer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// ErrNoRedis says that a change could not be told to the routers.
var ErrNoRedis = errors.New("Redis did not take the change") //nolint:staticcheck // a name

// Standing is where a task ranks: among which, and how high.
type Standing struct {
	Priority task.Priority `json:"priority"`
	Level    int           `json:"level"`
}

// With is the standing after a change.
func (s Standing) With(c device.Repriority) Standing {
	if c.Priority != "" {
		s.Priority = c.Priority
	}
	if c.Level >= 0 {
		s.Level = c.Level
	}
	return s
}

// Rerank asks for a waiting task to go earlier or later. The event that says who
// asked is written first: were it the other way round, dying in between would
// leave a change that nobody recorded. It returns nil once all in-sync replicas
// have the event and Redis the mark, which routers take up at once or when they
// read the task. An error that is [ErrNoRedis] means that nothing has changed,
// and a second event says so. from is how it stood, as far as anybody knows.
func (p *Producer) Rerank(ctx context.Context, r *Recent, from Standing, change device.Repriority, o task.Origin) error {
	change.Key = r.Key()
	to := from.With(change)
	e := task.Event{
		Time: time.Now().UTC(), Action: task.TaskReprioritized, Outcome: task.OutcomeOK, Tenant: r.Tenant,
		ActorType: task.ActorUser, ActorID: o.Actor, SourceAddr: o.Addr, UserAgent: o.UserAgent,
		ResourceType: "task", ResourceID: r.ID, TaskID: r.ID, Job: r.Job, TraceID: r.TraceID, Model: r.Model, Priority: to.Priority,
	}
	detail, err := json.Marshal(map[string]Standing{"from": from, "to": to})
	if err != nil {
		return fmt.Errorf("changing the priority of task %s: %w", r.Key(), err)
	}
	e.Detail = detail
	return p.carry(ctx, "changing the priority of task "+r.Key().String(), func(ctx context.Context) error { return p.rerank(ctx, change, e) })
}

func (p *Producer) rerank(ctx context.Context, change device.Repriority, e task.Event) error {
	if p.cancels == nil {
		return ErrNoRedis
	}
	if err := p.put(ctx, stream.Unit{Events: []task.Event{e}}); err != nil {
		return fmt.Errorf("writing that task %s changes its priority to Kafka: %w", change.Key, err)
	}
	marking, cancel := context.WithTimeout(ctx, markWait)
	defer cancel()
	err := p.cancels.Rerank(marking, change)
	if err == nil {
		return nil
	}
	e.Time, e.Outcome, e.Priority = time.Now().UTC(), task.OutcomeFailed, ""
	return errors.Join(ErrNoRedis, err, p.put(ctx, stream.Unit{Events: []task.Event{e}}))
}

// markWait bounds how long a change waits for Redis, without which it is none.
const markWait = 3 * time.Second

// RecordNow writes an event as [Producer.Record] does, and returns once all
// in-sync replicas have it.
func (p *Producer) RecordNow(ctx context.Context, e task.Event, detail any) error {
	if detail != nil {
		if b, err := json.Marshal(detail); err == nil && len(b) <= task.MaxDetail {
			e.Detail = b
		}
	}
	if e.Time.IsZero() {
		e.Time = time.Now().UTC()
	}
	if e.ActorID == "" {
		e.ActorID = p.actor
	}
	return p.carry(ctx, "recording "+string(e.Action), func(ctx context.Context) error {
		if err := p.put(ctx, stream.Unit{Events: []task.Event{e}}); err != nil {
			return fmt.Errorf("recording %s: %w", e.Action, err)
		}
		return nil
	})
}
