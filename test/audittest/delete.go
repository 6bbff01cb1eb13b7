package audittest

import (
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/test/testenv"
)

// DeleteRecords deletes all records that a topic has, as retention does. It returns how many offsets were
// deleted of each partition.
func DeleteRecords(t testing.TB, l *stream.Client, topic string) (deleted []int64) {
	t.Helper()
	return DeleteRecordsAt(t, testenv.Get(t).Brokers, l, topic)
}

// DeleteRecordsAt is DeleteRecords at other brokers than those of [testenv.Get].
func DeleteRecordsAt(t testing.TB, brokers []string, l *stream.Client, topic string) (deleted []int64) {
	t.Helper()
	kafka, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	require.NoError(t, err)
	defer kafka.Close()
	all, err := l.Offsets(t.Context(), "", topic)
	require.NoError(t, err)
	req := kmsg.NewPtrDeleteRecordsRequest()
	one := kmsg.NewDeleteRecordsRequestTopic()
	one.Topic = fullName(l, topic)
	for _, s := range all {
		p := kmsg.NewDeleteRecordsRequestTopicPartition()
		p.Partition, p.Offset = int32(s.Partition), s.End
		one.Partitions = append(one.Partitions, p)
		deleted = append(deleted, s.End-s.First)
	}
	req.Topics, req.TimeoutMillis = append(req.Topics, one), 10_000
	for _, shard := range kafka.RequestSharded(t.Context(), req) { // each broker deletes what it leads
		require.NoError(t, shard.Err)
		for _, top := range shard.Resp.(*kmsg.DeleteRecordsResponse).Topics {
			for _, p := range top.Partitions {
				require.NoError(t, kerr.ErrorForCode(p.ErrorCode))
			}
		}
	}
	return deleted
}
