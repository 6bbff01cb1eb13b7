package stream

import (
	"errors"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/batchyard/batchyard/stream/internal/backoff"
)

// delivery is records for the handler, and the offset at which the partition continues.
type delivery struct {
	recs  []*Record
	gap   *Record // stands for what the log did not have any more; nil: nothing
	next  int64
	owned *Ownership // partition.owned when they were read
}

// run reads the partition until it is lost or the consumer drains.
func (p *partition) run() {
	defer p.cancel()
	what := "fetch " + strconv.Itoa(p.id)
	defer p.c.trouble.Report(what, nil)
	from, ok := p.findStart()
	if !ok {
		return
	}
	// The next fetch runs while the handler works on the last one's records.
	deliveries := make(chan delivery)
	p.wg.Go(func() { p.deliver(deliveries) })
	p.wg.Go(p.recall)
	defer p.wg.Wait()
	defer close(deliveries)
	defer func() { p.rest.close() }()
	want := p.c.cl.cfg.FetchBytes
	for failures := 0; p.ctx.Err() == nil; {
		var got fetched
		var err error
		if from, err = p.checkTopic(from, failures); err == nil {
			got, err = p.fetch(from, want)
		}
		if p.ctx.Err() != nil {
			return
		}
		if errors.Is(err, kafka.OffsetOutOfRange) {
			was := from
			if from, err = p.recoverPosition(from); err == nil {
				if from > was && !p.passGap(deliveries, was, from) {
					return
				}
				backoff.Wait(p.ctx, 0) // fetch again, from there
				continue
			}
		}
		p.c.trouble.Report(what, err)
		if err != nil {
			p.c.metrics.FetchErrors.WithLabelValues(p.c.group, p.c.cfg.Topic).Inc()
			p.c.cl.layout.RefreshSoon()
			backoff.Wait(p.ctx, failures)
			failures++
			continue
		}
		failures = 0
		if got.needsMoreBytes {
			want = min(4*want, maxFetchBytes)
			continue
		}
		want = p.c.cl.cfg.FetchBytes
		if got.next > from || len(got.recs) > 0 {
			from = got.next
			if got.rest == nil { // otherwise what was fetched goes on there
				from = p.nextUnfinished(from)
			}
			if !p.passOn(deliveries, got.recs, from) {
				return
			}
		}
	}
}

// findStart determines the first offset to read, and retries until it knows.
func (p *partition) findStart() (int64, bool) {
	what := "position " + strconv.Itoa(p.id)
	defer p.c.trouble.Report(what, nil)
	for failures := 0; p.ctx.Err() == nil; failures++ {
		topic := p.c.cl.layout.FreshID(p.ctx, p.c.cfg.Topic)
		next, spans, err := p.c.position(p.ctx, p.id, topic)
		if err == nil && next < 0 {
			next, _, err = p.c.cl.bounds(p.ctx, p.c.cfg.Topic, p.id)
		}
		if p.ctx.Err() != nil {
			break
		}
		p.c.trouble.Report(what, err)
		if err == nil {
			p.begin(next, spans, topic)
			return p.nextUnfinished(next), true
		}
		backoff.Wait(p.ctx, failures)
	}
	return 0, false
}

// passGap passes a gap on after everything that was read before it. It returns false when the partition ends.
func (p *partition) passGap(to chan<- delivery, first, next int64) bool {
	owned := p.ownership()
	select {
	case to <- delivery{gap: p.gap(owned, first, next-1), next: next, owned: owned}:
		return true
	case <-p.ctx.Done():
		return false
	}
}

// gap stands for all records from first to last, which the log does not hold any more.
func (p *partition) gap(owned *Ownership, first, last int64) *Record {
	return &Record{
		Topic: p.c.cfg.Topic, Partition: p.id, Offset: first, Incomplete: &Incomplete{Err: ErrRemoved, Last: last},
		owner: p, owned: owned, released: true,
	}
}

// reportGap tells the stage of a gap, before the gap is passed, so that it is found again if the process
// dies. It returns false if the partition ends, perhaps before the stage has noted the gap.
func (p *partition) reportGap(gap *Record) bool {
	p.c.logger.Error("records were removed from the log before they were processed", "topic", gap.Topic, "partition", gap.Partition, "first", gap.Offset, "last", gap.Incomplete.Last)
	if p.c.cfg.OnGap != nil {
		p.c.cfg.OnGap(p.ctx, gap)
	}
	return p.ctx.Err() == nil
}

// recoverPosition determines where to continue when the log does not hold the requested offset:
// retention removed it, or the topic was recreated.
func (p *partition) recoverPosition(from int64) (int64, error) {
	if next, err := p.checkTopic(from, 1); err != nil || next != from {
		return next, err
	}
	first, end, err := p.c.cl.bounds(p.ctx, p.c.cfg.Topic, p.id)
	if err != nil || (from >= first && from <= end) {
		return from, err
	}
	if from > end { // the broker has no ids of topics, or lost the end of the log
		p.recreated(first, p.c.cl.layout.ID(p.c.cfg.Topic))
		return first, nil
	}
	p.c.metrics.Missed.WithLabelValues(p.c.group, p.c.cfg.Topic).Add(float64(first - from))
	return first, nil
}

