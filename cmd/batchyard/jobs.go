package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard"
	"github.com/batchyard/batchyard/cmd/internal/auditcmd"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/jobs"
	"github.com/batchyard/batchyard/task"
)

func jobsCommand(c *cli.Env) *cobra.Command {
	return cli.Group(&cobra.Command{
		Use: "jobs", Short: "Submit files as jobs, watch them, and get their results",
		Example: "  batchyard jobs list --state RUNNING\n  batchyard jobs watch nightly-2026-11-21\n  batchyard jobs results nightly-2026-11-21 -o answers.jsonl",
	}, submitCommand(c), jobsListCommand(c), jobsGetCommand(c), jobsWatchCommand(c), jobsCancelCommand(c), jobsResultsCommand(c), jobsRetryCommand(c), auditcmd.ProveJobCommand(c))
}

func jobStateNames() []string { return names(task.JobStates) }

// jobCommand is a command about one job of a server.
func jobCommand(c *cli.Env, cmd *cobra.Command, do func(ctx context.Context, s *server, id string) error) *cobra.Command {
	cmd.Args, cmd.ValidArgsFunction = cli.Exactly("JOB"), cli.CompleteNothing
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := connect(c)
		if err != nil {
			return err
		}
		return do(cmd.Context(), s, args[0])
	}
	c.ClientFlags(cmd)
	c.JSONFlag(cmd)
	return cmd
}

type jobListFlags struct {
	state, prefix, since, until string
	limit                       int
	all                         bool
}

func jobsListCommand(c *cli.Env) *cobra.Command {
	var f jobListFlags
	cmd := &cobra.Command{
		Use: "list", Short: "List jobs, newest first",
		Example: `  batchyard jobs list
  batchyard jobs list --state RUNNING --since 24h
  batchyard jobs list --prefix nightly- --all --json | jq -r .job_id`,
		Args: cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.all && cmd.Flags().Changed("limit") {
				return cli.ErrLimitAll
			}
			return jobsList(cmd.Context(), c, f)
		},
	}
	c.ClientFlags(cmd)
	c.JSONFlag(cmd)
	cmd.Flags().StringVar(&f.state, "state", "", "only jobs in this `state`: "+strings.Join(jobStateNames(), ", "))
	cmd.Flags().StringVar(&f.prefix, "prefix", "", "only jobs whose name begins with this `text`")
	cmd.Flags().StringVar(&f.since, "since", "", "only jobs submitted since this `time`: 2026-11-21T00:00:00Z, or 24h ago as 24h")
	cmd.Flags().StringVar(&f.until, "until", "", "only jobs submitted before this `time`")
	cmd.Flags().IntVar(&f.limit, "limit", 50, "how many jobs at most")
	cmd.Flags().BoolVar(&f.all, "all", false, "all jobs")
	cli.CompleteFlag(cmd, "state", jobStateNames())
	return cmd
}

// filter returns what the flags choose.
func (f *jobListFlags) filter(now time.Time) (batchyard.JobFilter, error) {
	filter := batchyard.JobFilter{Prefix: f.prefix}
	var err error
	if f.state != "" {
		if filter.State, err = task.ParseJobState(f.state); err != nil {
			return filter, cli.WithCode(cli.ExitUsage, fmt.Errorf("--%w", err))
		}
	}
	for name, t := range map[string]struct {
		text string
		at   *time.Time
	}{"since": {f.since, &filter.Since}, "until": {f.until, &filter.Until}} {
		if t.text == "" {
			continue
		}
		if ago, err := time.ParseDuration(t.text); err == nil {
			*t.at = now.Add(-ago)
		} else if *t.at, err = time.Parse(time.RFC3339, t.text); err != nil {
			return filter, cli.UsageError("--%s %q: write a time like 2026-11-21T00:00:00Z, or a duration like 24h", name, t.text)
		}
	}
	if f.limit < 1 {
		return filter, cli.UsageError("--limit must be at least 1; --all lists everything")
	}
	return filter, nil
}

