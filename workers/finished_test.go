package workers

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// What a worker had finished when it was killed, and not yet committed, is not run again by the next one.
func TestWhatIsFinishedDoesNotRunAgain(t *testing.T) {
	y := newYard(t, fleet.Spec{ID: "d", Slots: 4})
	frame := frameOf(t, y.fleet.Device("d"), y.deps.Credits, chat("done"), chat("open"))
	batches, err := wire.DecodeFrame[task.Batch](wire.FrameBatches, frame)
	require.NoError(t, err)
	for partition := range 3 { // one of them gets the record, as its first
		require.NoError(t, y.deps.Finished.Mark(t.Context(), []store.Mark{
			{Partition: partition, Batch: batches[0].ID, Index: 0}, {Partition: partition, Batch: "another", Index: 1},
		}))
	}
	require.NoError(t, y.client.Produce(t.Context(), stream.Message{Topic: stream.Batches, Key: "d", Value: frame}))
	_, stop := y.workers(testConfig())
	require.Equal(t, task.Success, y.only("open").State)
	y.committed()
	require.Empty(t, y.answers()["done"])
	require.Equal(t, int64(1), y.fleet.Device("d").Stats().Requests)

	y.eventually("a mark is left for the next worker", func() bool {
		for partition := range 3 {
			marks, err := y.deps.Finished.Load(t.Context(), partition, 0)
			require.NoError(t, err)
			if marks.Has(&store.Mark{Partition: partition, Batch: batches[0].ID, Index: 1}) {
				return true
			}
		}
		return false
	})
	stop()
}