// checkTopic returns from, or if the topic was recreated, the first offset of the new one. After failed
// requests it asks the broker, otherwise it relies on what is known. Offsets of another topic of the same
// name, or of another cluster, mean nothing: records below them would be skipped silently. If offsets are
// kept elsewhere, so is the topic's id.
func (p *partition) checkTopic(from int64, failures int) (int64, error) {
	if p.c.cfg.Offsets != nil {
		return from, nil
	}
	if failures > 0 {
		p.c.cl.layout.RefreshIDs(p.ctx)
	}
	id := p.c.cl.layout.ID(p.c.cfg.Topic)
	p.mu.Lock()
	old := p.tracker.Topic(id)
	p.mu.Unlock()
	if old == "" || id == "" || old == id {
		return from, nil
	}
	first, _, err := p.c.cl.bounds(p.ctx, p.c.cfg.Topic, p.id)
	if err != nil {
		return from, err
	}
	p.recreated(first, id)
	return first, nil
}

// recreated continues at the first offset of a topic that was recreated.
func (p *partition) recreated(first int64, id string) {
	p.c.logger.Error("the topic was recreated, or belongs to another cluster; reading it from its start. Records that were in the old one and had not been read are lost",
		"topic", p.c.cfg.Topic, "partition", p.id, "first", first)
	p.c.metrics.Recreated.WithLabelValues(p.c.group, p.c.cfg.Topic).Inc()
	p.rest.close()
	p.rest = nil
	p.startOver(first, id)
}

// fetch reads from an offset on, within the budget: what is left of the last fetch, or else from the
// broker. When a record is larger than the budget, it asks for want bytes anyway, or the record would
// never be read.
func (p *partition) fetch(from, want int64) (fetched, error) {
	c := p.c
	granted, err := c.budget.TakeBytes(p.ctx, &p.budget, min(want, c.cl.cfg.FetchBytes))
	if err != nil {
		return fetched{}, err
	}
	maxBytes := granted
	if want > c.cl.cfg.FetchBytes {
		maxBytes = want // the broker sent no whole record for less
	}
	p.mu.Lock()
	skip := p.tracker.Inherited()
	p.mu.Unlock()
	var got fetched
	if p.rest != nil {
		got, err = p.rest.decode(maxBytes)
	} else {
		got, err = c.cl.fetch(p.ctx, fetchRequest{topic: c.cfg.Topic, partition: p.id, from: from, maxBytes: maxBytes, skip: skip})
	}
	p.rest = got.rest
	var bytes int64
	values := 0
	for _, r := range got.recs {
		r.owner = p
		bytes += r.size()
		values += len(r.Value)
	}
	if err != nil {
		got.recs, bytes = nil, 0
	}
	c.budget.AdjustBytes(&p.budget, bytes-granted)
	if err != nil {
		return got, err
	}
	p.end.Store(got.end.highest)
	p.readable.Store(got.end.readable)
	p.heard.Store(true)
	if n := len(got.recs); n > 0 {
		c.metrics.Consumed.WithLabelValues(c.group, c.cfg.Topic).Add(float64(n))
		c.metrics.ConsumedBytes.WithLabelValues(c.group, c.cfg.Topic).Add(float64(values))
	}
	if n := int(got.next-from) - len(got.recs); n > 0 && len(skip) > 0 {
		c.metrics.Skipped.WithLabelValues(c.group, c.cfg.Topic).Add(float64(n))
	}
	return got, nil
}

// nextUnfinished returns the offset itself, or the end of the span that the last owner had
// finished around it.
func (p *partition) nextUnfinished(offset int64) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tracker.NextUnfinished(offset)
}

// passOn passes records to the handler as the budget allows. It returns false when the
// partition ends.
func (p *partition) passOn(to chan<- delivery, recs []*Record, next int64) bool {
	owned := p.ownership()
	for {
		d := delivery{next: next, owned: owned}
		if len(recs) > 0 {
			n, err := p.c.budget.TakeRecords(p.ctx, &p.budget, len(recs))
			if err != nil {
				return false
			}
			d.recs = recs[:n:n]
			if recs = recs[n:]; len(recs) > 0 {
				d.next = recs[0].Offset
			}
		}
		select {
		case to <- d:
		case <-p.ctx.Done():
			return false
		}
		if len(recs) == 0 {
			return true
		}
	}
}

// deliver calls the handler. It registers records as in flight just before, because a drain must
// not wait for records that never reach the handler.
func (p *partition) deliver(deliveries <-chan delivery) {
	for {
		select {
		case d, more := <-deliveries:
			if !more || !p.deliverOne(d) {
				return
			}
		case <-p.wake:
			p.deliverAgain()
		}
	}
}

func (p *partition) deliverOne(d delivery) bool {
	return p.handOut(&p.delivering, func() []*Record {
		if d.gap != nil && !p.reportGap(d.gap) {
			return nil
		}
		p.add(d)
		return d.recs
	})
}

// handOut calls the handler with the records that it is given; false when the partition ends. since says that it
// does, and since when.
func (p *partition) handOut(since *atomic.Pointer[time.Time], register func() []*Record) bool {
	p.c.active.Add(1)
	now := time.Now()
	since.Store(&now)
	defer func() {
		since.Store(nil)
		p.c.active.Add(-1)
		p.c.drained()
	}()
	if p.ctx.Err() != nil {
		return false
	}
	if recs := register(); len(recs) > 0 {
		p.c.handle(p.ctx, recs)
	}
	return true
}

// lag returns roughly how many records of the log are not finished.
func (p *partition) lag() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.tracker.Started() {
		return 0
	}
	return max(0, p.end.Load()-p.tracker.Lowest())
}
