package stream

import (
	"context"
	"sync"
	"sync/atomic"
)

// partition is one partition while this process owns it: what was handed out,
// what is finished, and so what may be committed.
//
// The unfinished records hang in a list in the order of their offsets. Its head
// is the offset to commit; whatever else lies between the head and next is
// finished. So Done is a few pointers, and memory grows with what is in flight,
// not with how far apart it is.
type partition struct {
	c      *consumer
	id     int
	ctx    context.Context // ends when the partition is lost or nothing new is to be begun
	cancel context.CancelFunc
	lost   atomic.Bool
	end    atomic.Int64   // of the log, as the last fetch told
	wg     sync.WaitGroup // its goroutines

	mu         sync.Mutex
	started    bool  // the first offset is known
	next       int64 // everything below was handed out or passed over
	head, tail *Record
	inFlight   int    // length of the list
	skip       []span // finished above next, as the last owner's commit said
	highest    int64  // one above the highest finished offset
	dirty      bool   // something finished since the last commit was put together
	committed  int64  // the broker has it; -1 before the first
	noMeta     bool   // the broker refuses our metadata as too long
	budget     share
}

// begin sets where the partition is read from.
func (p *partition) begin(next int64, skip []span) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.started = true
	p.next, p.highest, p.skip = next, next, skip
	p.trim()
}

// restart forgets the past: the log does not hold what was to be read next.
func (p *partition) restart(next int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.skip = nil
	if next >= p.next {
		p.next = next
		p.highest = max(p.highest, next)
	} else {
		// The log is shorter than what was read from it: another log of the same
		// name. Records of the old one that are still in flight say nothing about it.
		for r := p.head; r != nil; {
			after := r.next
			r.prev, r.next, r.finished = nil, nil, true
			p.c.budget.release(&p.budget, 1, r.size())
			r = after
		}
		p.head, p.tail, p.inFlight = nil, nil, 0
		p.next, p.highest, p.committed = next, next, -1
	}
	p.dirty = true
}

// add notes records before they are handed out; they are in order. Offsets
// between them do not exist (compacted, control records) or are finished.
func (p *partition) add(recs []*Record) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range recs {
		r.prev, r.next = p.tail, nil
		if p.tail == nil {
			p.head = r
		} else {
			p.tail.next = r
		}
		p.tail = r
		p.inFlight++
		p.next = r.Offset + 1
	}
	p.trim()
}

// passOver notes that there is nothing to hand out below next.
func (p *partition) passOver(next int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if next > p.next {
		p.next = next
		p.dirty = p.dirty || p.head == nil
		p.trim()
	}
}

// trim drops the spans that lie below next. The caller holds mu.
func (p *partition) trim() {
	for len(p.skip) > 0 && p.skip[0].first <= p.next {
		p.next = max(p.next, p.skip[0].end)
		p.skip = p.skip[1:]
	}
	p.highest = max(p.highest, p.lowest())
}

// done unlinks a record.
func (p *partition) done(r *Record) {
	p.mu.Lock()
	if r.finished || p.lost.Load() {
		p.mu.Unlock()
		return
	}
	r.finished = true
	if r.prev == nil {
		p.head = r.next
	} else {
		r.prev.next = r.next
	}
	if r.next == nil {
		p.tail = r.prev
	} else {
		r.next.prev = r.prev
	}
	r.prev, r.next = nil, nil
	p.inFlight--
	p.highest = max(p.highest, r.Offset+1)
	p.dirty = true
	empty := p.inFlight == 0
	p.mu.Unlock()
	p.c.budget.release(&p.budget, 1, r.size())
	if empty {
		p.c.drained()
	}
}

// lowest is the lowest offset that is not finished. The caller holds mu.
func (p *partition) lowest() int64 {
	if p.head != nil {
		return p.head.Offset
	}
	return p.next
}

// lose ends the ownership: nothing of it is committed any more.
func (p *partition) lose() {
	p.mu.Lock()
	if p.lost.Swap(true) {
		p.mu.Unlock()
		return
	}
	for r := p.head; r != nil; { // free what the list holds on to
		after := r.next
		r.prev, r.next = nil, nil
		r = after
	}
	p.head, p.tail, p.inFlight = nil, nil, 0
	p.mu.Unlock()
	p.cancel()
	p.c.budget.leave(&p.budget)
	p.c.drained()
	if p.c.cfg.OnLost != nil {
		p.c.cfg.OnLost(p.id)
	}
}

// offer is what may be committed.
type offer struct {
	p        *partition
	offset   int64
	metadata string
}

// commitable returns what may be committed, when that changed.
func (p *partition) commitable() (offer, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.started || !p.dirty || p.lost.Load() {
		return offer{}, false
	}
	p.dirty = false
	o := offer{p: p, offset: p.lowest()}
	if !p.noMeta {
		o.metadata = encodeSpans(o.offset, p.spans(), maxMetadata)
	}
	return o, true
}

// spans are the finished offsets above the lowest unfinished one, as far as a
// commit has room for them. The caller holds mu.
func (p *partition) spans() []span {
	const most = maxMetadata / 2 // a span takes more than two bytes
	var spans []span
	for r := p.head; r != nil && len(spans) < most; r = r.next {
		end := p.next
		if r.next != nil {
			end = r.next.Offset
		}
		if end > r.Offset+1 {
			spans = append(spans, span{r.Offset + 1, end})
		}
	}
	for _, s := range p.skip {
		if n := len(spans); n > 0 && spans[n-1].end == s.first {
			spans[n-1].end = s.end
		} else {
			spans = append(spans, s)
		}
	}
	return spans
}

// recommit has the next commit say where the partition stands, also if nothing moved.
func (p *partition) recommit() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dirty = p.dirty || p.committed >= 0
}

// settled notes the outcome of a commit.
func (p *partition) settled(o offer, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ok {
		p.committed = o.offset
	} else {
		p.dirty = true
	}
}

// straggler returns the lowest unfinished record when it lags too far behind
// the highest finished one and was not returned before, and how far it lags.
func (p *partition) straggler(maxSpread int64) (*Record, int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.head == nil || p.lost.Load() {
		return nil, 0
	}
	spread := p.highest - p.head.Offset
	if spread <= maxSpread || p.head.reported {
		return nil, spread
	}
	p.head.reported = true
	return p.head, spread
}

// skipped reports whether the last owner had finished the offset.
func skipped(spans []span, offset int64) bool {
	for _, s := range spans {
		if offset < s.first {
			return false
		}
		if offset < s.end {
			return true
		}
	}
	return false
}
