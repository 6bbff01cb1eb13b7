package fleet

import (
	"context"
	"errors"
	"sync"
	"time"
)

var errQueueFull = errors.New("the queue for a slot is full")

// slots is the capacity of a device: `limit` requests at a time, first come first
// served. A freed slot is handed to the longest-waiting request while the lock is
// held, so no request can overtake.
type slots struct {
	limit, bound int
	epoch        time.Time

	mu         sync.Mutex
	running    int
	waiting    int
	maxRunning int
	head, tail *waiter
	busy       time.Duration // slot time used until `since`
	since      time.Duration
}

type waiter struct {
	granted    chan struct{}
	prev, next *waiter
	queued     bool
}

func newSlots(limit, bound int) *slots {
	return &slots{limit: limit, bound: bound, epoch: time.Now()}
}

// acquire takes a slot, waiting in the queue for one. It returns errQueueFull
// immediately if the queue is full, and the context's error if the client leaves;
// then it holds neither a slot nor a place in the queue.
func (s *slots) acquire(ctx context.Context) error {
	s.mu.Lock()
	if s.running < s.limit {
		s.account()
		s.running++
		s.maxRunning = max(s.maxRunning, s.running)
		s.mu.Unlock()
		return nil
	}
	if s.waiting >= s.bound {
		s.mu.Unlock()
		return errQueueFull
	}
	w := &waiter{granted: make(chan struct{}), prev: s.tail, queued: true}
	if s.tail == nil {
		s.head = w
	} else {
		s.tail.next = w
	}
	s.tail = w
	s.waiting++
	s.mu.Unlock()

	select {
	case <-w.granted:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.queued {
		s.unlink(w)
	} else {
		// The slot was granted just as the client left: pass it on.
		s.free()
	}
	return ctx.Err()
}

func (s *slots) release() {
	s.mu.Lock()
	s.free()
	s.mu.Unlock()
}

// free hands the slot to the first request in the queue, if any. The caller holds
// mu.
func (s *slots) free() {
	if w := s.head; w != nil {
		s.unlink(w)
		close(w.granted)
		return // the slot stays busy, with a new request
	}
	s.account()
	s.running--
}

func (s *slots) unlink(w *waiter) {
	if w.prev == nil {
		s.head = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		s.tail = w.prev
	} else {
		w.next.prev = w.prev
	}
	w.prev, w.next, w.queued = nil, nil, false
	s.waiting--
}

// account adds the slot time since the last change. The caller holds mu.
func (s *slots) account() {
	now := time.Since(s.epoch)
	s.busy += time.Duration(s.running) * (now - s.since)
	s.since = now
}

func (s *slots) fill(st *Stats) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.account()
	st.Running, st.Waiting, st.MaxRunning, st.BusySlotTime = s.running, s.waiting, s.maxRunning, s.busy
}
