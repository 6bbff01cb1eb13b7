package feed

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/jobs"
	"github.com/batchyard/batchyard/jobs/files"
	"github.com/batchyard/batchyard/producer"
	"github.com/batchyard/batchyard/task"
)

// Bounds of cancelling.
const (
	cancelPage        = 500
	cancelConcurrency = 16
)

// finish writes the output and ends the job. Tasks without a result get lines of the state unfinished.
func (c *claimed) finish(ctx context.Context, unfinished task.State) error {
	if unfinished == task.Expired && c.FedTasks < c.Tasks {
		// The job would wait for tasks that never come.
		e := task.Event{Action: task.JobCancelRequested, Outcome: task.OutcomeOK, Tenant: c.Tenant, ActorType: task.ActorStage, ResourceType: "job", ResourceID: c.ID, JobID: c.ID}
		if err := c.f.deps.Producer.RecordNow(ctx, e, map[string]any{"reason": "the completion window is over"}); err != nil {
			return err
		}
	}
	output := &lazyFile{ctx: ctx, store: c.f.deps.Files, file: files.File{Tenant: c.Tenant, Purpose: files.BatchOutput, Name: c.ID + "_output.jsonl", JobID: c.ID}}
	failures := &lazyFile{ctx: ctx, store: c.f.deps.Files, file: files.File{Tenant: c.Tenant, Purpose: files.BatchOutput, Name: c.ID + "_error.jsonl", JobID: c.ID}}
	both := []*lazyFile{output, failures}
	defer func() {
		for _, l := range both {
			if l.w != nil {
				l.w.Abort(ctx) // which does nothing after a commit
			}
		}
	}()
	to, errs := bufio.NewWriterSize(output, 256<<10), bufio.NewWriterSize(failures, 64<<10)
	counts, err := c.file(ctx).WriteAnswers(ctx, c.f.deps.Tasks, jobs.Answers{Output: to, Errors: errs, Unfinished: unfinished, Bad: c.Bad})
	if err == nil {
		err = errors.Join(to.Flush(), errs.Flush())
	}
	if err != nil {
		return fmt.Errorf("writing the output of batch %s: %w", c.ID, err)
	}
	return c.end(ctx, both, counts)
}

// end makes the files visible and ends the job, in one transaction.
func (c *claimed) end(ctx context.Context, both []*lazyFile, n jobs.Counts) error {
	to, column := Completed, "completed_at"
	switch {
	case c.Status == Cancelling:
		to, column = Cancelled, "cancelled_at"
	case n.Expired > 0:
		to, column = Expired, "expired_at"
	}
	now := clock.Now().UTC()
	expires := now.Add(c.OutputTTL)
	for _, l := range both { // content first: it may take long
		if l.w != nil {
			l.w.File.ExpiresAt = &expires
			if err := l.w.Finish(); err != nil {
				return err
			}
		}
	}
	tx, err := c.f.deps.Pool.Begin(ctx)
	if err != nil {
		return fmt.Errorf("ending batch %s: %w", c.ID, err)
	}
	defer pg.Rollback(ctx, tx)
	for _, l := range both {
		if l.w != nil {
			if err := l.w.Commit(ctx, tx); err != nil {
				return err
			}
		}
	}
	tag, err := tx.Exec(ctx, `UPDATE file_jobs SET status = $5, `+column+` = $6, output_file_id = nullif($7, ''), error_file_id = nullif($8, ''), completed = $9, failed = $10,
			input_tokens = $11, cached_tokens = $12, output_tokens = $13, reasoning_tokens = $14
		WHERE tenant = $1 AND job_id = $2 AND lease_owner = $3 AND status = $4`,
		c.Tenant, c.ID, c.owner, c.Status, to, now, both[0].id(), both[1].id(), n.Completed, n.Failed, n.Usage.InputTokens, n.Cached, n.Usage.OutputTokens, n.Reasoning)
	if err == nil && tag.RowsAffected() == 0 {
		return errLost
	}
	if err == nil {
		fault.At("feed.before_end")
		err = tx.Commit(ctx)
	}
	if err != nil {
		return fmt.Errorf("ending batch %s: %w", c.ID, err)
	}
	c.changed(ctx, to, map[string]any{"completed": n.Completed, "failed": n.Failed, "output_file_id": both[0].id(), "error_file_id": both[1].id()})
	return nil
}

