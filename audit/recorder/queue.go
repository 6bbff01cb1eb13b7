package recorder

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/batchyard/batchyard/stream"
)

// queue holds records until a writer takes them, a lane for each
// partition. Each topic's share of it is bounded by rows and bytes: whoever has
// more waits, and with it its partition.
//
// A task's events and its result lie in partitions of the same number. A chunk
// takes from both as they were written in time, so that what became of a task is
// one change of its row, not two: behind a backlog that is half of all of them.
//
// Such a pair of partitions is at one writer at a time, whichever is free, so that
// its records stay in order and no writer is idle while there is something to do.
// A writer takes its share of all pairs at once, by time: the rows of a chunk are
// then neighbours in the indexes of the ids, which begin with the time, too. With
// twelve partitions Postgres has to do a tenth less than for one pair after the other.
type queue struct {
	writers  int
	maxRows  int
	maxBytes int64
	wake     chan struct{} // something came

	mu      sync.Mutex
	pairs   map[int32]*pair
	waiting []*pair    // that hold something and are at no writer, the one that waits longest first
	busy    int        // pairs that are at writers
	held    [2]holding // by topic
	room    chan struct{}
}

// pair is the lanes of the two partitions of one number: events, results.
type pair struct {
	lanes   [2][]*entry
	writing bool // a writer has a chunk with records of it
}

// holding is what all lanes of a topic hold.
type holding struct {
	rows  int
	bytes int64
}

// newQueue is a queue for as many writers, with room for a chunk that each of them
// writes and the next, of as many rows and bytes.
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

// put adds a record. When ctx ends while the queue is full it is added all the
// same: the process drains, and what was read is bounded by the reader.
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
	default: // somebody is awake already, and wakes the next
	}
}

// take waits for records and takes what is there, at most as many rows and bytes
// as given but at least one record; nil when ctx ends. Nobody else gets records of
// the same partitions before release was called.
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

// poll takes from a writer's share of the pairs, and when these are empty from the
// others, too. A pair that gave nothing stays before those that did: what did not
// fit begins the next chunk.
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
		p.writing = true
		c = append(c, e)
	}
	q.waiting = slices.DeleteFunc(q.waiting, func(p *pair) bool {
		if p.writing {
			of = append(of, p)
		}
		return p.writing
	})
	q.busy += len(of)
	if len(c) > 0 { // whoever waits for room may look
		close(q.room)
		q.room = make(chan struct{})
	}
	if len(q.waiting) > 0 {
		q.signal() // another writer, or the next take, must not wait
	}
	return c, of
}

// oldest is the pair whose next record was written first; nil when all are empty.
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

// release lets pairs go on, behind the others.
func (q *queue) release(of []*pair) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.busy -= len(of)
	for _, p := range of {
		if p.writing = false; !p.empty() {
			q.waiting = append(q.waiting, p)
		}
	}
	if len(q.waiting) > 0 {
		q.signal()
	}
}

func (p *pair) empty() bool { return len(p.lanes[0]) == 0 && len(p.lanes[1]) == 0 }

// next is the lane whose first record was written earlier. Clocks of two hosts
// may differ: then more rows are written twice, and behind a backlog one topic
// waits for the other by as much as they differ.
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