func jobsList(ctx context.Context, c *cli.Env, f jobListFlags) error {
	filter, err := f.filter(c.Now())
	if err != nil {
		return err
	}
	server, err := connect(c)
	if err != nil {
		return err
	}
	const most = 50 // a page: the server may have to count the tasks of each
	return eachPage(c, listed{f.limit, f.all, most}, func(limit int, cursor string, number int) (int, string, error) {
		filter.Limit, filter.Cursor = limit, cursor
		page, err := server.JobPage(ctx, filter)
		if err != nil {
			return 0, "", err
		}
		return len(page.Jobs), page.Next, showJobs(c, page.Jobs, number)
	})
}

// showJobs prints a page of jobs. The first has number 0, and the head of the table.
func showJobs(c *cli.Env, page []batchyard.JobProgress, number int) error {
	if c.JSON {
		for i := range page {
			if err := c.PrintJSON(page[i].RawJSON()); err != nil {
				return err
			}
		}
		return nil
	}
	if number == 0 && len(page) == 0 {
		_, _ = fmt.Fprintln(c.Err, "no job matches")
		return nil
	}
	t := cli.NewTable(c.Out)
	if number == 0 {
		t.Row("JOB", "STATE", "TASKS", "DONE", "FAILED", "RATE", "REMAINING", "SUBMITTED", "FILE")
	}
	now := c.Now()
	for i := range page {
		j := &page[i]
		var rate, remaining, submitted string
		if j.Rate > 0 {
			rate = strconv.FormatFloat(j.Rate, 'f', 1, 64) + "/s"
		}
		if j.Seconds > 0 {
			remaining = seconds(j.Seconds).String()
		}
		if j.At != nil {
			submitted = cli.Ago(*j.At, now)
		}
		failed := j.Tasks[task.Failed] + j.Tasks[task.Expired] + j.Tasks[task.Cancelled]
		t.Row(j.JobID, string(j.State), strconv.FormatInt(j.Total, 10), doneShare(&j.Job), strconv.FormatInt(failed, 10), rate, remaining, submitted, j.File)
	}
	return t.Flush()
}

// doneShare is how much of a job has finished. Only a whole job is 100 %.
func doneShare(j *task.Job) string {
	if j.Total == 0 {
		return ""
	}
	return strconv.FormatInt(100*j.Done/j.Total, 10) + "%"
}

func jobsGetCommand(c *cli.Env) *cobra.Command {
	return jobCommand(c, &cobra.Command{
		Use: "get JOB", Short: "Show how far a job is, and what went wrong",
		Example: "  batchyard jobs get nightly-2026-11-21\n  batchyard jobs get nightly-2026-11-21 --json",
	}, func(ctx context.Context, s *server, id string) error {
		j, err := s.Job(ctx, id)
		if err != nil {
			return fmt.Errorf("job %s: %w", id, err)
		}
		if c.JSON {
			return c.PrintJSON(j.RawJSON())
		}
		return summaryOf(&j.Job, c.Now()).print(c.Out)
	})
}

func jobsWatchCommand(c *cli.Env) *cobra.Command {
	return jobCommand(c, &cobra.Command{
		Use: "watch JOB", Short: "Wait until every task of a job has ended",
		Long: `Shows how far a job is until every task has ended, and after ten seconds without
progress, why. Exit code 1 if a task did not succeed; 130 after Ctrl-C, which does
not stop the job.`,
		Example: "  batchyard jobs watch nightly-2026-11-21\n  batchyard jobs watch nightly-2026-11-21 && batchyard jobs results nightly-2026-11-21 -o answers.jsonl",
	}, func(ctx context.Context, s *server, id string) error {
		j, err := s.Job(ctx, id)
		if err != nil {
			return fmt.Errorf("job %s: %w", id, err)
		}
		now, err := waitForJob(ctx, c, s, waiting{job: id, total: int(j.Total), every: lookEvery})
		if ctx.Err() != nil {
			return interruptedWait(c, now, now.NotSubmitted())
		}
		if err != nil {
			return err
		}
		sum := summaryOf(now, c.Now())
		return errors.Join(sum.show(c, ""), sum.failed())
	})
}