// cancel cancels what waits, waits for what runs, and finishes the job. Requests that run get ten minutes.
func (c *claimed) cancel(ctx context.Context) (time.Duration, error) {
	if c.Tasks == 0 { // nothing was submitted
		return 0, c.end(ctx, []*lazyFile{{}, {}}, jobs.Counts{})
	}
	late := c.Cancelling != nil && clock.Since(*c.Cancelling) > grace
	states := []task.State{task.Pending, task.Assigned}
	if late {
		states = append(states, task.Running)
	}
	if err := c.cancelUnsure(ctx); err != nil {
		return 0, err
	}
	asked, err := c.cancelKnown(ctx, states)
	if err != nil {
		return 0, err
	}
	known, done, pause, err := c.count(ctx)
	if err != nil {
		return 0, err
	}
	if (known < c.FedTasks || done < known) && !(late && asked == 0) {
		return pause, nil
	}
	return 0, c.finish(ctx, task.Cancelled)
}

// cancelUnsure cancels the tasks of which it is unknown whether Kafka has them, because the process that was submitting
// them died or was stopped.
func (c *claimed) cancelUnsure(ctx context.Context) error {
	if c.FedUntil <= c.FedLine {
		return nil
	}
	var chunk []*producer.Recent
	errDone := errors.New("done")
	err := c.file(ctx).Tasks(ctx, int(c.FedLine), c.Bad, func(line int, t *task.Task) error {
		if int64(line) > c.FedUntil {
			return errDone
		}
		chunk = append(chunk, &producer.Recent{
			ID: t.ID, Tenant: t.Tenant, Model: t.Model, Endpoint: t.Endpoint, Priority: t.Priority, Job: t.JobID, CustomID: t.CustomID, SubmittedAt: clock.Now().UTC(),
		})
		if len(chunk) < cancelPage {
			return nil
		}
		_, err := c.cancelTasks(ctx, chunk)
		chunk = nil
		return err
	})
	if err != nil && !errors.Is(err, errDone) {
		return err
	}
	_, err = c.cancelTasks(ctx, chunk)
	return err
}

// cancelKnown cancels the recorded tasks in one of the states, and returns how many.
func (c *claimed) cancelKnown(ctx context.Context, in []task.State) (asked int64, err error) {
	after := ""
	for {
		rows, err := c.f.deps.Tasks.JobTasks(ctx, task.Key{Tenant: c.Tenant, ID: c.ID}, in, after, cancelPage)
		if err != nil {
			return asked, err
		}
		chunk := make([]*producer.Recent, len(rows))
		for i := range rows {
			r := &rows[i]
			after = r.ID
			chunk[i] = &producer.Recent{
				ID: r.ID, Tenant: r.Tenant, Model: r.Model, Endpoint: r.Endpoint, Priority: r.Priority, Job: r.Job, CustomID: r.CustomID,
				TraceID: r.TraceID, SubmittedAt: r.SubmittedAt, Generation: r.Generation,
			}
			if r.CallbackURL != "" {
				chunk[i].Callback = &task.Callback{URL: r.CallbackURL}
			}
		}
		n, err := c.cancelTasks(ctx, chunk)
		asked += n
		if err != nil || len(rows) < cancelPage {
			return asked, err
		}
	}
}

// cancelTasks cancels those of the tasks that were not cancelled before: Postgres learns of a cancel a little
// later, and a second one would be recorded as a second result.
func (c *claimed) cancelTasks(ctx context.Context, tasks []*producer.Recent) (int64, error) {
	if len(tasks) == 0 {
		return 0, nil
	}
	keys := make([]task.Key, len(tasks))
	for i, t := range tasks {
		keys[i] = t.Key()
	}
	overrides, err := c.f.deps.Overrides.Get(ctx, keys...)
	known := err == nil && len(overrides) == len(tasks) // without Redis, a task may be cancelled twice, which does no harm
	var asked atomic.Int64
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(cancelConcurrency)
	for i, t := range tasks {
		if known && overrides[i].Cancelled {
			continue
		}
		g.Go(func() error {
			asked.Add(1)
			return c.f.deps.Producer.Cancel(gctx, t, c.Origin)
		})
	}
	err = g.Wait()
	return asked.Load(), err
}
