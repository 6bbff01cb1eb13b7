package records

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/stream"
)

func TestDeadLetter(t *testing.T) {
	r := &stream.Record{Topic: stream.TasksLow, Partition: 3, Offset: 9, Key: []byte("k"), Value: []byte{0xff},
		Headers: []stream.Header{{Key: "a", Value: []byte("b")}, {Key: HeaderDLQReason, Value: []byte("old")}}}
	long := strings.Repeat("ü", maxDLQError)
	m := DeadLetter(r, "router", "garbage", errors.New(long))
	require.Equal(t, stream.DLQ, m.Topic)
	require.Equal(t, "k", m.Key)
	require.Equal(t, r.Value, m.Value)
	got := map[string]string{}
	for _, h := range m.Headers {
		require.NotContains(t, got, h.Key)
		got[h.Key] = string(h.Value)
	}
	require.Equal(t, "b", got["a"])
	require.Equal(t, "garbage", got[HeaderDLQReason])
	require.Equal(t, "router", got[HeaderDLQStage])
	require.Equal(t, stream.TasksLow, got[HeaderDLQTopic])
	require.Equal(t, "3", got[HeaderDLQPartition])
	require.Equal(t, "9", got[HeaderDLQOffset])
	require.Equal(t, long[:maxDLQError], got[HeaderDLQError])
	require.NotEmpty(t, got[HeaderDLQTime])
	require.Equal(t, "tasks.low/3@9", r.Position())
}
