package stream

import (
	"context"
	"errors"

	"github.com/segmentio/kafka-go"

	"github.com/batchyard/batchyard/stream/internal/offsets"
)

// PartitionOffsets is what a partition holds and what of it a group has finished, at one moment.
type PartitionOffsets = offsets.Partition

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
	if err != nil {
		return nil, err
	}
	out := make([]PartitionOffsets, n)
	for id := range n {
		s := &out[id]
		s.Partition = id
		if group != "" {
			err := cl.withRetries(ctx, func(ctx context.Context) error {
				next, metadata, err := cl.membership(group, topic).Committed(ctx, id)
				if errors.Is(err, kafka.GroupIdNotFound) {
					return nil // the group has never existed
				}
				if err != nil {
					return err
				}
				s.Next = max(next, 0)
				// Like the next owner, ignore metadata that is not ours.
				_, spans := offsets.CutTopic(metadata)
				s.Finished, _ = offsets.Decode(s.Next, spans)
				return nil
			})
			if err != nil {
				return nil, err
			}
		}
		if s.First, s.End, err = cl.boundsWithRetries(ctx, topic, id); err != nil {
			return nil, err
		}
	}
	return out, nil
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
