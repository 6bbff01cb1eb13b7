package recorder

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/batchyard/batchyard/stream"
)

// queue holds records until a writer takes them, in a lane for each partition. The rows and bytes
// of each topic are bounded: put waits, and with it the partition's consumer.
//
// A task's events and its result are in partitions of the same number. A chunk takes records from
// both in the order of time, so that what happened to a task changes its row once, not twice.
// Behind a backlog that saves half of all changes.
//
// Such a pair of partitions is with one writer at a time, any that is free, so that its records
// stay in order and no writer is idle while there is work. A writer takes its share of all pairs at
// once, by time: the rows of a chunk are then neighbours in the indexes on ids, which begin with
// the time, too. With twelve partitions that saves a tenth of Postgres' work over one pair after
// the other.
type queue struct {
	writers  int
	maxRows  int
	maxBytes int64
	wake     chan struct{} // something was put

	mu      sync.Mutex
	pairs   map[int32]*pair
	waiting []*pair    // pairs that have records and are with no writer, the longest waiting first
	busy    int        // number of pairs that are with writers
	held    [2]holding // by lane
	room    chan struct{}
}

// pair is the lanes of two partitions with the same number.
type pair struct {
	lanes   [2][]*entry
	writing bool      // a writer has records of it
	taken   time.Time // when the first of them was written to the log
	moved   time.Time // since when nothing of it was recorded although there was something to record
}

// holding is what all lanes of a topic hold.
type holding struct {
	rows  int
	bytes int64
}

// newQueue returns a queue with room for two chunks per writer: the one that it writes and the
// next.
func newQueue(writers, chunkRows int, chunkBytes int64) *queue {
	return &queue{writers: writers, maxRows: 2 * writers * chunkRows, maxBytes: 2 * int64(writers) * chunkBytes, wake: make(chan struct{}, 1), pairs: map[int32]*pair{}, room: make(chan struct{})}
}

// The lanes of a pair.
const (
	eventsLane = iota
	resultsLane
)

func laneOf(e *entry) int {
	if e.part.Topic == stream.Events {
		return eventsLane
	}
	return resultsLane
}

// put adds a record, and waits while the queue is full. If ctx ends it adds the record all the
// same: the process drains, and the reader bounds what was read.
func (q *queue) put(ctx context.Context, e *entry) {
	lane := laneOf(e)
	q.mu.Lock()
	for h := &q.held[lane]; h.rows > 0 && (h.rows+e.rows() > q.maxRows || h.bytes+e.bytes > q.maxBytes) && ctx.Err() == nil; {
		room := q.room
		q.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
		}
		q.mu.Lock()
	}
	p := q.pairs[e.part.Partition]
	if p == nil { // as many as there are partitions
		p = &pair{}
		q.pairs[e.part.Partition] = p
	}
	if p.empty() && !p.writing {
		q.waiting = append(q.waiting, p)
		p.moved = time.Now()
	}
	p.lanes[lane] = append(p.lanes[lane], e)
	q.held[lane].rows += e.rows()
	q.held[lane].bytes += e.bytes
	q.mu.Unlock()
	q.signal()
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default: // a writer is awake already, and wakes the next
	}
}

// take waits for records and takes what there is, at most so many rows and bytes but at least one
// record; nil when ctx ends. No one else gets records of the same partitions until release is
// called.
func (q *queue) take(ctx context.Context, rows int, bytes int64) (c chunk, release func()) {
	for {
		if c, of := q.poll(rows, bytes); len(c) > 0 {
			return c, func() { q.release(of) }
		}
		select {
		case <-q.wake:
		case <-ctx.Done():
			return nil, func() {}
		}
	}
}

// poll takes from a writer's share of the pairs, and if they are empty from the others. A pair that
// gave nothing stays before those that did, so that a record that did not fit begins the next
// chunk.
func (q *queue) poll(rows int, bytes int64) (c chunk, of []*pair) {
	q.mu.Lock()
	defer q.mu.Unlock()
	share := min((len(q.waiting)+q.busy+q.writers-1)/q.writers, len(q.waiting))
	for len(q.waiting) > 0 {
		p := oldest(q.waiting[:share])
		if len(c) == 0 {
			p = q.waiting[0]
		}
		if p == nil {
			if share == len(q.waiting) {
				break
			}
			share++
			continue
		}
		lane := p.next()
		e := p.lanes[lane][0]
		if len(c) > 0 && (e.rows() > rows || e.bytes > bytes) {
			break
		}
		rows, bytes = rows-e.rows(), bytes-e.bytes
		q.held[lane].rows -= e.rows()
		q.held[lane].bytes -= e.bytes
		p.lanes[lane][0] = nil
		p.lanes[lane] = p.lanes[lane][1:]
		if !p.writing {
			p.taken, p.writing = e.at, true
		}
		c = append(c, e)
	}
	q.waiting = slices.DeleteFunc(q.waiting, func(p *pair) bool {
		if p.writing {
			of = append(of, p)
		}
		return p.writing
	})
	q.busy += len(of)
	if len(c) > 0 { // put may look again
		close(q.room)
		q.room = make(chan struct{})
	}
	if len(q.waiting) > 0 {
		q.signal() // another writer, or the next take, must not wait
	}
	return c, of
}

// oldest returns the pair whose next record was written first; nil if all are empty.
func oldest(ps []*pair) (first *pair) {
	var at time.Time
	for _, p := range ps {
		if p.empty() {
			continue
		}
		if t := p.lanes[p.next()][0].at; first == nil || t.Before(at) {
			first, at = p, t
		}
	}
	return first
}

// release lets pairs be taken again, after the others.
func (q *queue) release(of []*pair) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.busy -= len(of)
	for _, p := range of {
		if p.writing = false; !p.empty() {
			q.waiting = append(q.waiting, p)
			p.moved = time.Now()
		}
	}
	if len(q.waiting) > 0 {
		q.signal()
	}
}

// moved notes that records were recorded whose pairs are still with a writer.
func (q *queue) moved(c chunk) {
	now := time.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, e := range c {
		if p := q.pairs[e.part.Partition]; p != nil {
			p.moved = now
		}
	}
}

// Oldest returns when the oldest record that is not recorded was written to the log, and since when
// nothing of some partition was recorded although records wait; zero if nothing waits.
func (q *queue) Oldest() (written, stuck time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, p := range q.pairs {
		at := p.taken
		switch {
		case p.writing:
		case p.empty():
			continue
		default:
			at = p.lanes[p.next()][0].at
		}
		if written.IsZero() || at.Before(written) {
			written = at
		}
		if stuck.IsZero() || p.moved.Before(stuck) {
			stuck = p.moved
		}
	}
	return written, stuck
}

func (p *pair) empty() bool { return len(p.lanes[0]) == 0 && len(p.lanes[1]) == 0 }

// next returns the lane whose first record was written earlier. If the clocks of two hosts differ,
// more rows are changed twice, and behind a backlog one topic waits for the other by the
// difference.
func (p *pair) next() int {
	switch {
	case len(p.lanes[0]) == 0:
		return 1
	case len(p.lanes[1]) == 0:
		return 0
	case p.lanes[1][0].at.Before(p.lanes[0][0].at):
		return 1
	}
	return 0
}
