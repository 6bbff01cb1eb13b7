package stream

import (
	"context"
	"fmt"

	"github.com/segmentio/kafka-go"
)

// Scan reads a topic from its first record to the end that it has now,
// partition by partition, and calls fn for each record. It belongs to no group
// and commits nothing. It stops when fn returns an error, and returns that.
func (l *Log) Scan(ctx context.Context, topic string, fn func(*Record) error) error {
	if _, err := findTopic(topic); err != nil {
		return err
	}
	n, err := l.layout.partitions(ctx, topic)
	if err != nil {
		return err
	}
	for id := range n {
		if err := l.scanOne(ctx, topic, id, fn); err != nil {
			return err
		}
	}
	return nil
}

func (l *Log) scanOne(ctx context.Context, topic string, id int, fn func(*Record) error) error {
	at, end, err := l.bounds(ctx, topic, id)
	if err != nil {
		return err
	}
	want := l.cfg.FetchBytes
	for failures := 0; at < end; {
		got, err := l.fetch(ctx, topic, id, at, want, l.cfg.FetchWait, nil)
		if err != nil {
			// Retention may have moved the beginning meanwhile.
			if first, _, berr := l.bounds(ctx, topic, id); berr == nil && first > at {
				at = first
				continue
			}
			if failures++; failures > 5 || ctx.Err() != nil {
				return fmt.Errorf("reading %s/%d at %d: %w", topic, id, at, err)
			}
			pause(ctx, failures)
			continue
		}
		failures = 0
		if got.empty {
			if want >= maxFetchBytes {
				return fmt.Errorf("reading %s/%d at %d: the broker sends no whole record in %d bytes", topic, id, at, want)
			}
			want = min(4*want, maxFetchBytes)
			continue
		}
		for _, r := range got.recs {
			if r.Offset >= end {
				break
			}
			if err := fn(r); err != nil {
				return err
			}
		}
		at = max(at, got.next)
	}
	return nil
}

// Lag is how many records of the topic the group has not committed: the stage
// that Group of its ConsumerConfig names.
func (l *Log) Lag(ctx context.Context, group, topic string) (int64, error) {
	if _, err := findTopic(topic); err != nil {
		return 0, err
	}
	n, err := l.layout.partitions(ctx, topic)
	if err != nil {
		return 0, err
	}
	ids := make([]int, n)
	for i := range ids {
		ids[i] = i
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.RequestTimeout)
	defer cancel()
	id := l.GroupID(group, topic)
	res, err := l.client.OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: id, Topics: map[string][]int{l.full(topic): ids}})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		return 0, fmt.Errorf("asking for the committed offsets of group %s: %w", id, err)
	}
	at := map[int]int64{}
	for _, p := range res.Topics[l.full(topic)] {
		if p.Error != nil {
			return 0, fmt.Errorf("asking for the committed offset of group %s at %s/%d: %w", id, topic, p.Partition, p.Error)
		}
		at[p.Partition] = p.CommittedOffset
	}
	var lag int64
	for i := range n {
		first, end, err := l.bounds(ctx, topic, i)
		if err != nil {
			return 0, err
		}
		committed, ok := at[i]
		if !ok || committed < first {
			committed = first
		}
		lag += max(0, end-committed)
	}
	return lag, nil
}
