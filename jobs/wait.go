package jobs

import (
	"context"
	"fmt"
	"time"

	"github.com/batchyard/batchyard/task"
)

// Watch says how a job is watched until it ends.
type Watch struct {
	Job   string // its id
	Tasks int64  // it has ended when this many tasks have; 0: when its state says so
	// Look asks how far the job is. Its errors do not end the wait, because Postgres may be away for
	// a while; ending the context does.
	Look func(ctx context.Context) (*task.Job, error)
	At   <-chan time.Time // when to look
	// Seen, if not nil, gets every answer and error.
	Seen func(j *task.Job, err error)
}

// Wait watches the job until it has ended, and returns how it stands; also when ctx ends first, with
// an error.
func (w Watch) Wait(ctx context.Context) (*task.Job, error) {
	last := &task.Job{JobID: w.Job, State: task.JobRunning, Total: w.Tasks}
	for {
		j, err := w.Look(ctx)
		if err == nil {
			last = j
		}
		if w.Seen != nil && ctx.Err() == nil {
			w.Seen(last, err)
		}
		if err == nil && (w.Tasks > 0 && j.Done >= w.Tasks || w.Tasks == 0 && j.Ended()) {
			return j, nil
		}
		select {
		case <-ctx.Done():
			return last, fmt.Errorf("waiting for job %s, %d of %d tasks have finished: %w", w.Job, last.Done, last.Total, ctx.Err())
		case <-w.At:
		}
	}
}
