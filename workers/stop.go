package workers

import (
	"context"

	"github.com/batchyard/batchyard/task"
)

// watchCancels stops tasks when they are cancelled.
func (s *Workers) watchCancels(ctx context.Context) {
	err := s.deps.Cancels.WatchCancels(ctx, s.cancelTasks, func() { s.recheckCancels(ctx) })
	if err != nil && ctx.Err() == nil {
		s.deps.Logger.Error("watching cancelled tasks ended", "error", err)
	}
}

// cancelTasks stops those of the tasks that are here: running requests end, queued ones are skipped.
func (s *Workers) cancelTasks(keys []task.Key) {
	for _, k := range keys {
		if w := s.tasks.get(k); w != nil {
			s.stopWork(w, errCancelled)
		}
	}
}

// stopWork stops a task. If it waits for a retry it ends now; otherwise its runner notices.
func (s *Workers) stopWork(w *work, cause error) {
	w.stop(cause)
	if s.backoffs.drop(w) {
		s.abandon(w, cause, nil)
	}
}

// recheckCancels looks for tasks that were cancelled while Redis was unreachable.
func (s *Workers) recheckCancels(ctx context.Context) {
	var keys []task.Key
	s.tasks.each(func(w *work) { keys = append(keys, w.task().Key()) })
	marked, err := s.deps.Cancels.Cancelled(ctx, keys...)
	if err != nil {
		return // Redis is unreachable again; the next reconnect checks again
	}
	var cancelled []task.Key
	for i, k := range keys {
		if marked[i] {
			cancelled = append(cancelled, k)
		}
	}
	s.cancelTasks(cancelled)
}

// partitionLost stops the tasks of partitions that have moved to another worker, which runs them.
func (s *Workers) partitionLost(partition int) {
	s.finished.forget(partition)
	s.mu.Lock()
	for id, r := range s.runners {
		if r.partition == partition { // the breaker is the next owner's too
			r.retired.Store(true)
			delete(s.runners, id)
		}
	}
	s.mu.Unlock()
	s.stopLost()
}

// stopLost stops the tasks that another worker runs from now on, and those whose records are read again.
func (s *Workers) stopLost() {
	s.tasks.each(func(w *work) {
		if w.ack.Lost() {
			s.stopWork(w, errLost)
		}
	})
}

// giveBackCalls gives back the tasks of calls that were not made.
func (s *Workers) giveBackCalls(calls []*call) {
	for _, c := range calls {
		for _, w := range c.works {
			if cause := w.stopCause(); cause != nil {
				s.abandon(w, cause, nil)
			} else {
				s.giveBack(w, nil)
			}
		}
	}
}
