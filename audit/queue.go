package audit

import (
	"context"
	"sync"

	"github.com/batchyard/batchyard/stream"
)

// queue holds decoded records until the writer takes them, a lane for each
// partition. Each topic's share of it is bounded by rows and bytes: whoever has
// more waits, and with it its partition.
//
// A task's events and its result lie in partitions of the same number. A chunk
// takes from both as they were written in time, so that what became of a task is
// one change of its row, not two: behind a backlog that is half of all of them.
type queue struct {
	maxRows  int
	maxBytes int64
	wake     chan struct{} // something came

	mu      sync.Mutex
	pairs   map[int]*pair
	waiting []*pair    // that hold something, the one that waits longest first
	held    [2]holding // by topic
	room    chan struct{}
}

// pair is the lanes of the two partitions of one number: events, results.
type pair struct{ lanes [2][]*entry }

// holding is what all lanes of a topic hold.
type holding struct {
	rows  int
	bytes int64
}

func newQueue(maxRows int, maxBytes int64) *queue {
	return &queue{maxRows: maxRows, maxBytes: maxBytes, wake: make(chan struct{}, 1), pairs: map[int]*pair{}, room: make(chan struct{})}
}

func laneOf(e *entry) int {
	if e.part.topic == stream.Events {
		return 0
	}
	return 1
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
	p := q.pairs[e.part.partition]
	if p == nil { // as many as there are partitions
		p = &pair{}
		q.pairs[e.part.partition] = p
	}
	if p.empty() {
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
	default: // the writer is awake already
	}
}

// take waits for records and takes what is there, at most as many rows and bytes
// as given but at least one record; nil when ctx ends.
func (q *queue) take(ctx context.Context, rows int, bytes int64) chunk {
	for {
		if c := q.poll(rows, bytes); len(c) > 0 {
			return c
		}
		select {
		case <-q.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

// poll takes from one pair after the other, so that a chunk is a long stretch of
// few partitions rather than a short one of all.
func (q *queue) poll(rows int, bytes int64) (c chunk) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.waiting) > 0 {
		p, before := q.waiting[0], len(c)
		for !p.empty() {
			lane := p.next()
			e := p.lanes[lane][0]
			if len(c) > 0 && (e.rows() > rows || e.bytes > bytes) {
				q.signal() // the next take must not wait
				if len(c) == before {
					p = nil // it had nothing of this chunk: the next begins with it
				}
				q.passed(p)
				return c
			}
			rows, bytes = rows-e.rows(), bytes-e.bytes
			q.held[lane].rows -= e.rows()
			q.held[lane].bytes -= e.bytes
			p.lanes[lane][0] = nil
			p.lanes[lane] = p.lanes[lane][1:]
			c = append(c, e)
		}
		q.waiting[0] = nil
		q.waiting = q.waiting[1:]
	}
	if len(c) > 0 {
		q.passed(nil)
	}
	return c
}

// passed lets others have their turn: the pair that a chunk ended in goes behind
// them, and whoever waits for room may look.
func (q *queue) passed(p *pair) {
	if p != nil {
		q.waiting = append(q.waiting[1:], p)
	}
	close(q.room)
	q.room = make(chan struct{})
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
