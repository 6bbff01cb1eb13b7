package producer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
)

// Check normalizes the tasks and validates them. It returns a *RefusedError if one is invalid. It
// writes nothing.
func (p *Producer) Check(tasks []*task.Task) error {
	if n := len(tasks); n > p.cfg.MaxTasks {
		return &RefusedError{Refusals: []Refusal{{p.cfg.MaxTasks, &task.FieldError{
			Problem: fmt.Sprintf("%d tasks in one submit, but the limit is %d", n, p.cfg.MaxTasks),
			Remedy:  "split them into several submits, or upload a file"}}}}
	}
	var refused RefusedError
	first := make(map[task.Key]int, len(tasks))
	now := clock.Now()
	for i, t := range tasks {
		t.SubmittedAt = time.Time{} // not the sender's to choose: it decides the order
		t.Normalize(now)
		err := t.Validate(p.limits)
		if err == nil && t.Progress != nil {
			err = &task.FieldError{Field: "progress", Problem: "reserved for Batchyard", Remedy: "omit it"}
		}
		if j, ok := first[t.Key()]; err == nil && ok {
			err = &task.FieldError{Field: "task_id", Problem: fmt.Sprintf("same id as task %d of this submit", j), Remedy: "use a unique id for each task, or omit it"}
		}
		if err != nil {
			refused.add(i, err)
			p.metrics.Producer.Refused.WithLabelValues(fieldClass(err)).Inc()
			continue
		}
		first[t.Key()] = i
	}
	if len(refused.Refusals) > 0 {
		return &refused
	}
	return nil
}

// fieldClass returns the first part of the name of an invalid field, as a label of a metric. The rest may
// be chosen by the sender.
func fieldClass(err error) string {
	var fe *task.FieldError
	if !errors.As(err, &fe) || fe.Field == "" {
		return "record"
	}
	if i := strings.IndexAny(fe.Field, ".["); i >= 0 {
		return fe.Field[:i]
	}
	return fe.Field
}

// Submit is [Producer.Accept] without the states.
func (p *Producer) Submit(ctx context.Context, tasks []*task.Task, o task.Origin) error {
	_, err := p.Accept(ctx, tasks, o)
	return err
}

// Accept normalizes and validates all tasks, and then writes them, except those that have finished: a
// task with a known id that asks the same is the same task. It returns the state of each task once all
// in-sync replicas have the tasks and their events: task.accepted, or task.resubmitted of a finished one.
// A *RefusedError, or a *ReusedError, means that nothing was written. After any other error it is unknown
// how much was written; submitting again with the same ids is safe.
func (p *Producer) Accept(ctx context.Context, tasks []*task.Task, o task.Origin) ([]task.State, error) {
	var chosen []int // tasks whose ids the sender chose
	for i, t := range tasks {
		if t.ID != "" {
			chosen = append(chosen, i)
		}
	}
	return p.accept(ctx, tasks, chosen, o)
}

// AcceptNew is [Producer.Accept] of a task whose id the caller has made with [task.NewID]: no one else has
// it, so neither Postgres nor Redis is asked.
func (p *Producer) AcceptNew(ctx context.Context, t *task.Task, o task.Origin) error {
	_, err := p.accept(ctx, []*task.Task{t}, nil, o)
	return err
}

// accept accepts tasks, of which those that chosen names have ids of the sender.
func (p *Producer) accept(ctx context.Context, tasks []*task.Task, chosen []int, o task.Origin) ([]task.State, error) {
	began := time.Now()
	if err := p.Check(tasks); err != nil {
		return nil, err
	}
	states, err := p.checkIDs(ctx, tasks, chosen)
	if err != nil {
		p.metrics.Producer.Refused.WithLabelValues("task_id").Inc()
		return nil, err
	}
	fresh, finished := make([]*task.Task, 0, len(tasks)), make([]task.Event, 0)
	for i, t := range tasks {
		if states[i].Terminal() {
			e := task.Accepted(t, o, began)
			e.Action = task.TaskResubmitted
			finished = append(finished, e)
		} else {
			fresh = append(fresh, t)
		}
	}
	if err := p.writeAll(ctx, fresh, finished, o); err != nil {
		return nil, err
	}
	p.metrics.Producer.Seconds.Observe(time.Since(began).Seconds())
	return states, nil
}

