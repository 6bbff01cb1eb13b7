package app

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/test/testenv"
)

// Routers go by the retention that each topic has in Kafka now, not by the configured one.
func TestTheRetentionIsWhatKafkaHas(t *testing.T) {
	t.Parallel()
	brokers := testenv.Strict(t).Addrs
	cfg := Config{Kafka: stream.Config{Brokers: brokers, Partitions: 1, Retention: 5 * time.Hour, ParkedRetention: 7 * time.Hour}}
	cl, err := stream.Open(t.Context(), cfg.Kafka, testenv.Logger(t), nil)
	require.NoError(t, err)
	defer func() { require.NoError(t, cl.Close()) }()
	w := newTopicWatch(&App{cfg: cfg, Log: cl, logger: testenv.Logger(t), metrics: metrics.New(nil)})
	w.check(t.Context()) // there are no topics yet
	require.Equal(t, 5*time.Hour, w.retention(stream.TasksHigh))
	require.Equal(t, 5*time.Hour, w.retention(stream.TasksParked), "the shorter one, until it is known")

	_, err = cl.CreateTopics(t.Context())
	require.NoError(t, err)
	w.check(t.Context())
	require.Equal(t, 5*time.Hour, w.retention(stream.TasksHigh))
	require.Equal(t, 7*time.Hour, w.retention(stream.TasksParked))
	require.Zero(t, w.retention(stream.Checkpoints), "forever")
	require.Empty(t, w.note())

	kafka, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	require.NoError(t, err)
	defer kafka.Close()
	for value, want := range map[string]time.Duration{"90000": 90 * time.Second, "-1": 0} {
		req := kmsg.NewPtrIncrementalAlterConfigsRequest()
		topic, setting := kmsg.NewIncrementalAlterConfigsRequestResource(), kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		setting.Name, setting.Value = "retention.ms", &value
		topic.ResourceType, topic.ResourceName = kmsg.ConfigResourceTypeTopic, stream.TasksHigh
		topic.Configs = append(topic.Configs, setting)
		req.Resources = append(req.Resources, topic)
		res, err := req.RequestWith(t.Context(), kafka)
		require.NoError(t, err)
		require.NoError(t, kerr.ErrorForCode(res.Resources[0].ErrorCode))
		require.Eventually(t, func() bool {
			w.check(t.Context())
			return w.retention(stream.TasksHigh) == want
		}, testenv.Patience, 20*time.Millisecond, value)
	}
}