func jobsCancelCommand(c *cli.Env) *cobra.Command {
	return jobCommand(c, &cobra.Command{
		Use: "cancel JOB", Short: "Cancel what has not finished of a job",
		Long: `Asks for every task of a job to be stopped that has not ended, wherever it is. Those
that have ended keep their results. A job that has already ended stays as it is; the
exit code is then 1.`,
		Example: "  batchyard jobs cancel nightly-2026-11-21",
	}, func(ctx context.Context, s *server, id string) error {
		n, err := s.CancelJob(ctx, id)
		if err != nil {
			return fmt.Errorf("job %s: %w", id, err)
		}
		if c.JSON {
			return c.PrintJSON(struct {
				Job       string `json:"job_id"`
				Cancelled int64  `json:"cancelled"`
			}{id, n})
		}
		c.Printf("job %s: %s asked to stop\n", cli.Plain(id), cli.Counted(n, "task"))
		return nil
	})
}

func jobsResultsCommand(c *cli.Env) *cobra.Command {
	var output, file string
	cmd := jobCommand(c, &cobra.Command{
		Use: "results JOB", Short: "Write the results of a job to a file",
		Long: `Writes a line for each result that there is so far, in the order of the lines of the
file that was submitted. If lines had ids of their own, name that file with --file:
without it, the order is that of the ids. Exit code 1 if tasks have no result yet, or
did not succeed.`,
		Example: "  batchyard jobs results nightly-2026-11-21 -o answers.jsonl\n  batchyard jobs results nightly-2026-11-21 -o - | jq .custom_id",
	}, func(ctx context.Context, s *server, id string) error {
		if output == "-" && c.JSON {
			return cli.UsageError("-o - and --json both write to standard output; choose one")
		}
		return jobsResults(ctx, c, s, resultsOf{job: id, file: file, output: output})
	})
	cmd.Flags().StringVarP(&output, "output", "o", "-", "`file` for the results; \"-\" is standard output")
	cmd.Flags().StringVar(&file, "file", "", "the `FILE` that was submitted, for the order of its lines")
	return cmd
}

// resultsOf says whose results to write, and where.
type resultsOf struct{ job, file, output string }

func jobsResults(ctx context.Context, c *cli.Env, s *server, r resultsOf) (err error) {
	j, err := s.Job(ctx, r.job)
	if err != nil {
		return fmt.Errorf("job %s: %w", r.job, err)
	}
	if err := jobs.CheckOutput(r.output); err != nil {
		return cli.WithCode(cli.ExitUsage, err)
	}
	out := jobs.Output{Path: r.output, Stdout: c.Out}
	var written jobs.Summary
	if r.file == "" {
		written, err = jobs.Export(ctx, s, &j.Job, out)
	} else {
		written, err = exportInOrder(ctx, c, s, r, out)
	}
	if err != nil {
		return err
	}
	sum := summaryOf(&j.Job, c.Now())
	sum.wrote(written, r.output)
	return errors.Join(sum.show(c, r.output), sum.failed())
}

// exportInOrder writes the results in the order of the file that was submitted.
func exportInOrder(ctx context.Context, c *cli.Env, s *server, r resultsOf, out jobs.Output) (_ jobs.Summary, err error) {
	// The lines were checked when they were submitted; bad ones were skipped.
	plan, err := jobs.Open(ctx, r.file, c.In, jobs.Options{Job: r.job, Defaults: task.Task{Tenant: c.Tenant}, Limits: task.Limits{MaxInput: 4 << 20}, Bad: &jobs.BadLines{}})
	if err != nil {
		return jobs.Summary{}, fileError(err)
	}
	defer func() { err = errors.Join(err, plan.Close()) }()
	if err := s.announced(ctx, plan); err != nil {
		return jobs.Summary{}, err
	}
	return plan.WriteOutput(ctx, s, out)
}
