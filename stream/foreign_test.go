package stream

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/batchyard/batchyard/stream/internal/fetch"
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
	require.Eventually(t, func() bool { return len(cl.layout.Leaders(TasksNormal)) == 5 }, testenv.Patience, tick)
	require.NoError(t, cl.Produce(until(t), numbered(TasksNormal, 100, 100, 200)...))
	testenv.Receive(t, got.all, "the records of new partitions")
	r.finish(t)
}

// franz returns a client that is not ours and writes to a topic.
func franz(t *testing.T, cl *Client, topic string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(append(opts, kgo.SeedBrokers(cl.cfg.Brokers...), kgo.DefaultProduceTopic(cl.full(topic)))...)
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}

// Records that decompress to more than can be handled do not stop a topic: what identifies them is
// delivered in their place, and those before and after them are complete. That is so for a consumer, which
// commits past them, and for a scan.
func TestCompressedRecordsThatAreTooLarge(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Partitions = 1
	cl := open(t, cfg)
	const size = 18_500_000
	large := make([]byte, size)
	codecs := map[string]kgo.CompressionCodec{"gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression()}
	var want []string
	for name, codec := range codecs {
		client := franz(t, cl, TasksNormal, kgo.ProducerBatchCompression(codec), kgo.ProducerBatchMaxBytes(64<<20), kgo.MaxBufferedBytes(256<<20))
		for _, v := range [][]byte{[]byte("before"), large, large, []byte("after")} {
			r := &kgo.Record{Key: []byte(name), Value: v, Headers: []kgo.RecordHeader{{Key: "h", Value: []byte("x")}}}
			require.NoError(t, client.ProduceSync(until(t), r).FirstErr())
		}
		want = append(want, name+" before", name+" after", name+" large", name+" large")
	}
	slices.Sort(want)
	describe := func(r *Record) string {
		if r.Incomplete == nil {
			return string(r.Key) + " " + string(r.Value)
		}
		if !IsTooLarge(r.Incomplete.Err) || r.Incomplete.Size != size || r.Incomplete.SHA256 != sha256.Sum256(large) || r.Value != nil || r.Header("h") != "x" || r.Incomplete.Last != r.Offset || r.Ours() {
			return fmt.Sprintf("%s %+v", r.Key, r.Incomplete)
		}
		return string(r.Key) + " large"
	}
	var mu sync.Mutex
	var got []string
	all := make(chan struct{})
	r := consume(t, cl, ConsumerConfig{Group: "g", Topic: TasksNormal}, func(_ context.Context, recs []*Record) {
		mu.Lock()
		defer mu.Unlock()
		for _, rec := range recs {
			got = append(got, describe(rec))
			rec.Done()
		}
		if len(got) == len(want) {
			close(all)
		}
	})
	testenv.Receive(t, all, "all records")
	r.finish(t)
	slices.Sort(got)
	require.Equal(t, want, got)
	lag, err := cl.Lag(until(t), "g", TasksNormal)
	require.NoError(t, err)
	require.Zero(t, lag)
	got = nil
	require.NoError(t, cl.Scan(until(t), TasksNormal, func(r *Record) error { got = append(got, describe(r)); return nil }))
	slices.Sort(got)
	require.Equal(t, want, got)
}

// A compressed batch of many records that are large together is decompressed in parts, as the budget of the
// consumer allows.
func TestCompressedBatchesAreReadInParts(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Partitions = 1
	cl := open(t, cfg)
	client := franz(t, cl, TasksNormal, kgo.ProducerBatchCompression(kgo.ZstdCompression()), kgo.ProducerBatchMaxBytes(256<<20), kgo.BrokerMaxWriteBytes(512<<20), kgo.MaxBufferedBytes(512<<20), kgo.ManualFlushing())
	const n, size = 24, 1 << 20
	for i := range n {
		client.Produce(until(t), &kgo.Record{Key: []byte(strconv.Itoa(i)), Value: make([]byte, size)}, nil)
	}
	require.NoError(t, client.Flush(until(t)))
	_, end, err := cl.bounds(until(t), TasksNormal, 0)
	require.NoError(t, err)
	require.EqualValues(t, n, end)
	answer, err := fetch.Do(until(t), cl.transport, cl.addr, fetch.Request{Topic: cl.full(TasksNormal), MaxBytes: 1 << 20, MaxWait: time.Second})
	require.NoError(t, err)
	require.Less(t, len(answer.Records), 1<<20, "it is one batch")

	held := make(chan []*Record, n)
	r := consume(t, cl, ConsumerConfig{Group: "g", Topic: TasksNormal, MaxBytes: 4 << 20}, func(_ context.Context, recs []*Record) { held <- recs })
	seen := 0
	for seen < n {
		bytes := 0
		for _, rec := range testenv.Receive(t, held, "the next records") {
			require.Equal(t, strconv.Itoa(seen), string(rec.Key))
			require.Len(t, rec.Value, size)
			bytes += len(rec.Value)
			seen++
			rec.Done()
		}
		require.LessOrEqual(t, bytes, 6<<20)
	}
	r.finish(t)
}

// Tasks of an aborted transaction are not read, those of a committed one are, and what comes after an open
// one waits until it has ended.
func TestAbortedTransactionsAreNotRead(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Partitions = 1
	cl := open(t, cfg)
	write := func(client *kgo.Client, name string, n int) {
		for i := range n {
			require.NoError(t, client.ProduceSync(until(t), &kgo.Record{Value: []byte(name + strconv.Itoa(i))}).FirstErr())
		}
	}
	one := franz(t, cl, TasksNormal, kgo.TransactionalID(testenv.TopicPrefix()))
	two := franz(t, cl, TasksNormal, kgo.TransactionalID(testenv.TopicPrefix()))
	plain := franz(t, cl, TasksNormal)
	require.NoError(t, one.BeginTransaction())
	require.NoError(t, two.BeginTransaction())
	write(one, "aborted", 20)
	write(two, "committed", 20)
	write(plain, "plain", 1)
	require.NoError(t, one.EndTransaction(until(t), kgo.TryAbort))
	require.NoError(t, two.EndTransaction(until(t), kgo.TryCommit))
	require.NoError(t, one.BeginTransaction())
	write(one, "retried", 20)
	require.NoError(t, one.EndTransaction(until(t), kgo.TryCommit))
	require.NoError(t, two.BeginTransaction())
	write(two, "open", 1)
	write(plain, "late", 1)

	got, late := newSeen(41), make(chan struct{})
	r := consume(t, cl, ConsumerConfig{Group: "g", Topic: TasksNormal}, func(_ context.Context, recs []*Record) {
		for _, rec := range recs {
			if got.add(string(rec.Value)); string(rec.Value) == "late0" {
				close(late)
			}
			rec.Done()
		}
	})
	testenv.Receive(t, got.all, "all records before the open transaction")
	select {
	case <-late:
		require.Fail(t, "a record after an open transaction was read")
	default:
	}
	scan := func() map[string]int {
		scanned := map[string]int{}
		require.NoError(t, cl.Scan(until(t), TasksNormal, func(r *Record) error { scanned[string(r.Value)]++; return nil }))
		return scanned
	}
	require.Len(t, scan(), 41, "a scan ends where the open transaction begins")
	require.NoError(t, two.EndTransaction(until(t), kgo.TryAbort))
	testenv.Receive(t, late, "the record after the transaction")
	require.Eventually(t, func() bool {
		lag, err := cl.Lag(context.Background(), "g", TasksNormal)
		return err == nil && lag == 0
	}, testenv.Patience, tick, "an aborted transaction at the end of the log holds up no commit")
	r.finish(t)
	want := map[string]int{"plain0": 1, "late0": 1}
	for i := range 20 {
		want["committed"+strconv.Itoa(i)], want["retried"+strconv.Itoa(i)] = 1, 1
	}
	require.Equal(t, want, got.count)
	require.Equal(t, want, scan())
}
