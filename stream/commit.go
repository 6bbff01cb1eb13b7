package stream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/stream/internal/offsets"
)

// commitPeriodically commits what has finished at each interval, and reports stragglers and
// metrics.
func (c *consumer) commitPeriodically(ctx context.Context, s *session) sessionOutcome {
	ticker := time.NewTicker(c.cl.cfg.CommitInterval)
	defer ticker.Stop()
	var again time.Time
	current := currentReport{c: c}
	for {
		select {
		case <-ctx.Done():
			return leaving
		case <-ticker.C:
		}
		c.reportProgress()
		current.tick(time.Now())
		if !again.IsZero() && time.Now().After(again) {
			again = time.Time{}
			for _, p := range c.partitions() {
				p.recommit()
			}
		}
		err := c.commit(ctx, s)
		if o := outcomeOf(err); o != stillMember {
			return o
		}
		if ctx.Err() != nil {
			return leaving
		}
		if err != nil {
			// A commit without an answer may still reach the broker, after later ones. When
			// it can no longer arrive, commit the current offsets once more.
			again = time.Now().Add(2 * c.cl.cfg.RequestTimeout)
		}
		c.report("commit", err)
	}
}

// commit writes the offsets that moved since the last commit. The broker refuses it when the
// generation is over, so a late commit never undoes a newer owner's.
func (c *consumer) commit(ctx context.Context, s *session) error {
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
	topic := c.cl.full(c.cfg.Topic)
	ctx, cancel := c.commitContext(ctx)
	defer cancel()
	fault.At("stream.before_commit")
	res, err := c.cl.kafka.OffsetCommit(ctx, &kafka.OffsetCommitRequest{
		GroupID: c.group, GenerationID: s.generation, MemberID: s.member,
		Topics: map[string][]kafka.OffsetCommit{topic: commits},
	})
	fault.At("stream.after_commit")
	c.metrics.Commits.WithLabelValues(c.group, c.cfg.Topic).Inc()
	answers := map[int]error{}
	if err == nil {
		for _, p := range res.Topics[topic] {
			answers[p.Partition] = p.Error
		}
	}
	var failed error
	for _, o := range candidates {
		perr, answered := answers[o.p.id]
		if !answered {
			perr = errors.Join(err, errNoAnswer)
		}
		if errors.Is(perr, kafka.OffsetMetadataTooLarge) {
			o.p.dropMetadata()
		}
		if perr == nil {
			o.p.commitAcked(o)
			continue
		}
		o.p.commitFailed()
		if outcomeOf(failed) == stillMember {
			failed = fmt.Errorf("committing %s/%d at %d for group %s: %w", c.cfg.Topic, o.p.id, o.offset, c.group, perr)
		}
	}
	if failed != nil {
		c.metrics.CommitErrors.WithLabelValues(c.group, c.cfg.Topic).Inc()
	}
	return failed
}

// errNoAnswer is the error of a partition that the broker's answer left out.
var errNoAnswer = errors.New("the broker's answer does not mention the partition")

// commitGrace is how much longer a commit under way may take when the consumer stops.
const commitGrace = time.Second

// commitContext returns a context that outlives ctx by a moment. An abandoned commit could
// still reach the broker after the last one, which uses another connection, and undo it.
func (c *consumer) commitContext(ctx context.Context) (context.Context, context.CancelFunc) {
	lasting, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.cl.cfg.RequestTimeout)
	grace := make(chan *time.Timer, 1)
	stop := context.AfterFunc(ctx, func() { grace <- time.AfterFunc(commitGrace, cancel) })
	return lasting, func() {
		if !stop() {
			(<-grace).Stop()
		}
		cancel()
	}
}

// currentReport collects the partitions that are up to date, for ConsumerConfig.OnCurrent.
type currentReport struct {
	c     *consumer
	fresh map[int]bool // up to date since the last report
	known map[int]bool // in the last report
	last  time.Time
}

// tick asks each partition, and reports when it is time, or when a partition is up to date that was not
// in the last report, because somewhere a device may wait for it.
func (r *currentReport) tick(now time.Time) {
	if r.c.cfg.OnCurrent == nil {
		return
	}
	news := false
	for _, p := range r.c.partitions() {
		if p.upToDate() {
			if r.fresh == nil {
				r.fresh = map[int]bool{}
			}
			r.fresh[p.id] = true
			news = news || !r.known[p.id]
		}
	}
	if len(r.fresh) == 0 || !news && now.Sub(r.last) < r.c.cfg.CurrentEvery {
		return
	}
	r.c.cfg.OnCurrent(slices.Sorted(maps.Keys(r.fresh)))
	r.known, r.fresh, r.last = r.fresh, nil, now
}

// reportProgress reports stragglers, records in flight, and lag.
func (c *consumer) reportProgress() {
	var spread, lag int64
	parts := c.partitions()
	for _, p := range parts {
		rec, s := p.straggler(c.cfg.MaxSpread)
		spread = max(spread, s)
		lag += p.lag()
		if rec == nil {
			continue
		}
		c.metrics.Stragglers.WithLabelValues(c.group, c.cfg.Topic).Inc()
		c.logger.Warn("a record holds up its partition's commit", "record", rec.Position(), "offsets_ahead", s)
		if c.cfg.OnStraggler != nil {
			c.cfg.OnStraggler(rec)
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
	offset, metadata, err := c.cl.committed(ctx, c.group, c.cfg.Topic, id)
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

// committed returns the group's committed offset, or -1 without one.
func (cl *Client) committed(ctx context.Context, group, topic string, id int) (int64, string, error) {
	ctx, cancel := context.WithTimeout(ctx, cl.cfg.RequestTimeout)
	defer cancel()
	res, err := cl.kafka.OffsetFetch(ctx, &kafka.OffsetFetchRequest{
		GroupID: group, Topics: map[string][]int{cl.full(topic): {id}},
	})
	if err == nil {
		err = res.Error
	}
	if err == nil {
		for _, p := range res.Topics[cl.full(topic)] {
			if p.Partition == id && p.Error == nil {
				return p.CommittedOffset, p.Metadata, nil
			}
			if p.Partition == id {
				err = p.Error
			}
		}
		if err == nil {
			err = errNoAnswer
		}
	}
	return 0, "", fmt.Errorf("asking for the committed offset of group %s at %s/%d: %w", group, topic, id, err)
}
