package resolve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
)

// settle runs the lost tasks again, or ends them, and returns when all in-sync replicas know.
func (p *pass) settle(ctx context.Context) error {
	for k, places := range p.open {
		u, gone, err := p.unitOf(ctx, k, places)
		if err != nil {
			return err
		}
		if gone {
			if p.rows[k] = p.seen[k]; p.rows[k] == nil { // Postgres does not know it, or a pass before this one had its row
				p.rows[k] = &task.Task{ID: k.ID, Tenant: k.Tenant, Progress: &task.Progress{Generation: k.Generation}}
			}
			continue
		}
		if err := p.put(ctx, u); err != nil {
			return err
		}
	}
	for k, t := range p.rows {
		if !p.absentFor(k, p.LostAfter) {
			p.underway++
			continue
		}
		u, err := p.fail(t, "its records were deleted from Kafka before its result was recorded")
		if err != nil {
			return err
		}
		if err := p.put(ctx, u); err != nil {
			return err
		}
	}
	if p.ran+p.failed == 0 {
		return nil
	}
	if err := p.Outbox.Flush(ctx); err != nil {
		return fmt.Errorf("writing tasks whose answers were lost: %w", err)
	}
	return nil
}

// absentFor reports whether the records of a task that Postgres knows have been missing for so long, as
// this process has seen it.
func (r *Resolver) absentFor(k task.Run, d time.Duration) bool {
	first, ok := r.absent[k]
	if !ok {
		first = time.Now()
	}
	if time.Since(first) >= d {
		return true
	}
	if len(r.stillAbsent) < maxOpen {
		r.stillAbsent[k] = first
	}
	return false
}

// put hands a unit over. What is not written is lost again, and the next pass finds it.
func (p *pass) put(ctx context.Context, u stream.Unit) error {
	u.Acked = func(err error) {
		if err != nil {
			p.Logger.Error("a task whose answer was lost could not be written; trying again", "error", err)
		}
	}
	if err := p.Outbox.Put(ctx, u); err != nil {
		return fmt.Errorf("writing tasks whose answers were lost: %w", err)
	}
	return nil
}

// unitOf returns what becomes of a task whose answer was lost: it runs again, the first time. A record under its
// id is the task's only if its fingerprint is the one that the id is bound to; gone means that Kafka has no such record.
func (p *pass) unitOf(ctx context.Context, k task.Run, places []place) (u stream.Unit, gone bool, err error) {
	for _, at := range places {
		rec, err := records.Read(ctx, p.Log, at.topic, at.partition, at.offset)
		switch {
		case errors.Is(err, records.ErrNoRecord): // deleted a moment ago
			continue
		case err != nil:
			return stream.Unit{}, false, fmt.Errorf("reading the record of task %s: %w", k, err)
		}
		t := taskOf(rec, priorityOf(at.topic))
		if t == nil || t.Run() != k {
			return stream.Unit{}, false, fmt.Errorf("the record of task %s at %s/%d@%d is another one now", k, at.topic, at.partition, at.offset)
		}
		if t.Fingerprint().Differs(p.bound[k]) {
			continue
		}
		if at.again {
			u, err = p.fail(t, "it ran again because its result had been deleted from Kafka before it was recorded, and there is no result again")
		} else {
			u, err = p.runAgain(rec, t)
		}
		return u, false, err
	}
	return stream.Unit{}, true, nil
}

func priorityOf(topic string) task.Priority {
	for _, b := range back {
		if b.topic == topic {
			return b.priority
		}
	}
	return ""
}

// runAgain returns a copy of a task's record for its topic, as a requeue.
func (p *pass) runAgain(rec *stream.Record, t *task.Task) (stream.Unit, error) {
	now := time.Now()
	again := t.Requeued()
	msg, err := records.TaskMessage(stream.TasksTopic(t.Priority), again, append(records.RequeueHeaders(rec), stream.Header{Key: HeaderRunAgain, Value: []byte("1")})...)
	if err != nil {
		return stream.Unit{}, err
	}
	e := task.NewEvent(task.TaskRequeued, t, p.Instance, now)
	e.ErrorClass, e.Attempt = task.ClassLost, t.Tried()
	e.Detail, _ = json.Marshal(map[string]string{"reason": string(task.ClassLost), "record": rec.Position()}) // text: it cannot fail
	p.ran++
	return stream.Unit{Messages: []stream.Message{msg}, Events: []task.Event{e}}, nil
}

// fail returns the end of a task.
func (p *pass) fail(t *task.Task, why string) (stream.Unit, error) {
	now := time.Now()
	res := task.NewResult(t, task.Failed, now)
	res.Error = &task.Error{Class: task.ClassLost, Message: why}
	if len(t.Input) == 0 { // its record is gone, and so is what it asked; it ends whatever that was
		res.Fingerprint = ""
	}
	msg, err := records.ResultMessage(res)
	if err != nil {
		return stream.Unit{}, err
	}
	e := task.NewEvent(task.TaskFailed, t, p.Instance, now)
	e.Outcome, e.ErrorClass = task.OutcomeFailed, task.ClassLost
	p.failed++
	return stream.Unit{Messages: []stream.Message{msg}, Events: []task.Event{e}}, nil
}
