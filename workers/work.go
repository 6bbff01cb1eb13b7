package workers

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
)

// Why we stopped a request: the cause of its context.
var (
	errCancelled = errors.New("the task was cancelled")
	errDraining  = errors.New("the worker is stopping")
	errExpired   = errors.New("the task's deadline passed")
	errLost      = errors.New("the partition belongs to another worker now")
)

// work is one assignment on its way through the worker.
type work struct {
	assignment    task.Assignment
	batch         string
	read          time.Time      // when its batch was read
	ack           *records.Ack   // of the record that it came in
	mark          store.Mark     // says that it is finished
	attempts      []task.Attempt // made so far, on other devices too
	localAttempts int            // made here
	started       time.Time      // of the last attempt, by the clock of all processes
	began         time.Time      // the same by this machine's clock
	share         share          // of the request of the last attempt that ended

	ctx            context.Context //nolint:containedctx // ends when the work is cancelled or lost, or the worker stops
	stop           context.CancelCauseFunc
	concluded      atomic.Bool // it has become a result or was written back
	creditReturned atomic.Bool // its credit is no longer held here
}

// share is a task's place in a request to a device.
type share struct {
	tasks int // that the request asked for: more than one if it was batched
	index int // of this one
}

func newWork(ctx context.Context, a task.Assignment, batch string, ack *records.Ack) *work {
	w := &work{assignment: a, batch: batch, ack: ack}
	if p := a.Task.Progress; p != nil {
		w.attempts = append(w.attempts, p.Attempts...)
	}
	w.ctx, w.stop = context.WithCancelCause(ctx)
	return w
}

func (w *work) task() *task.Task { return &w.assignment.Task }

// ownModel returns the device's name of the task's model; empty if it does not differ.
func (w *work) ownModel() string { return w.assignment.Device.Model }

// number returns the number of the next attempt.
func (w *work) number() int {
	if n := len(w.attempts); n > 0 {
		return w.attempts[n-1].Number + 1
	}
	return w.assignment.Attempt
}

// stopCause returns why the work must not run; nil if it may.
func (w *work) stopCause() error {
	if w.ack.Lost() {
		return errLost
	}
	return context.Cause(w.ctx)
}

// expired reports whether the task's deadline has passed.
func (w *work) expired(now time.Time) bool {
	deadline := w.task().Deadline
	return !deadline.IsZero() && !deadline.After(now)
}

// taskIndex finds the work of a task in this process, for cancels. It is sharded because every task
// goes through it twice.
type taskIndex struct {
	shards [64]taskShard
}

type taskShard struct {
	mu sync.Mutex
	m  map[task.Key]*work
}

func newTaskIndex() *taskIndex {
	l := &taskIndex{}
	for i := range l.shards {
		l.shards[i].m = map[task.Key]*work{}
	}
	return l
}

func (l *taskIndex) shard(k task.Key) *taskShard {
	var h uint32 = 2166136261 // FNV-1a
	for i := range len(k.ID) {
		h = (h ^ uint32(k.ID[i])) * 16777619
	}
	return &l.shards[h%uint32(len(l.shards))]
}

func (l *taskIndex) add(w *work) {
	k := w.task().Key()
	s := l.shard(k)
	s.mu.Lock()
	s.m[k] = w
	s.mu.Unlock()
}

func (l *taskIndex) remove(w *work) {
	k := w.task().Key()
	s := l.shard(k)
	s.mu.Lock()
	if s.m[k] == w { // the same task may be here from another record
		delete(s.m, k)
	}
	s.mu.Unlock()
}

func (l *taskIndex) get(k task.Key) *work {
	s := l.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[k]
}

// each calls f with every piece of work, under no lock.
func (l *taskIndex) each(f func(*work)) {
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		all := make([]*work, 0, len(s.m))
		for _, w := range s.m {
			all = append(all, w)
		}
		s.mu.Unlock()
		for _, w := range all {
			f(w)
		}
	}
}
