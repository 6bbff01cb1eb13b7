package jobs

import (
	"context"
	"fmt"
	"time"

	"github.com/batchyard/batchyard/task"
)

// Counts is the progress of a job.
type Counts struct {
	Total   int // tasks of the job
	ByState map[task.State]int64
}

// Done returns how many tasks have finished.
func (c Counts) Done() (n int) {
	for s, k := range c.ByState {
		if s.Terminal() {
			n += int(k)
		}
	}
	return n
}

// Wait calls counts whenever look fires, until every task of the plan has finished or ctx
// ends. progress, if not nil, gets each count. It gets errors of counts, too; they do not
// end the wait, because Postgres may be away for a while.
func (p *Plan) Wait(ctx context.Context, counts func(context.Context) (map[task.State]int64, error), look <-chan time.Time, progress func(Counts, error)) (Counts, error) {
	c := Counts{Total: p.Tasks}
	for {
		by, err := counts(ctx)
		if err == nil {
			c.ByState = by
		}
		if progress != nil && ctx.Err() == nil {
			progress(c, err)
		}
		if err == nil && c.Done() >= c.Total {
			return c, nil
		}
		select {
		case <-ctx.Done():
			return c, fmt.Errorf("waiting for job %s, %d of %d tasks have finished: %w", p.Job, c.Done(), c.Total, ctx.Err())
		case <-look:
		}
	}
}
