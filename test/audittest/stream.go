package audittest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

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

// Recreate deletes a topic and creates it again, empty.
func Recreate(t testing.TB, l *stream.Client, topic string) {
	t.Helper()
	kafka, err := kgo.NewClient(kgo.SeedBrokers(testenv.Get(t).Brokers...))
	require.NoError(t, err)
	defer kafka.Close()
	name := fullName(l, topic)
	req := kmsg.NewPtrDeleteTopicsRequest()
	one := kmsg.NewDeleteTopicsRequestTopic()
	one.Topic = &name
	req.Topics, req.TopicNames, req.TimeoutMillis = append(req.Topics, one), []string{name}, 10_000
	res, err := req.RequestWith(t.Context(), kafka)
	require.NoError(t, err)
	require.NoError(t, kerr.ErrorForCode(res.Topics[0].ErrorCode))
	require.Eventually(t, func() bool {
		_, err := l.CreateTopics(t.Context())
		return err == nil && l.CheckTopics(t.Context()) == nil
	}, Patience, 50*time.Millisecond)
}
