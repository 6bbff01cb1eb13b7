package stream

import (
	"context"
	"fmt"
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

// patiently calls f again while it fails, for as long as one request may take:
// leaders move, and who asks once should not have to know.
func (l *Log) patiently(ctx context.Context, f func(ctx context.Context) error) error {
	within, cancel := context.WithTimeout(ctx, l.cfg.RequestTimeout)
	defer cancel()
	for failures := 0; ; failures++ {
		err := f(within)
		if err == nil {
			return nil
		}
		l.layout.kick()
		pause(within, failures)
		if within.Err() != nil {
			return err
		}
	}
}

// steadyBounds are the bounds of a partition, asked for patiently.
func (l *Log) steadyBounds(ctx context.Context, topic string, id int) (first, end int64, err error) {
	err = l.patiently(ctx, func(ctx context.Context) (err error) {
		first, end, err = l.bounds(ctx, topic, id)
		return err
	})
	return first, end, err
}

func (l *Log) scanOne(ctx context.Context, topic string, id int, fn func(*Record) error) error {
	at, end, err := l.steadyBounds(ctx, topic, id)
	if err != nil {
		return err
	}
	return l.scanRange(ctx, topic, id, at, end, fn)
}

func (l *Log) scanRange(ctx context.Context, topic string, id int, at, end int64, fn func(*Record) error) error {
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
	at := make([]int64, n)
	for id := range n {
		err := l.patiently(ctx, func(ctx context.Context) (err error) {
			at[id], _, err = l.committed(ctx, l.GroupID(group, topic), topic, id)
			return err
		})
		if err != nil {
			return 0, err
		}
	}
	var lag int64
	for i := range n {
		first, end, err := l.steadyBounds(ctx, topic, i)
		if err != nil {
			return 0, err
		}
		lag += max(0, end-max(first, at[i]))
	}
	return lag, nil
}
