package stream

import (
	"errors"
	"strconv"

	"github.com/segmentio/kafka-go"
)

// delivery is records for the handler, and where the partition goes on after them.
type delivery struct {
	recs []*Record
	next int64
}

// run reads the partition until it is lost or nothing new is to be begun.
func (p *partition) run() {
	defer p.cancel()
	what := "fetch " + strconv.Itoa(p.id)
	defer p.c.report(what, nil)
	from, ok := p.locate()
	if !ok {
		return
	}
	// The next fetch runs while the handler has the records of the last.
	deliveries := make(chan delivery)
	p.wg.Go(func() { p.deliver(deliveries) })
	defer p.wg.Wait()
	defer close(deliveries)
	want := p.c.l.cfg.FetchBytes
	for failures := 0; p.ctx.Err() == nil; {
		got, err := p.fetch(from, want)
		if p.ctx.Err() != nil {
			return
		}
		if errors.Is(err, kafka.OffsetOutOfRange) {
			if from, err = p.relocate(from); err == nil {
				pause(p.ctx, 0) // the fetch gave nothing: again, from there
				continue
			}
		}
		p.c.report(what, err)
		if err != nil {
			p.c.m.FetchErrors.WithLabelValues(p.c.group, p.c.cfg.Topic).Inc()
			p.c.l.layout.kick()
			pause(p.ctx, failures)
			failures++
			continue
		}
		failures = 0
		if got.empty {
			want = min(4*want, maxFetchBytes)
			continue
		}
		want = p.c.l.cfg.FetchBytes
		if got.next > from {
			from = p.after(got.next)
			if !p.hand(deliveries, got.recs, from) {
				return
			}
		}
	}
}

// locate finds out where to begin, however long that takes.
func (p *partition) locate() (int64, bool) {
	what := "position " + strconv.Itoa(p.id)
	defer p.c.report(what, nil)
	for failures := 0; p.ctx.Err() == nil; failures++ {
		next, spans, err := p.c.position(p.ctx, p.id)
		if err == nil && next < 0 {
			next, _, err = p.c.l.bounds(p.ctx, p.c.cfg.Topic, p.id)
		}
		if p.ctx.Err() != nil {
			break
		}
		p.c.report(what, err)
		if err == nil {
			p.begin(next, spans)
			return p.after(next), true
		}
		pause(p.ctx, failures)
	}
	return 0, false
}

// relocate finds the place to read on when the log does not hold the one that
// was asked for: retention removed it, or the log is another one.
func (p *partition) relocate(from int64) (int64, error) {
	first, end, err := p.c.l.bounds(p.ctx, p.c.cfg.Topic, p.id)
	if err != nil || (from >= first && from <= end) {
		return from, err
	}
	p.c.log.Error("the log does not hold the offset to be read next; reading on at its first. "+
		"Either retention removed records before they were read, or the topic was made anew",
		"topic", p.c.cfg.Topic, "partition", p.id, "wanted", from, "first", first, "end", end)
	p.restart(first)
	return first, nil
}

// fetch reads from an offset on, within the budget.
func (p *partition) fetch(from, want int64) (fetched, error) {
	c := p.c
	granted, err := c.budget.takeBytes(p.ctx, &p.budget, min(want, c.l.cfg.FetchBytes))
	if err != nil {
		return fetched{}, err
	}
	maxBytes := granted
	if want > c.l.cfg.FetchBytes {
		maxBytes = want // the broker sends nothing whole for less
	}
	p.mu.Lock()
	skip := p.skip
	p.mu.Unlock()
	got, err := c.l.fetch(p.ctx, c.cfg.Topic, p.id, from, maxBytes, c.l.cfg.FetchWait, skip)
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
	c.budget.adjustBytes(&p.budget, bytes-granted)
	if err != nil {
		return got, err
	}
	p.end.Store(got.highest)
	if n := len(got.recs); n > 0 {
		c.m.Consumed.WithLabelValues(c.group, c.cfg.Topic).Add(float64(n))
		c.m.ConsumedBytes.WithLabelValues(c.group, c.cfg.Topic).Add(float64(values))
	}
	if n := int(got.next-from) - len(got.recs); n > 0 && len(skip) > 0 {
		c.m.Skipped.WithLabelValues(c.group, c.cfg.Topic).Add(float64(n))
	}
	return got, nil
}

// after is the first offset from which on something is to be read: the last
// owner may have finished what comes first.
func (p *partition) after(offset int64) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.skip {
		if offset >= s.first && offset < s.end {
			return s.end
		}
	}
	return offset
}

// hand passes records to the handler as the budget allows.
func (p *partition) hand(to chan<- delivery, recs []*Record, next int64) bool {
	for {
		d := delivery{next: next}
		if len(recs) > 0 {
			n, err := p.c.budget.takeRecords(p.ctx, &p.budget, len(recs))
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

// deliver calls the handler. Records are noted as in flight just before: those
// that never reach it must not be waited for.
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
	p.passOver(d.next)
	if len(d.recs) > 0 {
		p.c.handle(p.ctx, d.recs)
	}
	return true
}

// lag is how many records of the log are not finished, roughly.
func (p *partition) lag() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.started {
		return 0
	}
	return max(0, p.end.Load()-p.lowest())
}

func (p *partition) dropMetadata() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.noMeta = true
}
