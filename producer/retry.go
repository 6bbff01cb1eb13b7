package producer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// ErrRecordGone says that none of the records of a task is in Kafka any more, so that what it asked is not
// known here.
var ErrRecordGone = errors.New("the task's record is no longer in Kafka: submit the request under another id")

// Retry asks for another run of a finished task.
type Retry struct {
	Key         task.Key
	Generation  int              // of the new run
	Fingerprint task.Fingerprint // of the task; zero if it is not known
	Records     []Position       // where its record may be, the likeliest first
	Reason      string           // why, as the user says; may be empty
}

// Position is where a record is.
type Position struct {
	Topic     string
	Partition int
	Offset    int64
}

// Retry writes a finished task to its topic again, as a new generation. It returns nil once all in-sync
// replicas have the record and the event that says who asked and why. Two retries at the same time ask for
// the same generation, which runs once.
//
// A deadline or a start time of the earlier run that has passed is dropped. [ErrRecordGone] means that
// Kafka does not have the request any more. [ErrNoRedis] means that nothing was written.
func (p *Producer) Retry(ctx context.Context, r Retry, o task.Origin) error {
	t, err := p.find(ctx, r)
	if err != nil {
		return err
	}
	now := clock.Now()
	again := task.Progress{Generation: r.Generation}
	if t.Progress != nil {
		again.Sent = t.Progress.Sent
	}
	t.Progress = &again
	t.SubmittedAt, t.NotBefore = now.UTC(), time.Time{}
	if !t.Deadline.After(now) {
		t.Deadline = time.Time{}
	}
	if err := t.Validate(p.limits); err != nil {
		return &RefusedError{Refusals: []Refusal{{0, asFieldError(err)}}}
	}
	msg, err := records.TaskMessage(stream.TasksTopic(t.Priority), t, headersOf(o)...)
	if err != nil {
		return err
	}
	e := task.Accepted(t, o, now)
	e.Action = task.TaskRetried
	if e.Detail, err = json.Marshal(map[string]any{"generation": r.Generation, "reason": r.Reason}); err != nil {
		return fmt.Errorf("retrying task %s: %w", r.Key, err)
	}
	return p.runToEnd(ctx, "retrying task "+r.Key.String(), func(ctx context.Context) error { return p.retry(ctx, t, msg, e) })
}

// retry removes what Redis has of the earlier run, and writes the record, and then the event. If the
// process dies between the two, the task runs, and the router's event begins the new generation.
func (p *Producer) retry(ctx context.Context, t *task.Task, msg stream.Message, e task.Event) error {
	if p.cancels != nil {
		// The mark of an earlier cancel would end the new run at once.
		if err := p.askRedis(ctx, func(ctx context.Context) error { return p.cancels.Clear(ctx, t.Key()) }); err != nil {
			return errors.Join(ErrNoRedis, err)
		}
	}
	if err := p.put(ctx, stream.Unit{Messages: []stream.Message{msg}}); err != nil {
		return fmt.Errorf("writing a retry of task %s to Kafka: %w", t.Key(), err)
	}
	if err := p.put(ctx, stream.Unit{Events: []task.Event{e}}); err != nil {
		return fmt.Errorf("writing the event of a retry of task %s to Kafka: %w", t.Key(), err)
	}
	p.metrics.Producer.Retries.Inc()
	p.remember(ctx, []*task.Task{t})
	return nil
}

// find reads what a task asked from its records.
func (p *Producer) find(ctx context.Context, r Retry) (*task.Task, error) {
	for _, at := range r.Records {
		rec, err := records.Read(ctx, p.stream, at.Topic, at.Partition, at.Offset)
		if errors.Is(err, records.ErrNoRecord) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading the record of task %s at %s/%d@%d: %w", r.Key, at.Topic, at.Partition, at.Offset, err)
		}
		if t := request(rec, r); t != nil {
			return t, nil
		}
	}
	return nil, fmt.Errorf("retrying task %s: %w", r.Key, ErrRecordGone)
}

// request returns the task in a record, if it is the one to run again: after its topic was
// recreated, the position may hold another.
func request(rec *stream.Record, r Retry) *task.Task {
	decode := wire.DecodeTask
	if rec.Ours() {
		decode = wire.DecodeOwnTask
	}
	t, err := decode(rec.Value, rec.Header(wire.HeaderContentType))
	if err != nil {
		return nil
	}
	if t.ID == "" {
		t.ID = records.TaskID(rec)
	}
	t.Normalize(clock.Now())
	if t.Key() != r.Key || t.Fingerprint().Differs(r.Fingerprint) {
		return nil
	}
	if t.Progress != nil && t.Progress.RequestedModel != "" {
		t.Model = t.Progress.RequestedModel
	}
	return t
}
