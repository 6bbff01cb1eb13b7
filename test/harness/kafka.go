package harness

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Produce writes records with a plain Kafka client and returns when all in-sync
// replicas have them. Topics are named without the prefix.
func (in *Installation) Produce(t testing.TB, records ...*kgo.Record) {
	t.Helper()
	for _, r := range records {
		if !strings.HasPrefix(r.Topic, in.TopicPrefix) {
			r.Topic = in.Topic(r.Topic)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	require.NoError(t, in.kafka.ProduceSync(ctx, records...).FirstErr())
}

// Record returns a record; headers alternate between names and values.
func Record(topic, key string, value []byte, headers ...string) *kgo.Record {
	r := &kgo.Record{Topic: topic, Value: value}
	if key != "" {
		r.Key = []byte(key)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: headers[i], Value: []byte(headers[i+1])})
	}
	return r
}

// Header returns the value of a record's header, or "".
func Header(r *kgo.Record, name string) string {
	for _, h := range r.Headers {
		if h.Key == name {
			return string(h.Value)
		}
	}
	return ""
}

// Consumer reads a topic from its start with a plain Kafka client, outside any group.
type Consumer struct {
	client *kgo.Client
	Read   []*kgo.Record // all records so far
}

// Consume starts reading a topic, named without the prefix.
func (in *Installation) Consume(t testing.TB, topic string) *Consumer {
	t.Helper()
	c, err := kgo.NewClient(kgo.SeedBrokers(in.Services.Brokers...), kgo.ConsumeTopics(in.Topic(topic)),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(250*time.Millisecond),
		kgo.FetchMaxBytes(32<<20), kgo.BrokerMaxReadBytes(64<<20), kgo.FetchMaxPartitionBytes(16<<20))
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return &Consumer{client: c}
}

// Until reads until a condition holds; it checks after each fetch.
func (c *Consumer) Until(t testing.TB, what string, holds func(all []*kgo.Record) bool) []*kgo.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	for !holds(c.Read) {
		fetches := c.client.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("after %s and %d records, this is still not true: %s", Patience, len(c.Read), what)
		}
		c.Read = append(c.Read, fetches.Records()...)
	}
	return c.Read
}

// All reads everything that a topic holds now.
func (in *Installation) All(t testing.TB, topic string) []*kgo.Record {
	t.Helper()
	ends := in.Ends(t, topic)
	c := in.Consume(t, topic)
	defer c.client.Close()
	next := make([]int64, len(ends))
	seen := 0
	return c.Until(t, "all of "+topic+" is read", func(all []*kgo.Record) bool {
		for ; seen < len(all); seen++ {
			next[all[seen].Partition] = all[seen].Offset + 1
		}
		for p, end := range ends {
			if next[p] < end {
				return false
			}
		}
		return true
	})
}

// Ends returns the end offset of each partition of a topic.
func (in *Installation) Ends(t testing.TB, topic string) []int64 {
	t.Helper()
	ends, err := in.ends(t.Context(), topic)
	require.NoError(t, err)
	return ends
}

func (in *Installation) ends(ctx context.Context, topic string) ([]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	name := in.Topic(topic)
	meta := kmsg.NewPtrMetadataRequest()
	one := kmsg.NewMetadataRequestTopic()
	one.Topic = &name
	meta.Topics = append(meta.Topics, one)
	found, err := meta.RequestWith(ctx, in.kafka)
	if err != nil {
		return nil, err
	}
	if err := kerr.ErrorForCode(found.Topics[0].ErrorCode); err != nil {
		return nil, err
	}
	list := kmsg.NewPtrListOffsetsRequest()
	topics := kmsg.NewListOffsetsRequestTopic()
	topics.Topic = name
	for p := range found.Topics[0].Partitions {
		part := kmsg.NewListOffsetsRequestTopicPartition()
		part.Partition, part.Timestamp = int32(p), -1 //nolint:gosec // few partitions
		topics.Partitions = append(topics.Partitions, part)
	}
	list.Topics = append(list.Topics, topics)
	res, err := list.RequestWith(ctx, in.kafka)
	if err != nil {
		return nil, err
	}
	ends := make([]int64, len(topics.Partitions))
	for _, p := range res.Topics[0].Partitions {
		if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
			return nil, err
		}
		ends[p.Partition] = p.Offset
	}
	return ends, nil
}

// KeepClientTimes lets records of a topic keep the times that their senders give them, as in topics that
// operators created without the setting of ours.
func (in *Installation) KeepClientTimes(t testing.TB, topic string) {
	t.Helper()
	kind, value := "message.timestamp.type", "CreateTime"
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	one := kmsg.NewIncrementalAlterConfigsRequestResource()
	one.ResourceType, one.ResourceName = kmsg.ConfigResourceTypeTopic, in.Topic(topic)
	set := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
	set.Name, set.Value = kind, &value
	one.Configs = append(one.Configs, set)
	req.Resources = append(req.Resources, one)
	res, err := req.RequestWith(t.Context(), in.kafka)
	require.NoError(t, err)
	require.NoError(t, kerr.ErrorForCode(res.Resources[0].ErrorCode))
}

// DropTopic deletes a topic.
func (in *Installation) DropTopic(t testing.TB, topic string) {
	t.Helper()
	name := in.Topic(topic)
	req := kmsg.NewPtrDeleteTopicsRequest()
	one := kmsg.NewDeleteTopicsRequestTopic()
	one.Topic = &name
	req.Topics, req.TopicNames, req.TimeoutMillis = append(req.Topics, one), append(req.TopicNames, name), 30_000
	res, err := req.RequestWith(t.Context(), in.kafka)
	require.NoError(t, err)
	require.NoError(t, kerr.ErrorForCode(res.Topics[0].ErrorCode))
	Eventually(t, Patience, "the topic is gone", func() bool {
		_, err := in.ends(t.Context(), topic)
		return err != nil
	})
}

// Kcat runs kcat, which is based on librdkafka and so shares no code with Batchyard or
// these tests. If kcat is missing, the test is skipped, or fails in CI.
func (in *Installation) Kcat(t testing.TB, stdin []byte, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("kcat")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("kcat is missing: run scripts/install-test-deps")
		}
		t.Skip("kcat is missing: run scripts/install-test-deps")
	}
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	full := slices.Concat([]string{"-b", strings.Join(in.Services.Brokers, ",")}, args)
	cmd := exec.CommandContext(ctx, path, full...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &errs
	require.NoErrorf(t, cmd.Run(), "kcat %s: %s", strings.Join(args, " "), errs.String())
	return out.String()
}
