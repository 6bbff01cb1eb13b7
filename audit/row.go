package audit

import (
	"strconv"
	"time"
)

// HashedColumns are the columns of audit_log that a row's hash covers, besides prev_hash, in the
// order in which they are hashed. A new column goes to the end, and changes the text of [Genesis],
// so that old and new chains cannot be confused.
const HashedColumns = `time, ingested_at, tenant, actor_type, actor_id, source_addr, user_agent, action,
	resource_type, resource_id, outcome, error_class, task_id, job_id, batch_id, device_id, attempt,
	trace_id, duration_ms, model, input_tokens, output_tokens, input_sha256, input_bytes, output_sha256,
	output_bytes, detail, row_digests, src_topic, src_partition, src_offset, src_index, chain_seq`

// RowColumns are all columns of audit_log, in the order in which the recorder writes them and
// package verify reads them.
const RowColumns = HashedColumns + `, prev_hash, row_hash`

// RowWidth is the number of columns in [RowColumns].
const RowWidth = 35

// Indexes into [RowColumns].
const (
	ColTime         = 0
	ColIngested     = 1
	ColTenant       = 2
	ColActor        = 4
	ColAction       = 7
	ColResource     = 9
	ColOutcome      = 10
	ColErrorClass   = 11
	ColTask         = 12
	ColJob          = 13
	ColDevice       = 15
	ColOutputSHA256 = 24
	ColDetail       = 26
	ColDigests      = 27
	ColTopic        = 28
	ColPartition    = 29
	ColOffset       = 30
	ColIndex        = 31
	ColSeq          = 32
	ColPrev         = 33
	ColHash         = 34
)

// Day is the span of one partition of audit_log; days are those of UTC.
const Day = 24 * time.Hour

// DayOf returns the beginning of the UTC day that t is in.
func DayOf(t time.Time) time.Time { return t.UTC().Truncate(Day) }

// PartitionLayout is the name of a day's partition, as a layout of package time.
const PartitionLayout = "audit_log_20060102"

// DroppedDayResource is the resource_id of the event partition.dropped for a day (2006-01-02).
func DroppedDayResource(day string) string { return "audit_log " + day }

// TopicPartition is a partition of a topic in Kafka. Each has a chain of its own.
type TopicPartition struct {
	Topic     string
	Partition int32
}

// PartitionOf returns a partition of a topic.
func PartitionOf(topic string, partition int) TopicPartition {
	return TopicPartition{topic, int32(partition)} //nolint:gosec // Kafka counts partitions in 32 bits
}

// String returns the topic and the partition, as in "events/0".
func (p TopicPartition) String() string { return p.Topic + "/" + strconv.Itoa(int(p.Partition)) }

// Position is where in a partition the source of a row is: the record, and the index within it.
// A record holds several events, or one result.
type Position struct {
	Offset int64
	Index  int32
}

// Before reports whether the source at p was written before the one at q.
func (p Position) Before(q Position) bool {
	return p.Offset < q.Offset || p.Offset == q.Offset && p.Index < q.Index
}

// Source is what a row was made from. It identifies the row.
type Source struct {
	TopicPartition
	Position
}

// At returns the source at a position of the partition.
func (p TopicPartition) At(pos Position) Source { return Source{p, pos} }

// String returns the source as the command line shows it, as in "events/0@17#2".
func (s Source) String() string {
	return s.TopicPartition.String() + "@" + strconv.FormatInt(s.Offset, 10) + "#" + strconv.Itoa(int(s.Index))
}
