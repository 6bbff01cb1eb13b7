package stream

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/batchyard/batchyard/stream/internal/budget"
	"github.com/batchyard/batchyard/stream/internal/offsets"
	"github.com/batchyard/batchyard/stream/internal/tracker"
)

// partition is a partition while this process owns it.
type partition struct {
	c      *consumer
	id     int
	ctx    context.Context // ends when the partition is lost or the consumer drains
	cancel context.CancelFunc
	lost   atomic.Bool
	end    atomic.Int64   // of the log, from the last fetch
	began  time.Time      // when it was gained
	wg     sync.WaitGroup // its goroutines
	rest   *undecoded     // of the last fetch; used only by run
	heard  atomic.Bool    // a fetch was answered since upToDate was last asked

	readable              atomic.Int64              // the end of what is committed, from the last fetch
	delivering, recalling atomic.Pointer[time.Time] // since when the handler runs; nil: it does not

	wake chan struct{} // there are records in back

	mu       sync.Mutex
	tracker  tracker.Tracker // what is finished, and may be committed
	owned    *Ownership      // of the topic as it is; another one after it was recreated
	inFlight int             // unfinished records in memory; the others were set aside
	wanted   []Wanted        // to be read again
	recalls  chan struct{}   // there are such
	back     []*Record       // to be handed out again now
	resting  int             // records in flight that wait to be handed out again
	refused  int             // records in flight that were handed out again, or wait for it
	target   int64           // end of the log at some time; once the tracker is there, all of that was handed out; -1: not known yet
	budget   budget.Share
}

// newPartition returns a partition that was gained; its context ends with ctx.
func newPartition(ctx context.Context, c *consumer, id int) *partition {
	p := &partition{c: c, id: id, began: time.Now(), tracker: tracker.New(), recalls: make(chan struct{}, 1), wake: make(chan struct{}, 1), target: -1}
	p.owned = &Ownership{p: p}
	p.ctx, p.cancel = context.WithCancel(ctx)
	return p
}

// begin sets the offset at which reading starts.
func (p *partition) begin(next int64, skip []offsets.Span, topic string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tracker.Begin(next, skip, topic)
}

// startOver continues at next in a topic that was recreated. Records in flight belong to the old one:
// the stage finishes what it has of them, but they must not be committed. Those that were set aside are
// lost with it.
func (p *partition) startOver(next int64, topic string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.owned.lost.Store(true)
	p.owned = &Ownership{p: p}
	p.forgetRecords()
	p.target = -1
	p.tracker.StartOver(next, topic)
}

// forgetRecords makes no record that was handed out count any more. The caller holds mu.
func (p *partition) forgetRecords() {
	p.c.refusals.Remove(p.c.cfg.Topic, p.refused)
	p.inFlight, p.wanted, p.resting, p.refused = 0, nil, 0, 0
}

// add registers records before they are handed out, in order.
func (p *partition) add(d delivery) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range d.recs {
		r.owned = d.owned
	}
	if d.owned != p.owned { // the topic was recreated after they were read
		return
	}
	for _, r := range d.recs {
		p.tracker.Add(r.Offset)
		p.inFlight++
	}
	p.tracker.Advance(d.next)
}

// letGo is how a record leaves memory.
type letGo int

const (
	finished letGo = iota
	setAside       // it is read again later
)

// release takes a record out of memory. It does nothing for one that has left already, is lost, or was
// superseded. One that is set aside does not count as refused any more: it is read again.
func (p *partition) release(r *Record, how letGo) {
	p.mu.Lock()
	if r.released || p.lost.Load() {
		p.mu.Unlock()
		return
	}
	r.released = true
	empty := false
	if r.owned == p.owned { // otherwise it is a record of a topic that was recreated
		p.inFlight--
		empty = p.inFlight == 0
		if how == finished {
			p.tracker.Finish(r.Offset)
		}
		if r.tries > 0 {
			p.refused--
			p.c.refusals.Remove(p.c.cfg.Topic, 1)
		}
	}
	p.mu.Unlock()
	p.c.budget.Release(&p.budget, 1, r.size())
	if empty {
		p.c.drained()
	}
}

// lose ends the ownership: nothing more of the partition is committed.
func (p *partition) lose() {
	p.mu.Lock()
	if p.lost.Swap(true) {
		p.mu.Unlock()
		return
	}
	p.owned.lost.Store(true)
	p.forgetRecords()
	p.tracker.Clear()
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
	if p.lost.Load() {
		return commitCandidate{}, false
	}
	offset, metadata, ok := p.tracker.Commit()
	return commitCandidate{p, offset, metadata}, ok
}

// track changes the tracker.
func (p *partition) track(change func(*tracker.Tracker)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.tracker)
}

// upToDate reports whether everything that was in the log at some time since it was last true has been
// handed out, and the broker has answered since it was last asked. A stage that is stuck, or further behind
// than its budget allows, is not up to date.
func (p *partition) upToDate() bool {
	heard := p.heard.Swap(false)
	p.mu.Lock()
	defer p.mu.Unlock()
	if !heard || !p.tracker.Started() || p.lost.Load() {
		return false
	}
	reached := p.target >= 0 && p.tracker.Next() >= p.target
	if reached || p.target < 0 {
		p.target = p.end.Load()
	}
	return reached
}
