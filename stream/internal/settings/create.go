package settings

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"
)

// New is a topic to be created.
type New struct {
	Name       string // in full
	Partitions int
	Retention  time.Duration // -1 ms: forever
	MaxBytes   int64         // of a record batch
}

// Create creates topics, and returns the names of those that did not exist.
func Create(ctx context.Context, client *kafka.Client, topics []New, replication int) (created []string, err error) {
	req := &kafka.CreateTopicsRequest{}
	for _, t := range topics {
		req.Topics = append(req.Topics, kafka.TopicConfig{
			Topic: t.Name, NumPartitions: t.Partitions, ReplicationFactor: replication,
			ConfigEntries: []kafka.ConfigEntry{
				{ConfigName: Cleanup, ConfigValue: "delete"},
				{ConfigName: Retention, ConfigValue: strconv.FormatInt(t.Retention.Milliseconds(), 10)},
				{ConfigName: RetentionBytes, ConfigValue: "-1"},
				{ConfigName: Timestamps, ConfigValue: LogAppendTime},
				{ConfigName: "max.message.bytes", ConfigValue: strconv.FormatInt(t.MaxBytes, 10)},
			},
		})
	}
	res, err := client.CreateTopics(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("creating topics: %w", err)
	}
	for _, t := range req.Topics {
		switch terr := res.Errors[t.Topic]; {
		case terr == nil:
			created = append(created, t.Topic)
		case errors.Is(terr, kafka.TopicAlreadyExists): // another process was faster
		case errors.Is(terr, kafka.InvalidReplicationFactor):
			err = errors.Join(err, fmt.Errorf("creating topic %s with %d replicas: %w; kafka.replication must be at most the number of brokers", t.Topic, replication, terr))
		default:
			err = errors.Join(err, fmt.Errorf("creating topic %s: %w", t.Topic, terr))
		}
	}
	slices.Sort(created)
	return created, err
}

// Delete deletes topics, which need not exist.
func Delete(ctx context.Context, client *kafka.Client, names []string) error {
	res, err := client.DeleteTopics(ctx, &kafka.DeleteTopicsRequest{Topics: names})
	if err != nil {
		return fmt.Errorf("deleting topics: %w", err)
	}
	for topic, terr := range res.Errors {
		if terr != nil && !errors.Is(terr, kafka.UnknownTopicOrPartition) {
			err = errors.Join(err, fmt.Errorf("deleting topic %s: %w", topic, terr))
		}
	}
	return err
}
