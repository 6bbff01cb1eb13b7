package stream

import (
	"context"
	"fmt"

	"github.com/batchyard/batchyard/stream/internal/backoff"
)

// Scan reads a topic from its first record to its present end, partition by partition, and
// calls fn for each record. It joins no group and commits nothing. It stops at the first error
// of fn and returns it.
func (cl *Client) Scan(ctx context.Context, topic string, fn func(*Record) error) error {
	if _, err := findTopic(topic); err != nil {
		return err
	}
	n, err := cl.layout.Partitions(ctx, topic)
	if err != nil {
		return err
	}
	for id := range n {
		if err := cl.scanOne(ctx, topic, id, fn); err != nil {
			return err
		}
	}
	return nil
}

// withRetries calls f until it succeeds, for as long as one request may take, so that callers
// need not handle a leader election.
func (cl *Client) withRetries(ctx context.Context, f func(ctx context.Context) error) error {
	within, cancel := context.WithTimeout(ctx, cl.cfg.RequestTimeout)
	defer cancel()
	for failures := 0; ; failures++ {
		err := f(within)
		if err == nil {
			return nil
		}
		cl.layout.RefreshSoon()
		backoff.Wait(within, failures)
		if within.Err() != nil {
			return err
		}
	}
}

// boundsWithRetries is bounds with retries.
func (cl *Client) boundsWithRetries(ctx context.Context, topic string, id int) (first, end int64, err error) {
	err = cl.withRetries(ctx, func(ctx context.Context) (err error) {
		first, end, err = cl.bounds(ctx, topic, id)
		return err
	})
	return first, end, err
}

func (cl *Client) scanOne(ctx context.Context, topic string, id int, fn func(*Record) error) error {
	at, end, err := cl.boundsWithRetries(ctx, topic, id)
	if err != nil {
		return err
	}
	return cl.scanRange(ctx, topic, id, at, end, fn)
}

func (cl *Client) scanRange(ctx context.Context, topic string, id int, at, end int64, fn func(*Record) error) error {
	want := cl.cfg.FetchBytes
	var rest *undecoded
	defer func() { rest.close() }()
	for failures := 0; at < end; {
		var got fetched
		var err error
		if rest != nil {
			got, err = rest.decode(want)
		} else {
			got, err = cl.fetch(ctx, fetchRequest{topic: topic, partition: id, from: at, maxBytes: want})
		}
		rest = got.rest
		if err != nil {
			// Retention may have moved the start of the log meanwhile.
			if first, _, berr := cl.bounds(ctx, topic, id); berr == nil && first > at {
				at = first
				continue
			}
			if failures++; failures > 5 || ctx.Err() != nil {
				return fmt.Errorf("reading %s/%d at %d: %w", topic, id, at, err)
			}
			backoff.Wait(ctx, failures)
			continue
		}
		failures = 0
		if got.needsMoreBytes {
			if want >= maxFetchBytes {
				return fmt.Errorf("reading %s/%d at %d: no whole record in %d bytes", topic, id, at, want)
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

// Lag returns how many records of the topic a group has not committed; group is the stage's name,
// as in [ConsumerConfig.Group].
func (cl *Client) Lag(ctx context.Context, group, topic string) (int64, error) {
	all, err := cl.Offsets(ctx, group, topic)
	if err != nil {
		return 0, err
	}
	var lag int64
	for i := range all {
		lag += max(0, all[i].End-all[i].Committed())
	}
	return lag, nil
}
