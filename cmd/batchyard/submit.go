package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/jobs"
	"github.com/batchyard/batchyard/task"
)

// lookEvery is how often submit asks the server how far the job is.
const lookEvery = 500 * time.Millisecond

// strangeAfter is how long tasks of a job may stay unknown while nothing runs.
const strangeAfter = 5 * time.Second

type submitFlags struct {
	wait     bool
	output   string
	job      string
	priority string
	maxInput int
}

func submitCommand(c *cli.Env) *cobra.Command {
	var f submitFlags
	cmd := &cobra.Command{
		Use:   "submit FILE",
		Short: "Submit a file of tasks to a server as a job",
		Long: `Submits every line of FILE as a task: lines of OpenAI's batch format, or
Batchyard's own task objects. "-" is standard input.

Every line is checked before the first is submitted. Without --job, the name of the
job is derived from the content of the file. Submitting the same file again, say
after an interruption, continues the same job.

Exit code 1 if, with --wait, a task did not succeed; 2 if a line is bad; 3 if the
server cannot be reached.`,
		Example: `  batchyard submit tasks.jsonl
  batchyard submit tasks.jsonl --wait -o answers.jsonl
  generate-tasks | batchyard submit - --job nightly-2026-11-21 --json`,
		Args: cli.Exactly("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error { return submitFile(cmd.Context(), c, args[0], f) },
	}
	c.ClientFlags(cmd)
	c.JSONFlag(cmd)
	cmd.Flags().BoolVar(&f.wait, "wait", false, "wait until every task has ended")
	cmd.Flags().StringVarP(&f.output, "output", "o", "", "`file` for the results, in the order of the lines; \"-\" is standard output (with --wait)")
	cmd.Flags().StringVar(&f.job, "job", "", "`name` of the job")
	cmd.Flags().StringVar(&f.priority, "priority", "", "priority of lines without one: high, normal or low")
	cmd.Flags().IntVar(&f.maxInput, "max-input", 1<<20, "largest input of a task in `bytes`, as set on the server (task.max_input)")
	cli.CompleteFlag(cmd, "priority", priorityNames())
	return cmd
}

func (f *submitFlags) check(c *cli.Env) error {
	switch {
	case f.output != "" && !f.wait:
		return cli.UsageError("-o needs --wait: there are no results before the tasks have ended")
	case f.output == "-" && c.JSON:
		return cli.UsageError("-o - and --json both write to standard output; choose one")
	case f.priority != "" && !slices.Contains(priorityNames(), f.priority):
		return cli.UsageError("unknown priority %q: use %s", f.priority, cli.Or(priorityNames()))
	case f.maxInput < 1:
		return cli.UsageError("--max-input must be at least 1")
	}
	return nil
}

// submitted is what submit prints as JSON when it does not wait.
type submitted struct {
	Job    string `json:"job_id"`
	Tenant string `json:"tenant"`
	Tasks  int    `json:"tasks"`
	SHA256 string `json:"sha256"`
}

func submitFile(ctx context.Context, c *cli.Env, path string, f submitFlags) (err error) {
	if err := f.check(c); err != nil {
		return err
	}
	server, err := connect(c)
	if err != nil {
		return err
	}
	if err := jobs.CheckOutput(f.output); err != nil {
		return cli.WithCode(cli.ExitUsage, err)
	}
	plan, err := jobs.Open(ctx, path, c.In, jobs.Options{
		Job: f.job, Limits: task.Limits{MaxInput: f.maxInput},
		Defaults: task.Task{Tenant: c.Tenant, Priority: task.Priority(f.priority)},
	})
	if err != nil {
		return fileError(err)
	}
	defer func() { err = errors.Join(err, plan.Close()) }()
	began := c.Now()
	bar, in := c.Progress("submitting", plan.Tasks), 0
	err = plan.Submit(ctx, server, func(n int) {
		in += n
		bar.Set(in)
	})
	bar.Finish()
	if err != nil {
		return fmt.Errorf("%w\nknown to be submitted: %d of %s; submit the file again to continue", err, in, cli.Counted(plan.Tasks, "task"))
	}
	if !f.wait {
		if c.JSON {
			return c.PrintJSON(submitted{plan.Job, plan.Tenant, plan.Tasks, plan.SHA256})
		}
		c.Printf("%s submitted as job %s\n", cli.Counted(plan.Tasks, "task"), cli.Plain(plan.Job))
		return nil
	}
	s, err := waitForJob(ctx, c, server, plan)
	if err != nil {
		return err
	}
	if f.output != "" {
		written, err := plan.WriteResults(ctx, server, f.output, c.Out)
		if err != nil {
			return err
		}
		// The results say more than the server's counts: they are what the caller has.
		s.ByState, s.ByDevice, s.Missing = written.ByState, written.ByDevice, written.Missing
		if f.output != "-" {
			s.Output = f.output
		}
	}
	s.Elapsed = c.Now().Sub(began)
	switch {
	case c.JSON:
		s.finish()
		err = c.PrintJSON(s)
	case f.output == "-":
		err = s.print(c.Err)
	default:
		err = s.print(c.Out)
	}
	return errors.Join(err, s.failed())
}

// waitForJob shows how far the job is until all of its tasks have ended.
func waitForJob(ctx context.Context, c *cli.Env, server *server, plan *jobs.Plan) (summary, error) {
	s := summary{Job: plan.Job, Total: plan.Tasks, ByState: map[task.State]int{}, ByDevice: map[string]int{}}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	last := &batchyard.JobProgress{}
	counts := func(ctx context.Context) (map[task.State]int64, error) {
		j, err := server.job(ctx, plan.Job)
		if err != nil {
			if refused(err) {
				cancel(err) // waiting would not change that
			}
			return nil, err
		}
		last = j
		return j.Tasks, nil
	}
	bar := c.Progress("running", plan.Tasks)
	known, since := -1, c.Now()
	_, err := plan.Wait(ctx, counts, look.C, func(n jobs.Counts, err error) {
		if err != nil {
			bar.Note(err.Error() + "; asking again")
			return
		}
		sum := 0
		for _, k := range n.ByState {
			sum += int(k)
		}
		if sum != known {
			known, since = sum, c.Now()
		}
		if n.Done() == known && known < n.Total && c.Now().Sub(since) > strangeAfter {
			// A task belongs to the first job that submitted its id.
			bar.Note("unknown to this job: " + cli.Counted(n.Total-known, "task") + "; did another job use these ids before?")
		} else {
			bar.Note("")
		}
		bar.Set(n.Done())
	})
	bar.Finish()
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
			err = cause
		}
		return s, err
	}
	for state, n := range last.Tasks {
		s.ByState[state] = int(n)
	}
	for device, n := range last.Devices {
		s.ByDevice[device] = int(n)
	}
	return s, nil
}