// writeAll writes tasks and their events, and the events of other tasks, and waits for all of them.
func (p *Producer) writeAll(ctx context.Context, tasks []*task.Task, others []task.Event, o task.Origin) error {
	s, err := p.encode(tasks, o)
	if err != nil {
		return err
	}
	s.events, s.size = append(s.events, others...), s.size+1024*int64(len(others))
	size := min(s.size, p.cfg.MaxInFlight)
	if err := p.bytes.Acquire(ctx, size); err != nil {
		return fmt.Errorf("waiting to write %d tasks: %w", len(tasks), err)
	}
	done := make(chan error, 1)
	if !p.start(func() {
		defer p.bytes.Release(size)
		// The caller may go away; the submit is carried out anyway.
		done <- p.write(context.WithoutCancel(ctx), s)
	}) {
		p.bytes.Release(size)
		return ErrClosed
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("writing %d tasks, outcome unknown: %w", len(tasks), ctx.Err())
	}
}

// submission is a submit that was validated.
type submission struct {
	tasks  []*task.Task
	msgs   []stream.Message // the tasks
	events []task.Event     // task.accepted of each, and task.resubmitted of finished ones
	size   int64            // estimate of both, in bytes
}

func (p *Producer) encode(tasks []*task.Task, o task.Origin) (submission, error) {
	headers := headersOf(o)
	s := submission{tasks: tasks, msgs: make([]stream.Message, len(tasks)), events: make([]task.Event, len(tasks))}
	now := clock.Now()
	for i, t := range tasks {
		m, err := records.TaskMessage(stream.TasksTopic(t.Priority), t, headers...)
		if err != nil {
			return submission{}, err
		}
		s.msgs[i], s.events[i] = m, task.Accepted(t, o, now)
		s.size += int64(len(m.Value)) + 1024
	}
	return s, nil
}

// headersOf say who sent a task.
func headersOf(o task.Origin) []stream.Header {
	headers := []stream.Header{{Key: records.HeaderAccepted, Value: []byte("1")}}
	for _, h := range []struct{ key, value string }{{records.HeaderActor, o.Actor}, {records.HeaderAddr, o.Addr}, {records.HeaderAgent, o.UserAgent}} {
		if h.value != "" {
			headers = append(headers, stream.Header{Key: h.key, Value: []byte(h.value)})
		}
	}
	return headers
}

// write writes the tasks, then their events, and then remembers the tasks.
func (p *Producer) write(ctx context.Context, s submission) error {
	fault.At("producer.before_write")
	if len(s.msgs) > 0 {
		if err := p.put(ctx, stream.Unit{Messages: s.msgs}); err != nil {
			return fmt.Errorf("writing %d tasks to Kafka: %w", len(s.tasks), err)
		}
	}
	// If the process dies here, the tasks run without task.accepted; see the package comment.
	fault.At("producer.between")
	if err := p.put(ctx, stream.Unit{Events: s.events}); err != nil {
		return fmt.Errorf("writing %d events of submitted tasks to Kafka: %w", len(s.events), err)
	}
	fault.At("producer.after_events")
	for _, t := range s.tasks {
		p.metrics.Producer.Submitted.WithLabelValues(string(t.Priority)).Inc()
	}
	p.remember(ctx, s.tasks)
	return nil
}

// remember makes tasks known until Postgres has them. Without Redis, only other processes miss them, and
// only for a moment.
func (p *Producer) remember(ctx context.Context, tasks []*task.Task) {
	p.metrics.Producer.RecentSize.Set(float64(p.recent.put(tasks)))
	if !p.shared.enabled() {
		return
	}
	if err := p.askRedis(ctx, func(ctx context.Context) error { return p.shared.put(ctx, tasks) }); err != nil {
		p.warnOnce.Do(func() { p.logger.Warn("other processes cannot see recently submitted tasks", "error", err) })
	}
}
