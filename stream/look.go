package stream

import (
	"context"
	"errors"
	"sort"

	"github.com/segmentio/kafka-go"
)

// Standing is how a group stands at a partition, at one moment.
type Standing struct {
	Partition  int
	First, End int64 // the partition's first offset, and the one after its last

	next     int64 // the first offset that the group has not finished
	finished []span
}

// Begun is the first offset that the group has not committed as finished.
func (s *Standing) Begun() int64 { return max(s.next, s.First) }

// Unfinished reports whether the group has yet to finish the record at an offset.
func (s *Standing) Unfinished(offset int64) bool {
	if offset < s.next {
		return false
	}
	i := sort.Search(len(s.finished), func(i int) bool { return s.finished[i].end > offset })
	return i == len(s.finished) || offset < s.finished[i].first
}

// Standings says for each partition of a topic what it holds and what of it a
// group has finished. The group is asked first and the partition afterwards: what
// a record became was acknowledged before the record was finished, so whoever
// looks at one topic after the other, along the way of a task, misses none.
// An empty group has finished nothing.
func (l *Log) Standings(ctx context.Context, group, topic string) ([]Standing, error) {
	if _, err := findTopic(topic); err != nil {
		return nil, err
	}
	n, err := l.layout.partitions(ctx, topic)
	if err != nil {
		return nil, err
	}
	out := make([]Standing, n)
	for id := range n {
		s := &out[id]
		s.Partition = id
		if group != "" {
			err := l.patiently(ctx, func(ctx context.Context) error {
				next, metadata, err := l.committed(ctx, l.GroupID(group, topic), topic, id)
				if errors.Is(err, kafka.GroupIdNotFound) {
					return nil // nobody has ever run
				}
				if err != nil {
					return err
				}
				s.next = max(next, 0)
				// What is none of ours says nothing, here as for the next owner.
				s.finished, _ = decodeSpans(s.next, metadata)
				return nil
			})
			if err != nil {
				return nil, err
			}
		}
		if s.First, s.End, err = l.steadyBounds(ctx, topic, id); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// ScanRange calls fn for each record of a partition from one offset up to, not
// including, another, which must not lie beyond the partition's end. It belongs
// to no group and commits nothing. It stops when fn returns an error, and returns that.
func (l *Log) ScanRange(ctx context.Context, topic string, partition int, from, to int64, fn func(*Record) error) error {
	if _, err := findTopic(topic); err != nil {
		return err
	}
	return l.scanRange(ctx, topic, partition, from, to, fn)
}
