package stream

import (
	"context"
	"strconv"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/batchyard/batchyard/test/testenv"
)

// recreate deletes the topic of normal tasks and creates it with fewer partitions. It writes n records
// to it, as another client does, which is more than were in the old one.
func recreate(t *testing.T, cfg Config, n int) {
	t.Helper()
	cl, err := Open(t.Context(), cfg, nil, nil)
	require.NoError(t, err)
	name := cl.full(TasksNormal)
	res, err := cl.kafka.DeleteTopics(until(t), &kafka.DeleteTopicsRequest{Topics: []string{name}})
	require.NoError(t, err)
	require.NoError(t, res.Errors[name])
	require.NoError(t, cl.Close())
	cfg.Partitions /= 2
	require.Eventually(t, func() bool {
		cl, err = Open(t.Context(), cfg, nil, nil)
		require.NoError(t, err)
		defer func() { require.NoError(t, cl.Close()) }()
		created, err := cl.CreateTopics(t.Context())
		return err == nil && len(created) == 1
	}, testenv.Patience, tick)
	client := franz(t, cl, TasksNormal, kgo.UnknownTopicRetries(-1))
	records := make([]*kgo.Record, n)
	for i := range records {
		records[i] = &kgo.Record{Key: []byte(strconv.Itoa(i)), Value: []byte("new" + strconv.Itoa(i))}
	}
	require.NoError(t, client.ProduceSync(until(t), records...).FirstErr())
}

// countNew handles records, and gathers those of the new topic.
func countNew(got *seen) func(context.Context, []*Record) {
	return func(_ context.Context, recs []*Record) {
		for _, rec := range recs {
			if v := string(rec.Value); v[0] == 'n' {
				got.add(v)
			}
			rec.Done()
		}
	}
}

func requireNoLag(t *testing.T, cl *Client) {
	t.Helper()
	require.Eventually(t, func() bool {
		lag, err := cl.Lag(context.Background(), "g", TasksNormal)
		return err == nil && lag == 0
	}, testenv.Patience, tick)
}

// A topic that is deleted and created again while it is read, and soon is longer than the old one was,
// is read from its start. What is written to it afterwards goes to the partitions that it has.
func TestATopicIsRecreatedWhileItIsRead(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cl := open(t, cfg)
	require.NoError(t, cl.Produce(until(t), numbered(TasksNormal, 0, 200, 200)...))
	const n = 2000
	got := newSeen(n)
	r := consume(t, cl, ConsumerConfig{Group: "g", Topic: TasksNormal}, countNew(got))
	requireNoLag(t, cl)
	recreate(t, cfg, n)
	require.NoError(t, cl.Produce(until(t), numbered(TasksNormal, 0, 100, 100)...), "also for partitions that are gone")
	testenv.Receive(t, got.all, "every record of the new topic")
	requireNoLag(t, cl)
	var counted dto.Metric
	require.NoError(t, cl.metrics.Stream.Recreated.WithLabelValues(cl.GroupID("g", TasksNormal), TasksNormal).Write(&counted))
	require.NotZero(t, counted.GetCounter().GetValue())
	require.Eventually(t, func() bool { return len(cl.layout.Leaders(TasksNormal)) == cfg.Partitions/2 }, testenv.Patience, tick)
	r.finish(t)
}

// commitAs commits an offset in partitions 0 and 1 of the topic of normal tasks, as another client does.
func commitAs(t *testing.T, cl *Client, group string, offset int64, metadata string) {
	t.Helper()
	name := cl.full(TasksNormal)
	res, err := cl.kafka.OffsetCommit(until(t), &kafka.OffsetCommitRequest{GroupID: group, GenerationID: -1, Topics: map[string][]kafka.OffsetCommit{
		name: {{Partition: 0, Offset: offset, Metadata: metadata}, {Partition: 1, Offset: offset, Metadata: metadata}},
	}})
	require.NoError(t, err)
	for _, p := range res.Topics[name] {
		require.NoError(t, p.Error)
	}
}

// Offsets beyond the end of the log, which say nothing of the topic that they belong to: a tool set them, or
// brokers without ids of topics lost the end of the log, or have another topic under the name.
func TestAnOffsetBeyondTheEndIsNotBelieved(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cl := open(t, cfg)
	const n = 200
	records := numbered(TasksNormal, 0, n, n)
	for i := range records {
		records[i].Value = append([]byte("new"), records[i].Value...)
	}
	require.NoError(t, cl.Produce(until(t), records...))
	commitAs(t, cl, cl.GroupID("g", TasksNormal), 100_000, "")
	got := newSeen(n)
	r := consume(t, cl, ConsumerConfig{Group: "g", Topic: TasksNormal}, countNew(got))
	testenv.Receive(t, got.all, "every record")
	requireNoLag(t, cl)
	r.finish(t)
	var counted dto.Metric
	require.NoError(t, cl.metrics.Stream.Recreated.WithLabelValues(cl.GroupID("g", TasksNormal), TasksNormal).Write(&counted))
	require.Equal(t, 2.0, counted.GetCounter().GetValue(), "partitions")
}

// The same while no process runs: the group's offsets belong to the old topic.
func TestATopicIsRecreatedWhileItIsNotRead(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cl := open(t, cfg)
	require.NoError(t, cl.Produce(until(t), numbered(TasksNormal, 0, 200, 200)...))
	const n = 2000
	got := newSeen(n)
	r := consume(t, cl, ConsumerConfig{Group: "g", Topic: TasksNormal}, countNew(got))
	requireNoLag(t, cl)
	r.finish(t)
	offset, metadata, err := cl.membership("g", TasksNormal).Committed(until(t), 0)
	require.NoError(t, err)
	require.Positive(t, offset)
	require.Equal(t, "topic="+cl.layout.ID(TasksNormal)+";", metadata)

	recreate(t, cfg, n)
	again := open(t, cfg)
	// Brokers delete the offsets with the topic. A restored or mirrored cluster still has them.
	group := cl.GroupID("g", TasksNormal)
	commitAs(t, again, group, offset, metadata)
	r = consume(t, again, ConsumerConfig{Group: "g", Topic: TasksNormal}, countNew(got))
	testenv.Receive(t, got.all, "every record of the new topic")
	requireNoLag(t, again)
	r.finish(t)
	for v, times := range got.count {
		require.Equal(t, 1, times, v)
	}
}
