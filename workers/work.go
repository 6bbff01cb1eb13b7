package workers

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// Why a request was stopped by us; the cause of its context.
var (
	errCancelled = errors.New("the task was cancelled")
	errDraining  = errors.New("the worker stops")
	errExpired   = errors.New("the task's deadline passed")
	errLost      = errors.New("the partition belongs to another worker now")
)

// origin finishes a record when all tasks of its batches are on their way.
type origin struct {
	rec  *stream.Record
	open atomic.Int32
}

func (o *origin) release() {
	if o.open.Add(-1) == 0 {
		o.rec.Done()
	}
}

// work is one assignment on its way through the worker.
type work struct {
	a        task.Assignment
	batch    string
	from     *origin
	attempts []task.Attempt // made, those before its time here included
	here     int            // made here
	single   bool           // not to be merged again: a merged request failed because of one of its tasks
	started  time.Time      // of the last attempt

	ctx  context.Context //nolint:containedctx // the life of the work: cancelled, lost, or the worker stops
	stop context.CancelCauseFunc
	over atomic.Bool // it has become a result or was written back
	paid atomic.Bool // its credit is not held here any more
}

func (w *work) number() int {
	if n := len(w.attempts); n > 0 {
		return w.attempts[n-1].Number + 1
	}
	return w.a.Attempt
}

// dead reports why the work is not to be run; nil: it is.
func (w *work) dead() error {
	if w.from.rec.Lost() {
		return errLost
	}
	return context.Cause(w.ctx)
}

// live is the index of all work in this process, for cancels. It is sharded
// because every task passes through it twice.
type live struct {
	shards [64]struct {
		mu sync.Mutex
		m  map[task.Key]*work
	}
}

func newLive() *live {
	l := &live{}
	for i := range l.shards {
		l.shards[i].m = map[task.Key]*work{}
	}
	return l
}

func (l *live) shard(k task.Key) *struct {
	mu sync.Mutex
	m  map[task.Key]*work
} {
	var h uint32 = 2166136261
	for i := range len(k.ID) {
		h = (h ^ uint32(k.ID[i])) * 16777619
	}
	return &l.shards[h%uint32(len(l.shards))]
}

func (l *live) add(w *work) {
	k := w.a.Task.Key()
	s := l.shard(k)
	s.mu.Lock()
	s.m[k] = w
	s.mu.Unlock()
}

func (l *live) remove(w *work) {
	k := w.a.Task.Key()
	s := l.shard(k)
	s.mu.Lock()
	if s.m[k] == w { // the same task may be here from another record
		delete(s.m, k)
	}
	s.mu.Unlock()
}

func (l *live) get(k task.Key) *work {
	s := l.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[k]
}

func (l *live) each(f func(*work)) {
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
