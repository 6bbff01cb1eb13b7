package audittest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/test/testenv"
)

// OpenLog opens the log with topics of this test's own, which have the given number of partitions.
func OpenLog(t testing.TB, partitions int) *stream.Client {
	t.Helper()
	env := testenv.Get(t)
	l, err := stream.Open(t.Context(), stream.Config{Brokers: env.Brokers, TopicPrefix: env.Prefix(t), Partitions: partitions,
		HeartbeatInterval: 100 * time.Millisecond, SessionTimeout: 6 * time.Second, CommitInterval: 20 * time.Millisecond}, Quiet(), nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	_, err = l.CreateTopics(t.Context())
	require.NoError(t, err)
	return l
}
