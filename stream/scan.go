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
		at, end, err := cl.Bounds(ctx, topic, id)
		if err == nil {
			err = cl.scanRange(ctx, topic, id, at, end, fn)
		}
		if err != nil {
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

func (cl *Client) scanRange(ctx context.Context, topic string, id int, at, end int64, fn func(*Record) error) error {
	var failed error // of fn
	each := func(recs []*Record) bool {
		for _, r := range recs {
			if r.Offset >= end {
				break
			}
			if failed = fn(r); failed != nil {
				return false
			}
			at = r.Offset + 1
		}
		return true
	}
	for failures := 0; at < end && failed == nil; {
		next, err := cl.Fetch(ctx, topic, id, at, each)
		if err == nil || failed != nil {
			failures, at = 0, max(at, next)
			continue
		}
		// Retention may have moved the start of the log meanwhile.
		if first, _, berr := cl.bounds(ctx, topic, id); berr == nil && first > at {
			at = first
			continue
		}
		if failures++; failures > 5 || ctx.Err() != nil {
			return fmt.Errorf("reading %s/%d at %d: %w", topic, id, at, err)
		}
		backoff.Wait(ctx, failures)
	}
	return failed
}

// Fetch reads what a partition has from an offset on, for which the broker waits as long as kafka.fetch_wait. It
// calls fn with consecutive records, perhaps none, until that returns false, and returns the offset to continue at.
func (cl *Client) Fetch(ctx context.Context, topic string, partition int, from int64, fn func([]*Record) bool) (next int64, err error) {
	for want := cl.cfg.FetchBytes; ; want = min(4*want, maxFetchBytes) {
		got, err := cl.fetch(ctx, fetchRequest{topic: topic, partition: partition, from: from, maxBytes: want})
		for err == nil && got.rest != nil && fn(got.recs) {
			got, err = got.rest.decode(want)
		}
		switch {
		case err != nil:
			return from, err
		case got.rest != nil: // fn has had enough
			got.rest.close()
			return got.next, nil
		case !got.needsMoreBytes:
			fn(got.recs)
			return got.next, nil
		case want >= maxFetchBytes:
			return from, fmt.Errorf("no whole record in %d bytes", want)
		}
	}
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
