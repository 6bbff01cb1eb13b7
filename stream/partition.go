package stream

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/batchyard/batchyard/stream/internal/budget"
	"github.com/batchyard/batchyard/stream/internal/offsets"
)

// partition is a partition while this process owns it. It knows which records were handed out
// and which are finished, and therefore what may be committed.
//
// The unfinished records form a linked list in the order of their offsets. The head's offset is
// the one to commit; every other offset between the head and next is finished. So Done updates a
// few pointers, and memory grows with the number of records in flight, not with the distance
// between them.
type partition struct {
	c      *consumer
	id     int
	ctx    context.Context // ends when the partition is lost or the consumer drains
	cancel context.CancelFunc
	lost   atomic.Bool
	end    atomic.Int64   // of the log, from the last fetch
	wg     sync.WaitGroup // its goroutines
	rest   *undecoded     // of the last fetch; used only by run
	heard  atomic.Bool    // a fetch was answered since upToDate was last asked
	wake   chan struct{}  // there are records in back

	mu           sync.Mutex
	started      bool   // the first offset is known
	topic        string // id of the topic that next belongs to; empty: unknown
	lives        int    // how often the topic was recreated since
	next         int64  // every offset below was handed out or skipped
	head, tail   *Record
	inFlight     int            // length of the list
	inherited    []offsets.Span // finished above next, from the last owner's commit
	highest      int64          // one above the highest finished offset
	dirty        bool           // something finished since the last commit was prepared
	committed    int64          // acknowledged by the broker; -1 before the first commit
	omitMetadata bool           // the broker refuses metadata of this length
	back         []*Record      // to be handed out again now
	resting      int            // records that wait to be handed out again
	target       int64          // end of the log at some time; once next is there, all of that was handed out; -1: not known yet
	budget       budget.Share
}

// begin sets the offset at which reading starts.
func (p *partition) begin(next int64, skip []offsets.Span, topic string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.started, p.topic = true, topic
	p.next, p.highest, p.inherited = next, next, skip
	p.dropPassedSpans()
}

// startOver continues at next in a topic that was recreated. Records in flight belong to the old one:
// the stage finishes what it has of them, but they must not be committed.
func (p *partition) startOver(next int64, topic string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for r := p.head; r != nil; {
		after := r.next
		r.prev, r.next = nil, nil
		p.forget(r)
		r = after
	}
	p.head, p.tail, p.inFlight, p.inherited = nil, nil, 0, nil
	p.resting, p.target = 0, -1
	p.next, p.highest, p.committed, p.topic = next, next, -1, topic
	p.lives++
	p.dirty = true
}

// forget makes Done do nothing for a record. The caller holds mu.
func (p *partition) forget(r *Record) {
	p.noteEnd(r)
	r.finished = true
	p.c.budget.Release(&p.budget, 1, r.size())
}

// add registers records before they are handed out, in order. Offsets between them do not exist
// (compacted, control records) or are finished.
func (p *partition) add(d delivery) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d.life != p.lives { // the topic was recreated after they were read
		for _, r := range d.recs {
			p.forget(r)
		}
		return
	}
	for _, r := range d.recs {
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
	// There is nothing more to hand out below next.
	if d.next > p.next {
		p.next = d.next
		p.dirty = p.dirty || p.head == nil
	}
	p.dropPassedSpans()
}

// dropPassedSpans drops the inherited spans below next. The caller holds mu.
func (p *partition) dropPassedSpans() {
	for len(p.inherited) > 0 && p.inherited[0].First <= p.next {
		p.next = max(p.next, p.inherited[0].End)
		p.inherited = p.inherited[1:]
	}
	p.highest = max(p.highest, p.lowestUnfinished())
}

// finish unlinks a record. It does nothing for one that is finished or lost.
func (p *partition) finish(r *Record) {
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
	p.noteEnd(r)
	p.inFlight--
	p.highest = max(p.highest, r.Offset+1)
	p.dirty = true
	empty := p.inFlight == 0
	p.mu.Unlock()
	p.c.budget.Release(&p.budget, 1, r.size())
	if empty {
		p.c.drained()
	}
}

// lowestUnfinished returns the lowest offset that is not finished. The caller holds mu.
func (p *partition) lowestUnfinished() int64 {
	if p.head != nil {
		return p.head.Offset
	}
	return p.next
}

// lose ends the ownership: nothing more of the partition is committed.
func (p *partition) lose() {
	p.mu.Lock()
	if p.lost.Swap(true) {
		p.mu.Unlock()
		return
	}
	for r := p.head; r != nil; { // let the garbage collector free each record on its own
		after := r.next
		r.prev, r.next = nil, nil
		p.noteEnd(r)
		r = after
	}
	p.head, p.tail, p.inFlight, p.resting = nil, nil, 0, 0
	p.mu.Unlock()
	p.cancel()
	p.c.budget.Leave(&p.budget)
	p.c.drained()
	if p.c.cfg.OnLost != nil {
		p.c.cfg.OnLost(p.id)
	}
}

// commitCandidate is an offset that may be committed.
type commitCandidate struct {
	p        *partition
	offset   int64
	metadata string
}

// nextCommit returns what to commit; false when nothing changed since the last time.
func (p *partition) nextCommit() (commitCandidate, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.started || !p.dirty || p.lost.Load() {
		return commitCandidate{}, false
	}
	p.dirty = false
	o := commitCandidate{p: p, offset: p.lowestUnfinished()}
	if !p.omitMetadata {
		room := offsets.MaxMetadata - len(offsets.OfTopic(p.topic, ""))
		o.metadata = offsets.OfTopic(p.topic, offsets.Encode(o.offset, p.finishedSpans(), room))
	}
	return o, true
}

// finishedSpans returns the finished offsets above the lowest unfinished one, as many as fit
// into a commit. The caller holds mu.
func (p *partition) finishedSpans() []offsets.Span {
	const most = offsets.MaxMetadata / 2 // a span takes more than two bytes
	var spans []offsets.Span
	for r := p.head; r != nil && len(spans) < most; r = r.next {
		end := p.next
		if r.next != nil {
			end = r.next.Offset
		}
		if end > r.Offset+1 {
			spans = append(spans, offsets.Span{First: r.Offset + 1, End: end})
		}
	}
	for _, s := range p.inherited {
		if n := len(spans); n > 0 && spans[n-1].End == s.First {
			spans[n-1].End = s.End
		} else {
			spans = append(spans, s)
		}
	}
	return spans
}

// recommit makes the next commit repeat the current offset even if nothing moved.
func (p *partition) recommit() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dirty = p.dirty || p.committed >= 0
}

// commitAcked notes that the broker has the commit.
func (p *partition) commitAcked(o commitCandidate) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.committed = o.offset
}

// commitFailed makes the next commit try again.
func (p *partition) commitFailed() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dirty = true
}

// straggler returns how far the lowest unfinished record lags behind the highest finished one,
// and the record itself when that is too far and it was not returned before.
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

// upToDate reports whether everything that was in the log at some time since it was last true has been
// handed out, and the broker has answered since it was last asked. A stage that is stuck, or further behind
// than its budget allows, is not up to date.
func (p *partition) upToDate() bool {
	heard := p.heard.Swap(false)
	p.mu.Lock()
	defer p.mu.Unlock()
	if !heard || !p.started || p.lost.Load() {
		return false
	}
	reached := p.target >= 0 && p.next >= p.target
	if reached || p.target < 0 {
		p.target = p.end.Load()
	}
	return reached
}
