package stream

import (
	"errors"
	"strconv"

	"github.com/segmentio/kafka-go"
)

// delivery is records for the handler, and the offset at which the partition continues.
type delivery struct {
	recs []*Record
	next int64
}

// run reads the partition until it is lost or the consumer drains.
func (p *partition) run() {
	defer p.cancel()
	what := "fetch " + strconv.Itoa(p.id)
	defer p.c.report(what, nil)
	from, ok := p.findStart()
	if !ok {
		return
	}
	// The next fetch runs while the handler works on the last one's records.
	deliveries := make(chan delivery)
	p.wg.Go(func() { p.deliver(deliveries) })
	defer p.wg.Wait()
	defer close(deliveries)
	want := p.c.cl.cfg.FetchBytes
	for failures := 0; p.ctx.Err() == nil; {
		got, err := p.fetch(from, want)
		if p.ctx.Err() != nil {
			return
		}
		if errors.Is(err, kafka.OffsetOutOfRange) {
			if from, err = p.recoverPosition(from); err == nil {
				backOff(p.ctx, 0) // fetch again, from there
				continue
			}
		}
		p.c.report(what, err)
		if err != nil {
			p.c.metrics.FetchErrors.WithLabelValues(p.c.group, p.c.cfg.Topic).Inc()
			p.c.cl.layout.refreshSoon()
			backOff(p.ctx, failures)
			failures++
			continue
		}
		failures = 0
		if got.needsMoreBytes {
			want = min(4*want, maxFetchBytes)
			continue
		}
		want = p.c.cl.cfg.FetchBytes
		if got.next > from {
			from = p.nextUnfinished(got.next)
			if !p.passOn(deliveries, got.recs, from) {
				return
			}
		}
	}
}

// findStart determines the first offset to read, and retries until it knows.
func (p *partition) findStart() (int64, bool) {
	what := "position " + strconv.Itoa(p.id)
	defer p.c.report(what, nil)
	for failures := 0; p.ctx.Err() == nil; failures++ {
		next, spans, err := p.c.position(p.ctx, p.id)
		if err == nil && next < 0 {
			next, _, err = p.c.cl.bounds(p.ctx, p.c.cfg.Topic, p.id)
		}
		if p.ctx.Err() != nil {
			break
		}
		p.c.report(what, err)
		if err == nil {
			p.begin(next, spans)
			return p.nextUnfinished(next), true
		}
		backOff(p.ctx, failures)
	}
	return 0, false
}

// recoverPosition determines where to continue when the log does not hold the requested offset:
// retention removed it, or the topic was recreated.
func (p *partition) recoverPosition(from int64) (int64, error) {
	first, end, err := p.c.cl.bounds(p.ctx, p.c.cfg.Topic, p.id)
	if err != nil || (from >= first && from <= end) {
		return from, err
	}
	p.c.logger.Error("the log does not hold the offset to read next; continuing at its first offset. "+
		"Either retention removed records before they were read, or the topic was recreated",
		"topic", p.c.cfg.Topic, "partition", p.id, "wanted", from, "first", first, "end", end)
	p.restart(first)
	return first, nil
}

// fetch reads from an offset on, within the budget. When a record is larger than the budget, it
// asks for want bytes anyway, or the record would never be read.
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
	skip := p.inherited
	p.mu.Unlock()
	got, err := c.cl.fetch(p.ctx, fetchRequest{topic: c.cfg.Topic, partition: p.id, from: from, maxBytes: maxBytes, skip: skip})
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
	p.end.Store(got.highest)
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
	for _, s := range p.inherited {
		if offset >= s.First && offset < s.End {
			return s.End
		}
	}
	return offset
}

// passOn passes records to the handler as the budget allows. It returns false when the
// partition ends.
func (p *partition) passOn(to chan<- delivery, recs []*Record, next int64) bool {
	for {
		d := delivery{next: next}
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
	for d := range deliveries {
		if !p.deliverOne(d) {
			return
		}
	}
}

func (p *partition) deliverOne(d delivery) bool {
	p.c.active.Add(1)
	defer func() {
		p.c.active.Add(-1)
		p.c.drained()
	}()
	if p.ctx.Err() != nil {
		return false
	}
	p.add(d.recs)
	p.advanceTo(d.next)
	if len(d.recs) > 0 {
		p.c.handle(p.ctx, d.recs)
	}
	return true
}

// lag returns roughly how many records of the log are not finished.
func (p *partition) lag() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.started {
		return 0
	}
	return max(0, p.end.Load()-p.lowestUnfinished())
}

// dropMetadata commits without metadata from now on.
func (p *partition) dropMetadata() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.omitMetadata = true
}
