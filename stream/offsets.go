package stream

import (
	"context"
	"errors"

	"github.com/segmentio/kafka-go"

	"github.com/batchyard/batchyard/stream/internal/fetch"
	"github.com/batchyard/batchyard/stream/internal/offsets"
)

// PartitionOffsets is what a partition holds and what of it a group has finished, at one moment.
type PartitionOffsets = offsets.Partition

// OpenTransactionError means that records stand behind an open transaction, so no consumer can read them yet.
type OpenTransactionError = offsets.OpenTransactionError

// CheckReadable returns an [OpenTransactionError] if not all records of a topic can be read. Call it before
// concluding anything from a missing record.
func CheckReadable(topic string, all []PartitionOffsets) error {
	return offsets.CheckReadable(topic, all)
}

// Offsets returns for each partition of a topic what it holds and what of it a group has
// finished. It asks for the group's offsets first and for the partition's bounds afterwards: a
// record's outputs are acknowledged before the record is finished, so a caller that looks at the
// topics in the order of a task's path misses no record. With an empty group, nothing is
// finished.
func (cl *Client) Offsets(ctx context.Context, group, topic string) ([]PartitionOffsets, error) {
	if _, err := findTopic(topic); err != nil {
		return nil, err
	}
	n, err := cl.layout.Partitions(ctx, topic)
	out := make([]PartitionOffsets, n)
	for id := 0; id < n && err == nil; id++ {
		out[id].Partition = id
		err = cl.withRetries(ctx, func(ctx context.Context) error { return cl.stand(ctx, group, topic, &out[id]) })
	}
	return out, err
}

func (cl *Client) stand(ctx context.Context, group, topic string, s *PartitionOffsets) (err error) {
	if group != "" {
		next, metadata, err := cl.membership(group, topic).Committed(ctx, s.Partition)
		if err != nil && !errors.Is(err, kafka.GroupIdNotFound) { // the group has never existed
			return err
		}
		s.Next = max(next, 0)
		// Like the next owner, ignore metadata that is not ours.
		_, spans := offsets.CutTopic(metadata)
		s.Finished, _ = offsets.Decode(s.Next, spans)
	}
	last, err := fetch.Last(ctx, cl.kafka, cl.full(topic), s.Partition) // first: what is written meanwhile is not hidden
	if err == nil {
		s.First, s.End, err = cl.bounds(ctx, topic, s.Partition)
		s.Hidden = max(0, last-s.End)
	}
	return err
}

// ScanRange calls fn for each record of a partition from one offset up to, but not including,
// another, which must not lie beyond the partition's end. It joins no group and commits nothing.
// It stops at the first error of fn and returns it.
func (cl *Client) ScanRange(ctx context.Context, topic string, partition int, from, to int64, fn func(*Record) error) error {
	if _, err := findTopic(topic); err != nil {
		return err
	}
	return cl.scanRange(ctx, topic, partition, from, to, fn)
}
