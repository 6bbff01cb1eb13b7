package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/stream/internal/current"
	"github.com/batchyard/batchyard/stream/internal/membership"
	"github.com/batchyard/batchyard/stream/internal/offsets"
	"github.com/batchyard/batchyard/stream/internal/tracker"
)

// commitPeriodically commits what has finished at each interval, and reports stragglers and
// metrics.
func (c *consumer) commitPeriodically(ctx context.Context, s *membership.Session) membership.Outcome {
	ticker := time.NewTicker(c.cl.cfg.CommitInterval)
	defer ticker.Stop()
	var again time.Time
	var upToDate current.Report
	for {
		select {
		case <-ctx.Done():
			return membership.Leaving
		case <-ticker.C:
		}
		c.reportProgress()
		if c.cfg.OnCurrent != nil {
			for _, p := range c.partitions() {
				if p.upToDate() {
					upToDate.Add(p.id)
				}
			}
			if ids := upToDate.Due(time.Now(), c.cfg.CurrentEvery); ids != nil {
				c.cfg.OnCurrent(ids)
			}
		}
		if !again.IsZero() && time.Now().After(again) {
			again = time.Time{}
			for _, p := range c.partitions() {
				p.track((*tracker.Tracker).Again)
			}
		}
		err := c.commit(ctx, s)
		if o := membership.OutcomeOf(err); o != membership.StillMember {
			return o
		}
		if ctx.Err() != nil {
			return membership.Leaving
		}
		if err != nil {
			// A commit without an answer may still reach the broker, after later ones. When
			// it can no longer arrive, commit the current offsets once more.
			again = time.Now().Add(2 * c.cl.cfg.RequestTimeout)
		}
		c.trouble.Report("commit", err)
	}
}

// commit writes the offsets that moved since the last commit. The broker refuses it when the
// generation is over, so a late commit never undoes a newer owner's.
func (c *consumer) commit(ctx context.Context, s *membership.Session) error {
	c.committing.Lock()
	defer c.committing.Unlock()
	var candidates []commitCandidate
	for _, p := range c.partitions() {
		if o, ok := p.nextCommit(); ok {
			candidates = append(candidates, o)
		}
	}
	if len(candidates) == 0 {
		return nil
	}
	commits := make([]kafka.OffsetCommit, len(candidates))
	for i, o := range candidates {
		commits[i] = kafka.OffsetCommit{Partition: o.p.id, Offset: o.offset, Metadata: o.metadata}
	}
	ctx, cancel := membership.Lasting(ctx, c.cl.cfg.RequestTimeout)
	defer cancel()
	fault.At("stream.before_commit")
	answers, _ := c.member.Commit(ctx, s.Generation, s.Member, commits)
	fault.At("stream.after_commit")
	c.metrics.Commits.WithLabelValues(c.group, c.cfg.Topic).Inc()
	var failed error
	for _, o := range candidates {
		perr := answers[o.p.id]
		if errors.Is(perr, kafka.OffsetMetadataTooLarge) {
			o.p.track((*tracker.Tracker).OmitMetadata)
		}
		if perr == nil {
			o.p.track(func(t *tracker.Tracker) { t.Acked(o.offset) })
			continue
		}
		o.p.track((*tracker.Tracker).Failed)
		if membership.OutcomeOf(failed) == membership.StillMember {
			failed = fmt.Errorf("committing %s/%d at %d for group %s: %w", c.cfg.Topic, o.p.id, o.offset, c.group, perr)
		}
	}
	if failed != nil {
		c.metrics.CommitErrors.WithLabelValues(c.group, c.cfg.Topic).Inc()
	}
	return failed
}

// reportProgress reports stragglers, records in flight, and lag.
func (c *consumer) reportProgress() {
	var spread, lag int64
	parts := c.partitions()
	for _, p := range parts {
		p.mu.Lock()
		offset, s, report := p.tracker.Straggler(c.cfg.MaxSpread, time.Now())
		p.mu.Unlock()
		spread = max(spread, s)
		lag += p.lag()
		if !report {
			continue
		}
		c.metrics.Stragglers.WithLabelValues(c.group, c.cfg.Topic).Inc()
		c.logger.Debug("a record holds up its partition's commit", "topic", c.cfg.Topic, "partition", p.id, "offset", offset, "offsets_ahead", s)
		if c.cfg.OnStraggler != nil {
			c.cfg.OnStraggler(p.ownership(), offset)
		}
	}
	records, bytes := c.budget.Held()
	c.metrics.InFlight.WithLabelValues(c.group, c.cfg.Topic).Set(float64(records))
	c.metrics.InFlightBytes.WithLabelValues(c.group, c.cfg.Topic).Set(float64(bytes))
	c.metrics.Spread.WithLabelValues(c.group, c.cfg.Topic).Set(float64(spread))
	c.metrics.Lag.WithLabelValues(c.group, c.cfg.Topic).Set(float64(lag))
	c.metrics.Partitions.WithLabelValues(c.group, c.cfg.Topic).Set(float64(len(parts)))
}

// position returns the offset at which the group continues to read the partition, -1 for its
// start, and the finished spans above it. topic is the topic's id, if it is known.
func (c *consumer) position(ctx context.Context, id int, topic string) (int64, []offsets.Span, error) {
	if c.cfg.Offsets != nil {
		next, err := c.cfg.Offsets.Acquire(ctx, c.cfg.Topic, id)
		if err != nil {
			return 0, nil, fmt.Errorf("asking the offset store for %s/%d: %w", c.cfg.Topic, id, err)
		}
		return next, nil, nil
	}
	offset, metadata, err := c.member.Committed(ctx, id)
	if err != nil || offset < 0 {
		return offset, nil, err
	}
	old, text := offsets.CutTopic(metadata)
	if old != "" && topic != "" && old != topic {
		c.metrics.Recreated.WithLabelValues(c.group, c.cfg.Topic).Inc()
		c.logger.Error("the topic was recreated, or belongs to another cluster, since the group's last commit; reading it from its start. Records that were in the old one and had not been read are lost",
			"topic", c.cfg.Topic, "partition", id, "committed", offset)
		return -1, nil, nil
	}
	spans, err := offsets.Decode(offset, text)
	if err != nil {
		c.logger.Warn("cannot read a commit's metadata; records finished above the committed offset will be processed again", "partition", id, "error", err)
	}
	return offset, spans, nil
}
