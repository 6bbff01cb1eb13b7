package stream

import (
	"context"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/batchyard/batchyard/test/testenv"
)

// Other clients write compressed batches and transactions. The marker that ends a transaction
// takes an offset without a record. At the end of the log and between records, markers must
// neither stall a reader nor hold up a commit.
func TestRecordsOfOtherClients(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Partitions = 2
	cl := open(t, cfg)
	const rounds, each = 6, 20
	n := 0
	write := func(opts ...kgo.Opt) {
		client, err := kgo.NewClient(append(opts, kgo.SeedBrokers(cfg.Brokers...), kgo.DefaultProduceTopic(cl.full(TasksNormal)))...)
		require.NoError(t, err)
		defer client.Close()
		for range rounds {
			if len(opts) > 1 {
				require.NoError(t, client.BeginTransaction())
			}
			for range each {
				r := &kgo.Record{Key: []byte(strconv.Itoa(n)), Value: []byte(strconv.Itoa(n)), Headers: []kgo.RecordHeader{{Key: "n", Value: nil}}}
				require.NoError(t, client.ProduceSync(until(t), r).FirstErr())
				n++
			}
			if len(opts) > 1 {
				require.NoError(t, client.EndTransaction(until(t), kgo.TryCommit))
			}
		}
	}
	write(kgo.ProducerBatchCompression(kgo.ZstdCompression()))
	write(kgo.ProducerBatchCompression(kgo.Lz4Compression()))
	write(kgo.ProducerBatchCompression(kgo.SnappyCompression()), kgo.TransactionalID(testenv.TopicPrefix()))
	write(kgo.ProducerBatchCompression(kgo.GzipCompression()), kgo.TransactionalID(testenv.TopicPrefix()))
	got := newSeen(n)
	r := consume(t, cl, ConsumerConfig{Group: "g", Topic: TasksNormal}, func(_ context.Context, recs []*Record) {
		for _, rec := range recs {
			got.add(string(rec.Value))
			rec.Done()
		}
	})
	testenv.Receive(t, got.all, "all records")
	// The lag is 0 only when the last marker is passed as well.
	require.Eventually(t, func() bool {
		lag, err := cl.Lag(context.Background(), "g", TasksNormal)
		return err == nil && lag == 0
	}, testenv.Patience, tick)
	r.finish(t)
	scanned := 0
	require.NoError(t, cl.Scan(until(t), TasksNormal, func(*Record) error { scanned++; return nil }))
	require.Equal(t, n, scanned)
}

// New partitions are found and read without a restart.
func TestNewPartitionsAreRead(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Partitions = 1
	cl := open(t, cfg)
	got := newSeen(200)
	r := consume(t, cl, ConsumerConfig{Group: "g", Topic: TasksNormal}, func(_ context.Context, recs []*Record) {
		for _, rec := range recs {
			got.add(string(rec.Value))
			rec.Done()
		}
	})
	require.NoError(t, cl.Produce(until(t), numbered(TasksNormal, 0, 100, 100)...))
	grow(t, cl, TasksNormal, 5)
	require.Eventually(t, func() bool { return len(cl.layout.leaders(TasksNormal)) == 5 }, testenv.Patience, tick)
	require.NoError(t, cl.Produce(until(t), numbered(TasksNormal, 100, 100, 200)...))
	testenv.Receive(t, got.all, "the records of new partitions")
	r.finish(t)
}
