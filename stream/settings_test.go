package stream

import (
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/stream/internal/settings"
	"github.com/batchyard/batchyard/test/testenv"
)

// What is accepted must not depend on a topic that keeps its records for less long than tasks are kept.
func TestInternalTopicsLiveAsLongAsTasks(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Retention, cfg.ParkedRetention = 200*time.Hour, 300*time.Hour
	cl := open(t, cfg)
	topics, err := cl.Settings(until(t))
	require.NoError(t, err)
	require.Len(t, topics, len(Topics))
	for _, topic := range Topics {
		s := topics[topic.Name]
		require.True(t, settings.Keeps(s.Retention, cfg.Retention), "%s: %s", topic.Name, s.Retention)
		require.Negative(t, s.Bytes, topic.Name)
		require.False(t, s.Compacted, topic.Name)
		require.True(t, s.BrokerTime, "%s: a writer's clock must not decide when records are deleted", topic.Name)
	}
	require.Equal(t, Forever, topics[Checkpoints].Retention)
	require.Equal(t, cfg.ParkedRetention, topics[TasksParked].Retention)
	require.Equal(t, cfg.Retention, KeptFor(topics))
	require.NoError(t, cl.CheckSettings(topics))

	set(t, cl, Batches, settings.Retention, "86400000")
	set(t, cl, Results, settings.RetentionBytes, "1000000")
	set(t, cl, TasksLow, settings.Retention, "360000000") // others may keep longer
	set(t, cl, TasksParked, settings.Retention, "-1")
	require.Eventually(t, func() bool {
		topics, err = cl.Settings(until(t))
		return err == nil && topics[TasksLow].Retention == 100*time.Hour && topics[TasksParked].Retention == Forever
	}, testenv.Patience, tick)
	require.Equal(t, 100*time.Hour, KeptFor(topics))
	require.EqualError(t, cl.CheckSettings(topics), "topic "+cl.full(Batches)+" keeps records for 24h0m0s, which is shorter than tasks are kept: set its retention.ms to 360000000\n"+
		"topic "+cl.full(Results)+" keeps only 1000000 bytes of each partition: set its retention.bytes to -1")
}

// set changes a setting of a topic.
func set(t *testing.T, cl *Client, topic, name, value string) {
	t.Helper()
	res, err := cl.kafka.IncrementalAlterConfigs(until(t), &kafka.IncrementalAlterConfigsRequest{Resources: []kafka.IncrementalAlterConfigsRequestResource{{
		ResourceType: kafka.ResourceTypeTopic, ResourceName: cl.full(topic),
		Configs: []kafka.IncrementalAlterConfigsRequestConfig{{Name: name, Value: value, ConfigOperation: kafka.ConfigOperationSet}},
	}}})
	require.NoError(t, err)
	require.NoError(t, res.Resources[0].Error)
}

func TestParkedTasksAndDeadLettersLiveAtLeastAsLongAsTasks(t *testing.T) {
	t.Parallel()
	cfg := Config{Retention: 1000 * time.Hour}.withDefaults()
	require.ErrorContains(t, cfg.Check(), "kafka.parked_retention")
	cfg.ParkedRetention = cfg.Retention
	require.ErrorContains(t, cfg.Check(), "kafka.dlq_retention")
	cfg.DLQRetention = cfg.Retention
	require.NoError(t, cfg.Check())
}
