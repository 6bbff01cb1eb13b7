package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/batchyard/batchyard"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/task"
)

// retryConcurrency is how many tasks are retried at the same time.
const retryConcurrency = 8

// maxRetryErrors is how many tasks that could not be retried are named.
const maxRetryErrors = 10

func jobsRetryCommand(c *cli.Env) *cobra.Command {
	var reason string
	cmd := jobCommand(c, &cobra.Command{
		Use: "retry JOB", Short: "Run the failed and expired tasks of a job again",
		Long: `Runs every task of a job again that ended as FAILED or EXPIRED; those that succeeded
keep their answers. The results of the new runs become the answers: wait for them
with "jobs watch", and write the file again with "jobs results". Who asked, and the
reason, go into the audit log.

Exit code 1 if a task could not be retried.`,
		Example: "  batchyard jobs retry nightly-2026-11-21 --reason \"the server was out of memory\"\n  batchyard jobs watch nightly-2026-11-21",
	}, func(ctx context.Context, s *server, id string) error {
		j, err := s.Job(ctx, id)
		if err != nil {
			return fmt.Errorf("job %s: %w", id, err)
		}
		out, err := retryJob(ctx, s, id, reason)
		if c.JSON {
			return errors.Join(c.PrintJSON(out), err)
		}
		if err == nil && out.Retried == 0 {
			c.Printf("job %s: nothing to run again: no task has ended as FAILED or EXPIRED, and %s not finished\n", cli.Plain(id), cli.Counted(j.Total-j.Done, "task"))
			return nil
		}
		c.Printf("job %s: %s again\n", cli.Plain(id), runs(out.Retried))
		return err
	})
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit log")
	return cmd
}

func runs(n int) string {
	if n == 1 {
		return "1 task runs"
	}
	return fmt.Sprintf("%d tasks run", n)
}

// retriedJob is what retry prints as JSON.
type retriedJob struct {
	Job     string `json:"job_id"`
	Retried int    `json:"retried"`
	Refused int    `json:"refused"`
}

// retryJob retries the failed and expired tasks of a job. The error names those that cannot run again.
func retryJob(ctx context.Context, s *server, id, reason string) (retriedJob, error) {
	out := retriedJob{Job: id}
	var mu sync.Mutex
	var errs []error
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(retryConcurrency)
	one := func(taskID string) error {
		_, err := s.Retry(gctx, taskID, reason)
		if err != nil && !refused(err) {
			return err // the others would fail the same way
		}
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			out.Retried++
			return nil
		}
		if out.Refused++; len(errs) < maxRetryErrors {
			errs = append(errs, fmt.Errorf("task %s: %w", taskID, err))
		}
		return nil
	}
	var listing error
	for _, state := range []task.State{task.Failed, task.Expired} {
		for t, err := range s.List(gctx, batchyard.Filter{JobID: id, State: state, Limit: pageSize}) {
			if listing = err; err != nil {
				break
			}
			g.Go(func() error { return one(t.TaskID) })
		}
	}
	if err := g.Wait(); err != nil {
		return out, fmt.Errorf("retrying job %s: %w", id, err)
	}
	if listing != nil {
		return out, fmt.Errorf("retrying job %s: %w", id, listing)
	}
	if more := out.Refused - len(errs); more > 0 {
		errs = append(errs, fmt.Errorf("%d more tasks could not be retried", more))
	}
	return out, cli.WithCode(cli.ExitFailed, errors.Join(errs...))
}
