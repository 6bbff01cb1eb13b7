package stream

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/batchyard/batchyard/stream/internal/settings"
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

// Limits of a record batch (max.message.bytes). Topics that users write or read take one task
// or result of up to 4 MiB plus headers. Writers of internal frames keep far below their limit.
// A dead letter is a record of any topic with headers added, so its limit is the highest.
const (
	edgeLimit     = 4<<20 + 256<<10
	internalLimit = 16 << 20
	dlqLimit      = internalLimit + 1<<20
)

// Topic describes one topic.
type Topic struct {
	Name      string // without the prefix
	Key       string // what its records are keyed by, for people
	Holds     string // what one record is, for people
	MaxBytes  int64  // of a record batch: max.message.bytes
	retention func(Config) time.Duration
	single    bool // one partition, regardless of kafka.partitions
}

// Internal topics live as long as those of tasks: a task that has become an assignment or a batch is
// nowhere else, and its stage may be absent for as long as any other.
func keepTasks(c Config) time.Duration  { return c.Retention }
func keepParked(c Config) time.Duration { return c.ParkedRetention }
func keepDLQ(c Config) time.Duration    { return c.DLQRetention }
func keepForever(Config) time.Duration  { return -time.Millisecond } // retention.ms=-1

// Topics lists all topics.
var Topics = []Topic{
	{TasksHigh, "task id", "one task, JSON or MessagePack", edgeLimit, keepTasks, false},
	{TasksNormal, "task id", "one task, JSON or MessagePack", edgeLimit, keepTasks, false},
	{TasksLow, "task id", "one task, JSON or MessagePack", edgeLimit, keepTasks, false},
	{TasksParked, "task id", "one task that waits for longer than its first record may be kept", edgeLimit, keepParked, false},
	{Assignments, "device id", "a frame of assignments for one device", internalLimit, keepTasks, false},
	{Batches, "device id", "a frame of batches for one device", internalLimit, keepTasks, false},
	{Results, "task id", "one result, JSON", edgeLimit, keepTasks, false},
	{Events, "bucket of the task id", "a frame of events", internalLimit, keepTasks, false},
	{DLQ, "the record's own key", "a record that cannot be processed, unchanged, with headers that say why", dlqLimit, keepDLQ, false},
	{Checkpoints, "signing key", "one signed checkpoint of the audit log's chains, JSON", edgeLimit, keepForever, true},
}

// TasksTopic returns the topic for tasks of a priority.
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
	return Topic{}, fmt.Errorf("unknown topic %q", name)
}

// full returns the topic's name on the broker, prefix included.
func (cl *Client) full(topic string) string { return cl.cfg.TopicPrefix + topic }

// CreateTopics creates the topics that are missing and returns their names, prefix included.
// Existing topics are not changed.
func (cl *Client) CreateTopics(ctx context.Context) (created []string, err error) {
	missing, err := cl.missingTopics(ctx)
	if err != nil {
		return nil, err
	}
	if len(missing) == 0 {
		return nil, nil
	}
	topics := make([]settings.New, len(missing))
	for i, t := range missing {
		topics[i] = settings.New{Name: cl.full(t.Name), Partitions: cl.cfg.Partitions, Retention: t.retention(cl.cfg), MaxBytes: t.MaxBytes}
		if t.single {
			topics[i].Partitions = 1
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 3*cl.cfg.RequestTimeout)
	defer cancel()
	if created, err = settings.Create(ctx, cl.kafka, topics, cl.cfg.Replication); err != nil {
		return created, err
	}
	// The controller has created them; wait until the brokers know.
	err = cl.withRetries(ctx, func(ctx context.Context) error { return cl.CheckTopics(ctx) })
	cl.layout.Refresh(ctx)
	return created, err
}

// CheckTopics returns an error with one line for each missing topic.
func (cl *Client) CheckTopics(ctx context.Context) error {
	missing, err := cl.missingTopics(ctx)
	if err != nil || len(missing) == 0 {
		return err
	}
	names := make([]string, len(missing))
	for i, t := range missing {
		names[i] = cl.full(t.Name)
	}
	last := len(names) - 1
	if last == 0 {
		return fmt.Errorf("topic %s is missing: run `batchyard topics create`", names[0])
	}
	return fmt.Errorf("topics %s and %s are missing: run `batchyard topics create`", strings.Join(names[:last], ", "), names[last])
}

// missingTopics asks a broker, because the client's metadata may be seconds old.
func (cl *Client) missingTopics(ctx context.Context) ([]Topic, error) {
	ctx, cancel := context.WithTimeout(ctx, cl.cfg.RequestTimeout)
	defer cancel()
	names, err := cl.brokerTopics(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing topics: %w", err)
	}
	var missing []Topic
	for _, t := range Topics {
		if !names[cl.full(t.Name)] {
			missing = append(missing, t)
		}
	}
	return missing, nil
}

// DeleteTopics deletes all topics and the records in them, for tests and benchmarks. A topic that does not
// exist is not an error. The groups' offsets stay until the broker expires them.
func (cl *Client) DeleteTopics(ctx context.Context) error {
	names := make([]string, len(Topics))
	for i, t := range Topics {
		names[i] = cl.full(t.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, 3*cl.cfg.RequestTimeout)
	defer cancel()
	return settings.Delete(ctx, cl.kafka, names)
}
