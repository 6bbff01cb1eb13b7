package stream_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
)

// A task's events are in the partition of its result, which every Kafka client derives from the
// task id.
func TestEventsShareAPartitionWithTheResult(t *testing.T) {
	t.Parallel()
	seen := map[int]bool{}
	for i := range 100 {
		r := &task.Result{Tenant: "acme", TaskID: fmt.Sprintf("t-%d", i), State: task.Success}
		m, err := records.ResultMessage(r)
		require.NoError(t, err)
		at := stream.BucketOfEvent(&task.Event{Tenant: r.Tenant, TaskID: r.TaskID, ResourceType: "batch", ResourceID: "b"}, 12)
		require.EqualValues(t, stream.PartitionOf(m.Key, 12), at, r.TaskID)
		seen[at] = true
	}
	require.Len(t, seen, 12)
}
