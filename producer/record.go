package producer

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// Record writes an event that is not about a task, such as a device that joined or a request that was
// refused. It returns once the event is handed over. detail may be nil, and is dropped when it is
// too large.
func (p *Producer) Record(ctx context.Context, e task.Event, detail map[string]any) error {
	var d any
	if detail != nil {
		d = detail
	}
	if err := p.outbox.Put(ctx, stream.Unit{Events: []task.Event{p.completed(e, d)}}); err != nil {
		return fmt.Errorf("recording %s: %w", e.Action, err)
	}
	return nil
}

// RecordNow writes an event like [Producer.Record], but returns once all in-sync replicas have it.
func (p *Producer) RecordNow(ctx context.Context, e task.Event, detail any) error {
	e = p.completed(e, detail)
	return p.runToEnd(ctx, "recording "+string(e.Action), func(ctx context.Context) error {
		if err := p.put(ctx, stream.Unit{Events: []task.Event{e}}); err != nil {
			return fmt.Errorf("recording %s: %w", e.Action, err)
		}
		return nil
	})
}

// completed adds the detail, and the time and the actor if they are missing.
func (p *Producer) completed(e task.Event, detail any) task.Event {
	if detail != nil {
		if b, err := json.Marshal(detail); err == nil && len(b) <= task.MaxDetail {
			e.Detail = b
		}
	}
	if e.Time.IsZero() {
		e.Time = clock.Now().UTC()
	}
	if e.ActorID == "" {
		e.ActorID = p.instance
	}
	return e
}

// Flush waits until the events handed over by Record are in Kafka, or ctx ends.
func (p *Producer) Flush(ctx context.Context) error { return p.outbox.Flush(ctx) }
