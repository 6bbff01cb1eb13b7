package batcher

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/testenv"
)

// Kafka refuses a batch for good: the same process reads its assignments again until it is taken.
func TestAssignmentsAreReadAgainWhenTheirBatchIsRefused(t *testing.T) {
	broker := testenv.Strict(t)
	y := newYardAt(t, broker.Addrs)
	times := 0
	broker.Refuse(func(topic string, batch []byte) int16 {
		if strings.HasSuffix(topic, stream.Batches) && strings.Contains(string(batch), "refused") && times < 2 {
			times++
			return testenv.InvalidRecord
		}
		return 0
	})
	y.run(New(testConfig(), y.deps).Run)
	y.assign("d1", task.EndpointChat, 0, "refused")
	y.assign("d2", task.EndpointChat, 0, "good")
	y.until("both batches", func() bool { return y.seen["refused"] == 1 && y.seen["good"] == 1 })
	y.committed()
	require.Equal(t, 2, times)
	require.NoError(t, y.client.Stuck())
}
