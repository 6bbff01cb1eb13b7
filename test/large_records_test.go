package test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/test/harness"
)

// Records of other clients that decompress to more than a dead letter may hold stop no topic: what identifies
// them becomes a dead letter, whatever the compression and whichever topic, memory does not follow their
// size, and the tasks behind them run.
func TestCompressedRecordsStopNoTopic(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), nil)
	in.Fleet(t, fleet.Spec{ID: "a", Slots: 8, ServiceTime: time.Millisecond})
	p := in.Process(t, "serve", "router", "batcher", "workers", "audit")
	in.Produce(t, harness.Record(stream.TasksHigh, "", jsonTask("before")))
	in.Await(t, []string{"before"}, harness.Patience)
	was := rss(t, p.Pid())

	const size = 18_500_000
	value := append(append([]byte(`{"task_id":"bomb","model":"m","input":{"prompt":"`), bytes.Repeat([]byte("x"), size)...), `"}}`...)
	file := filepath.Join(in.Dir, "bomb.json")
	require.NoError(t, os.WriteFile(file, value, 0o600))
	topics := []string{stream.TasksHigh, stream.TasksParked, stream.Assignments, stream.Batches, stream.Results, stream.Events}
	n := 0
	for name, codec := range map[string]kgo.CompressionCodec{"gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression()} {
		client := compressing(t, in, codec)
		for i, topic := range topics {
			r := harness.Record(in.Topic(topic), name, value, "mine", "kept")
			r.Partition = int32(i % harness.Partitions) //nolint:gosec // small
			require.NoError(t, client.ProduceSync(t.Context(), r).FirstErr())
			n++
		}
	}
	in.Kcat(t, nil, "-P", "-X", "message.max.bytes=100000000", "-z", "zstd", "-t", in.Topic(stream.TasksHigh), "-k", "kcat", "-H", "mine=kept", file)
	// Much more behind a few kilobytes.
	require.NoError(t, compressing(t, in, kgo.ZstdCompression()).ProduceSync(t.Context(), harness.Record(in.Topic(stream.TasksHigh), "huge", make([]byte, 400<<20))).FirstErr())
	n += 2

	var ids []string
	var tasks []*kgo.Record
	for i := range 4 * harness.Partitions { // behind them, in every partition
		ids = append(ids, fmt.Sprintf("after-%d", i))
		tasks = append(tasks, harness.Record(stream.TasksHigh, ids[i], jsonTask(ids[i])))
	}
	in.Produce(t, tasks...)
	in.Await(t, ids, harness.Patience)
	letters := in.Consume(t, stream.DLQ).Until(t, "all are dead letters", func(all []*kgo.Record) bool { return len(all) == n })
	sum := sha256.Sum256(value)
	seen := map[string]int{}
	for _, l := range letters {
		require.Equal(t, records.ReasonTooLarge, harness.Header(l, records.HeaderDLQReason), harness.Header(l, records.HeaderDLQError))
		require.Nil(t, l.Value)
		if string(l.Key) == "huge" {
			require.Equal(t, strconv.Itoa(400<<20), harness.Header(l, records.HeaderDLQSize))
			continue
		}
		require.Equal(t, "kept", harness.Header(l, "mine"))
		require.Equal(t, strconv.Itoa(len(value)), harness.Header(l, records.HeaderDLQSize))
		require.Equal(t, hex.EncodeToString(sum[:]), harness.Header(l, records.HeaderDLQSHA256))
		seen[harness.Header(l, records.HeaderDLQTopic)]++
	}
	seen[stream.TasksHigh]-- // by kcat
	for _, topic := range topics {
		require.Equal(t, 4, seen[topic], topic)
	}
	now := rss(t, p.Pid())
	t.Logf("resident memory: %d MiB before, %d MiB after", was>>20, now>>20)
	require.Less(t, now-was, int64(200<<20), "memory does not follow the decompressed size")

	// Nothing can be replayed of them, and that is said.
	replay := in.Run(t, "dlq", "replay", "--all")
	require.NotZero(t, replay.Code)
	require.Contains(t, replay.Stderr, "only its size and hash were kept")
	in.AwaitRecorded(t)
	require.Equal(t, n, harness.SQL[int](t, in, "SELECT count(*) FROM audit_log WHERE action = 'record.dead_lettered' AND detail->>'reason' = 'too_large'"))
}

// compressing returns a client that compresses large records to less than the broker's limit.
func compressing(t *testing.T, in *harness.Installation, codec kgo.CompressionCodec) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(in.Services.Brokers...), kgo.ProducerBatchCompression(codec), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchMaxBytes(512<<20), kgo.BrokerMaxWriteBytes(1<<30), kgo.MaxBufferedBytes(1<<30))
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}
