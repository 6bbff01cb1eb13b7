package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/batchyard/batchyard/task"
)

// The topics, without the prefix.
const (
	TasksHigh   = "tasks.high"
	TasksNormal = "tasks.normal"
	TasksLow    = "tasks.low"
	TasksParked = "tasks.parked"
	Assignments = "assignments"
	Batches     = "batches"
	Results     = "results"
	Events      = "events"
	DLQ         = "dlq"
	Checkpoints = "checkpoints"
)

// Limits of a record batch, max.message.bytes. Edge topics take one task or
// result of up to 4 MiB and room for its headers; frames inside are kept far
// below their limit by whoever writes them; a dead letter is any record of any
// topic with headers added, so it always fits.
const (
	edgeLimit     = 4<<20 + 256<<10
	internalLimit = 16 << 20
	dlqLimit      = internalLimit + 1<<20
)

// Topic describes one topic.
type Topic struct {
	Name      string // without the prefix
	Key       string // what the key of its records is
	Holds     string // what one record is
	MaxBytes  int64  // of a batch of records, max.message.bytes
	retention func(Config) time.Duration
	single    bool // it has one partition, whatever kafka.partitions says
}

func keepEdge(c Config) time.Duration     { return c.Retention }
func keepInternal(c Config) time.Duration { return c.InternalRetention }
func keepDLQ(c Config) time.Duration      { return c.DLQRetention }
func keepForever(Config) time.Duration    { return -time.Millisecond } // as Kafka says it

// Topics is the one list of topics.
var Topics = []Topic{
	{TasksHigh, "task id", "one task, JSON or MessagePack", edgeLimit, keepEdge, false},
	{TasksNormal, "task id", "one task, JSON or MessagePack", edgeLimit, keepEdge, false},
	{TasksLow, "task id", "one task, JSON or MessagePack", edgeLimit, keepEdge, false},
	{TasksParked, "task id", "one task that nothing can run now", edgeLimit, keepEdge, false},
	{Assignments, "device id", "a frame of assignments for one device", internalLimit, keepInternal, false},
	{Batches, "device id", "a frame of batches for one device", internalLimit, keepInternal, false},
	{Results, "task id", "one result, JSON", edgeLimit, keepEdge, false},
	{Events, "bucket of the task id", "a frame of events", internalLimit, keepInternal, false},
	{DLQ, "as the record had it", "a record that cannot be processed, as it came, with headers that say why", dlqLimit, keepDLQ, false},
	{Checkpoints, "key that signed it", "one signed checkpoint of the audit log's chains, JSON", edgeLimit, keepForever, true},
}

// TasksTopic is the topic of a priority band.
func TasksTopic(p task.Priority) string {
	switch p {
	case task.High:
		return TasksHigh
	case task.Low:
		return TasksLow
	}
	return TasksNormal
}

func findTopic(name string) (Topic, error) {
	for _, t := range Topics {
		if t.Name == name {
			return t, nil
		}
	}
	return Topic{}, fmt.Errorf("there is no topic %q", name)
}

// full is the name that the broker knows.
func (l *Log) full(topic string) string { return l.cfg.TopicPrefix + topic }

// CreateTopics creates the topics that are missing and returns their names,
// prefix included. Those that are there stay as they are.
func (l *Log) CreateTopics(ctx context.Context) (created []string, err error) {
	missing, err := l.missingTopics(ctx)
	if err != nil {
		return nil, err
	}
	req := &kafka.CreateTopicsRequest{}
	for _, t := range missing {
		partitions := l.cfg.Partitions
		if t.single {
			partitions = 1
		}
		req.Topics = append(req.Topics, kafka.TopicConfig{
			Topic:             l.full(t.Name),
			NumPartitions:     partitions,
			ReplicationFactor: l.cfg.Replication,
			ConfigEntries: []kafka.ConfigEntry{
				{ConfigName: "cleanup.policy", ConfigValue: "delete"},
				{ConfigName: "retention.ms", ConfigValue: strconv.FormatInt(t.retention(l.cfg).Milliseconds(), 10)},
				{ConfigName: "max.message.bytes", ConfigValue: strconv.FormatInt(t.MaxBytes, 10)},
			},
		})
	}
	if len(req.Topics) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 3*l.cfg.RequestTimeout)
	defer cancel()
	res, err := l.client.CreateTopics(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("creating topics: %w", err)
	}
	for _, t := range req.Topics {
		switch terr := res.Errors[t.Topic]; {
		case terr == nil:
			created = append(created, t.Topic)
		case errors.Is(terr, kafka.TopicAlreadyExists): // somebody else was faster
		case errors.Is(terr, kafka.InvalidReplicationFactor):
			err = errors.Join(err, fmt.Errorf("creating topic %s with %d replicas: %w; kafka.replication must be at most the number of brokers", t.Topic, l.cfg.Replication, terr))
		default:
			err = errors.Join(err, fmt.Errorf("creating topic %s: %w", t.Topic, terr))
		}
	}
	slices.Sort(created)
	if err != nil {
		return created, err
	}
	// The controller has them; brokers, and so those who ask next, follow.
	err = l.patiently(ctx, func(ctx context.Context) error { return l.CheckTopics(ctx) })
	l.layout.refresh(ctx)
	return created, err
}

// CheckTopics returns an error with one line for each missing topic.
func (l *Log) CheckTopics(ctx context.Context) error {
	missing, err := l.missingTopics(ctx)
	if err != nil || len(missing) == 0 {
		return err
	}
	names := make([]string, len(missing))
	for i, t := range missing {
		names[i] = l.full(t.Name)
	}
	last := len(names) - 1
	if last == 0 {
		return fmt.Errorf("topic %s is missing: run `batchyard topics create`", names[0])
	}
	return fmt.Errorf("topics %s and %s are missing: run `batchyard topics create`", strings.Join(names[:last], ", "), names[last])
}

// missingTopics asks the broker itself: what the client remembers may be seconds old.
func (l *Log) missingTopics(ctx context.Context) ([]Topic, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.RequestTimeout)
	defer cancel()
	names, err := l.brokerTopics(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing topics: %w", err)
	}
	var missing []Topic
	for _, t := range Topics {
		if !names[l.full(t.Name)] {
			missing = append(missing, t)
		}
	}
	return missing, nil
}
