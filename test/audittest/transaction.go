package audittest

import (
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/test/testenv"
)

// fullName is the name of a topic with the prefix of the installation.
func fullName(l *stream.Client, topic string) string {
	return strings.TrimSuffix(l.GroupID("", topic), "batchyard.."+topic) + topic
}

// OpenTransaction writes a record to each partition of a topic in a transaction of another client, which stays
// open until abort is called, or the test ends.
func OpenTransaction(t testing.TB, l *stream.Client, topic string, value []byte) (abort func()) {
	t.Helper()
	kafka, err := kgo.NewClient(kgo.SeedBrokers(testenv.Get(t).Brokers...), kgo.TransactionalID(testenv.TopicPrefix()), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	require.NoError(t, err)
	t.Cleanup(kafka.Close)
	require.NoError(t, kafka.BeginTransaction())
	all, err := l.Offsets(t.Context(), "", topic)
	require.NoError(t, err)
	for _, s := range all {
		r := &kgo.Record{Topic: fullName(l, topic), Partition: int32(s.Partition), Value: value}
		require.NoError(t, kafka.ProduceSync(t.Context(), r).FirstErr())
	}
	return sync.OnceFunc(func() { require.NoError(t, kafka.EndTransaction(t.Context(), kgo.TryAbort)) })
}
