package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/batchyard/batchyard/internal/fault"
)

// commitAll commits, at each interval, what has finished, and looks after
// stragglers and metrics on the way.
func (c *consumer) commitAll(ctx context.Context, s *session) outcome {
	ticker := time.NewTicker(c.l.cfg.CommitInterval)
	defer ticker.Stop()
	var again time.Time
	for {
		select {
		case <-ctx.Done():
			return ended
		case <-ticker.C:
		}
		c.lookAfter()
		if !again.IsZero() && time.Now().After(again) {
			again = time.Time{}
			for _, p := range c.partitions() {
				p.recommit()
			}
		}
		err := c.commit(ctx, s)
		if o := outcomeOf(err); o != nothingNew {
			return o
		}
		if ctx.Err() != nil {
			return ended
		}
		if err != nil {
			// A commit that nobody answered may still arrive, after later ones. Once it
			// has had time to, what holds is said again.
			again = time.Now().Add(2 * c.l.cfg.RequestTimeout)
		}
		c.report("commit", err)
	}
}

// commit writes the offsets that moved since the last one. The broker refuses
// it when the generation is over, so a late one never undoes a newer owner's.
func (c *consumer) commit(ctx context.Context, s *session) error {
	c.committing.Lock()
	defer c.committing.Unlock()
	var offers []offer
	for _, p := range c.partitions() {
		if o, ok := p.commitable(); ok {
			offers = append(offers, o)
		}
	}
	if len(offers) == 0 {
		return nil
	}
	commits := make([]kafka.OffsetCommit, len(offers))
	for i, o := range offers {
		commits[i] = kafka.OffsetCommit{Partition: o.p.id, Offset: o.offset, Metadata: o.metadata}
	}
	topic := c.l.full(c.cfg.Topic)
	ctx, cancel := c.commitContext(ctx)
	defer cancel()
	fault.At("stream.before_commit")
	res, err := c.l.client.OffsetCommit(ctx, &kafka.OffsetCommitRequest{
		GroupID: c.group, GenerationID: s.generation, MemberID: s.member,
		Topics: map[string][]kafka.OffsetCommit{topic: commits},
	})
	fault.At("stream.after_commit")
	c.m.Commits.WithLabelValues(c.group, c.cfg.Topic).Inc()
	answers := map[int]error{}
	if err == nil {
		for _, p := range res.Topics[topic] {
			answers[p.Partition] = p.Error
		}
	}
	var failed error
	for _, o := range offers {
		perr, answered := answers[o.p.id]
		if !answered {
			perr = errors.Join(err, errors.New("the broker did not answer for the partition"))
		}
		if errors.Is(perr, kafka.OffsetMetadataTooLarge) {
			o.p.dropMetadata()
		}
		o.p.settled(o, perr == nil)
		if perr != nil && outcomeOf(failed) == nothingNew {
			failed = fmt.Errorf("committing %s/%d at %d for group %s: %w", c.cfg.Topic, o.p.id, o.offset, c.group, perr)
		}
	}
	if failed != nil {
		c.m.CommitErrors.WithLabelValues(c.group, c.cfg.Topic).Inc()
	}
	return failed
}

// commitGrace is how long a commit under way may take when it is to stop.
const commitGrace = time.Second

// commitContext does not end at once when ctx does. A commit that is abandoned
// may still be on its way to the broker, and arrive there after the last one,
// which goes by another connection: that would be undone.
func (c *consumer) commitContext(ctx context.Context) (context.Context, context.CancelFunc) {
	lasting, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.l.cfg.RequestTimeout)
	grace := make(chan *time.Timer, 1)
	stop := context.AfterFunc(ctx, func() { grace <- time.AfterFunc(commitGrace, cancel) })
	return lasting, func() {
		if !stop() {
			(<-grace).Stop()
		}
		cancel()
	}
}

// lookAfter reports stragglers and what is in flight.
func (c *consumer) lookAfter() {
	var spread, lag int64
	parts := c.partitions()
	for _, p := range parts {
		rec, s := p.straggler(c.cfg.MaxSpread)
		spread = max(spread, s)
		lag += p.lag()
		if rec == nil {
			continue
		}
		c.m.Stragglers.WithLabelValues(c.group, c.cfg.Topic).Inc()
		c.log.Warn("a record holds up the commit of its partition", "record", rec.Position(), "finished_above", s)
		if c.cfg.OnStraggler != nil {
			c.cfg.OnStraggler(rec)
		}
	}
	records, bytes := c.budget.held()
	c.m.InFlight.WithLabelValues(c.group, c.cfg.Topic).Set(float64(records))
	c.m.InFlightBytes.WithLabelValues(c.group, c.cfg.Topic).Set(float64(bytes))
	c.m.Spread.WithLabelValues(c.group, c.cfg.Topic).Set(float64(spread))
	c.m.Lag.WithLabelValues(c.group, c.cfg.Topic).Set(float64(lag))
	c.m.Partitions.WithLabelValues(c.group, c.cfg.Topic).Set(float64(len(parts)))
}

// position returns where the group is to read the partition on, -1 for from
// the start, and what is finished above it.
func (c *consumer) position(ctx context.Context, id int) (int64, []span, error) {
	if c.cfg.Offsets != nil {
		next, err := c.cfg.Offsets.Acquire(ctx, c.cfg.Topic, id)
		if err != nil {
			return 0, nil, fmt.Errorf("asking the offset store for %s/%d: %w", c.cfg.Topic, id, err)
		}
		return next, nil, nil
	}
	offset, metadata, err := c.l.committed(ctx, c.group, c.cfg.Topic, id)
	if err != nil || offset < 0 {
		return offset, nil, err
	}
	spans, err := decodeSpans(offset, metadata)
	if err != nil {
		c.log.Warn("reading the metadata of a commit; records finished above it are done again", "partition", id, "error", err)
	}
	return offset, spans, nil
}

// committed returns the group's committed offset, -1 when there is none.
func (l *Log) committed(ctx context.Context, group, topic string, id int) (int64, string, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.RequestTimeout)
	defer cancel()
	res, err := l.client.OffsetFetch(ctx, &kafka.OffsetFetchRequest{
		GroupID: group, Topics: map[string][]int{l.full(topic): {id}},
	})
	if err == nil {
		err = res.Error
	}
	if err == nil {
		for _, p := range res.Topics[l.full(topic)] {
			if p.Partition == id && p.Error == nil {
				return p.CommittedOffset, p.Metadata, nil
			}
			if p.Partition == id {
				err = p.Error
			}
		}
		if err == nil {
			err = errors.New("the broker did not answer for the partition")
		}
	}
	return 0, "", fmt.Errorf("asking for the committed offset of group %s at %s/%d: %w", group, topic, id, err)
}
