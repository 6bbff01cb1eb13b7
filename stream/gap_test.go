package stream

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/batchyard/batchyard/test/testenv"
)

// deleteRecords deletes the records of a topic of normal tasks below an offset, in each partition.
func deleteRecords(t *testing.T, cl *Client, below int64) {
	t.Helper()
	client := franz(t, cl, TasksNormal)
	req := kmsg.NewPtrDeleteRecordsRequest()
	one := kmsg.NewDeleteRecordsRequestTopic()
	one.Topic = cl.full(TasksNormal)
	for id := range cl.cfg.Partitions {
		p := kmsg.NewDeleteRecordsRequestTopicPartition()
		p.Partition, p.Offset = int32(id), below
		one.Partitions = append(one.Partitions, p)
	}
	req.Topics, req.TimeoutMillis = append(req.Topics, one), 10_000
	for _, shard := range client.RequestSharded(until(t), req) {
		require.NoError(t, shard.Err)
		for _, top := range shard.Resp.(*kmsg.DeleteRecordsResponse).Topics {
			for _, p := range top.Partitions {
				require.NoError(t, kerr.ErrorForCode(p.ErrorCode))
			}
		}
	}
}

// Records are deleted before they were read: of partitions that have others, and of one that has none
// left. The stage is told in the order of the log, also if nothing is written afterwards, and once.
func TestAGapIsReportedBetweenWhatIsAroundIt(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Partitions = 1
	cl := open(t, cfg)
	require.NoError(t, cl.Produce(until(t), numbered(TasksNormal, 0, 30, 10)...))
	read, gaps := make(chan int64, 100), make(chan *Record, 10)
	var order []string
	group := ConsumerConfig{Group: "g", Topic: TasksNormal, OnGap: func(_ context.Context, gap *Record) {
		order = append(order, "gap")
		require.False(t, gap.Lost())
		gaps <- gap
	}}
	take := func(_ context.Context, recs []*Record) {
		for _, rec := range recs {
			order = append(order, "record")
			rec.Done()
			read <- rec.Offset
		}
	}
	r := consume(t, cl, group, take)
	for range 30 {
		testenv.Receive(t, read, "a record")
	}
	r.finish(t)
	require.NoError(t, cl.Produce(until(t), numbered(TasksNormal, 30, 20, 10)...))
	deleteRecords(t, cl, 50) // all of them

	r = consume(t, cl, group, take)
	gap := testenv.Receive(t, gaps, "the gap")
	require.Equal(t, TasksNormal+"/0@30", gap.Position())
	require.EqualValues(t, 49, gap.Incomplete.Last)
	require.NoError(t, cl.Produce(until(t), numbered(TasksNormal, 50, 10, 10)...))
	for want := int64(50); want < 60; want++ {
		require.Equal(t, want, testenv.Receive(t, read, "a record"))
	}
	r.finish(t)
	require.Empty(t, gaps, "once")
	require.Equal(t, "gap", order[30])
	require.True(t, gap.Lost())

	r = consume(t, cl, group, take)
	require.NoError(t, cl.Produce(until(t), numbered(TasksNormal, 60, 1, 10)...))
	require.EqualValues(t, 60, testenv.Receive(t, read, "a record"))
	r.finish(t)
	require.Empty(t, gaps)
}
