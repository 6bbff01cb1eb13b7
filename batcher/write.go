package batcher

import (
	"context"
	"encoding/json"
	"time"

	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// write hands a closed batch and its events to the outbox. When they are acknowledged, the share
// of each assignment in its record is acknowledged too.
func (b *Batcher) write(ctx context.Context, o *openBatch, why Reason) {
	now := clock.Now().UTC()
	batch := task.Batch{
		ID: task.NewID(), Device: o.device, Endpoint: o.key.endpoint, Model: o.key.model,
		Reason: string(why), OpenedAt: now.Add(-time.Since(o.since)), ClosedAt: now,
		Assignments: make([]task.Assignment, 0, len(o.entries)),
	}
	for i := range o.entries {
		batch.Assignments = append(batch.Assignments, o.entries[i].Assignment)
	}
	frame, err := wire.EncodeFrame(wire.FrameBatches, []task.Batch{batch})
	if err != nil { // our own types always encode
		b.deps.Logger.Error("encoding a batch", "error", err)
		return
	}
	b.observe(o, why)
	fault.At("batcher.before_batch")
	// An error means that the process stops; then the assignments are read again.
	_ = b.outbox.Put(ctx, stream.Unit{
		Messages: []stream.Message{{Topic: stream.Batches, Key: o.device.ID, Value: frame}},
		Events:   b.events(&batch, o.bytes),
		Acked:    func(err error) { b.acked(batch.ID, o.entries, err) },
	})
}

// events returns an event for each task of a batch.
func (b *Batcher) events(batch *task.Batch, bytes int64) []task.Event {
	detail, err := json.Marshal(map[string]any{"reason": batch.Reason, "tasks": len(batch.Assignments), "bytes": bytes})
	if err != nil { // text and numbers: it cannot fail
		detail = nil
	}
	events := make([]task.Event, 0, len(batch.Assignments))
	for i := range batch.Assignments {
		a := &batch.Assignments[i]
		e := task.NewEvent(task.BatchClosed, &a.Task, b.deps.Instance, batch.ClosedAt)
		e.ResourceType, e.ResourceID = "batch", batch.ID
		e.BatchID, e.DeviceID, e.Attempt, e.Detail = batch.ID, batch.Device.ID, a.Attempt, detail
		e.Duration = max(0, batch.ClosedAt.Sub(a.AssignedAt))
		events = append(events, e)
	}
	return events
}

// observe counts a closed batch.
func (b *Batcher) observe(o *openBatch, why Reason) {
	m := b.deps.Metrics.Batcher
	m.Batches.WithLabelValues(string(why)).Inc()
	m.BatchTasks.WithLabelValues(o.key.endpoint).Observe(float64(len(o.entries)))
	m.BatchBytes.Observe(float64(o.bytes))
	m.WaitSeconds.Observe(time.Since(o.since).Seconds())
}

// acked is called when a batch is on all in-sync replicas, or never will be. From here on the
// worker renews the leases.
func (b *Batcher) acked(batchID string, entries []entry, err error) {
	fault.At("batcher.after_batch")
	for i := range entries {
		b.leases.Drop(entries[i].Lease, 1)
		if err != nil {
			entries[i].ack.Refused(err)
			continue
		}
		entries[i].ack.Release()
	}
	if err != nil {
		b.deps.Logger.Error("a batch was not written; its assignments will be read again", "batch_id", batchID, "error", err)
	}
}
