package records

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// Gap writes the event of records that were deleted before the stage had processed them, and returns when all
// in-sync replicas have it, or when ctx ends: then the partition's next owner finds the gap, too. The
// recorder makes a hole of it, and looks for the tasks that were lost with the records.
func (d *DeadLetters) Gap(ctx context.Context, gap *stream.Record) {
	e := task.Event{
		Time: clock.Now().UTC(), Action: task.RecordsMissed, Outcome: task.OutcomeOK, ActorType: task.ActorStage, ActorID: d.Instance,
		ResourceType: "partition", ResourceID: fmt.Sprintf("%s/%d", gap.Topic, gap.Partition),
	}
	e.Detail, _ = json.Marshal(map[string]any{"topic": gap.Topic, "partition": gap.Partition, "first_offset": gap.Offset, "last_offset": gap.Incomplete.Last,
		"why": "Kafka deleted them before the stage " + d.Stage + " had processed them"}) // text and numbers: it cannot fail
	acked := make(chan error, 1)
	err := d.Outbox.Put(ctx, stream.Unit{Events: []task.Event{e}, Acked: func(err error) { acked <- err }})
	if err == nil {
		select {
		case err = <-acked:
		case <-ctx.Done():
		}
	}
	if err != nil && ctx.Err() == nil {
		d.Logger.Error("the event of records that were deleted could not be written", "partition", e.ResourceID, "error", err)
	}
}
