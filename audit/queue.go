package audit

import (
	"context"
	"sync"
)

// queue holds decoded records until the writer takes them. It is bounded by
// rows and bytes: whoever has more waits, and with it its partition.
type queue struct {
	maxRows  int
	maxBytes int64
	wake     chan struct{} // something came

	mu    sync.Mutex
	items []*entry
	rows  int
	bytes int64
	room  chan struct{} // closed when something was taken
}

func newQueue(maxRows int, maxBytes int64) *queue {
	return &queue{maxRows: maxRows, maxBytes: maxBytes, wake: make(chan struct{}, 1), room: make(chan struct{})}
}

// put adds a record. When ctx ends while the queue is full it is added all the
// same: the process drains, and what was read is bounded by the reader.
func (q *queue) put(ctx context.Context, e *entry) {
	q.mu.Lock()
	for len(q.items) > 0 && (q.rows+e.rows() > q.maxRows || q.bytes+e.bytes > q.maxBytes) && ctx.Err() == nil {
		room := q.room
		q.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
		}
		q.mu.Lock()
	}
	q.items = append(q.items, e)
	q.rows += e.rows()
	q.bytes += e.bytes
	q.mu.Unlock()
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

func (q *queue) poll(rows int, bytes int64) chunk {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for n < len(q.items) {
		e := q.items[n]
		if n > 0 && (e.rows() > rows || e.bytes > bytes) {
			break
		}
		rows, bytes = rows-e.rows(), bytes-e.bytes
		q.rows, q.bytes = q.rows-e.rows(), q.bytes-e.bytes
		n++
	}
	if n == 0 {
		return nil
	}
	c := make(chunk, n)
	copy(c, q.items)
	rest := copy(q.items, q.items[n:])
	clear(q.items[rest:])
	q.items = q.items[:rest]
	if rest > 0 { // the next take must not wait
		select {
		case q.wake <- struct{}{}:
		default:
		}
	}
	close(q.room)
	q.room = make(chan struct{})
	return c
}
