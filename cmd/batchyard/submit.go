package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/jobs"
	"github.com/batchyard/batchyard/task"
)

type submitFlags struct {
	fileFlags
	wait     bool
	priority string
	maxInput int
	fills    fillFlags
	callback string
	labels   []string
}

// fileFlags are those of commands that take a file of tasks.
type fileFlags struct {
	output  string
	job     string
	skipBad bool
	badFile string
}

func (f *fileFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.job, "job", "", "`name` of the job (default: derived from what the lines of the file ask for)")
	fl.BoolVar(&f.skipBad, "skip-bad-lines", false, "run the good lines, and write the bad ones with their errors to a file; the exit code is then 1 at best")
	fl.StringVar(&f.badFile, "bad-lines", "", "`file` for the bad lines, with --skip-bad-lines (default: FILE.bad.jsonl)")
}

func (f *fileFlags) check(c *cli.Env) error {
	switch {
	case f.output == "-" && c.JSON:
		return cli.UsageError("-o - and --json both write to standard output; choose one")
	case f.badFile != "" && !f.skipBad:
		return cli.UsageError("--bad-lines needs --skip-bad-lines: otherwise a file with bad lines is refused")
	}
	return nil
}

// bad returns where the bad lines of a file go; nil if they are not skipped.
func (f *fileFlags) bad(path string) *jobs.BadLines {
	switch {
	case !f.skipBad:
		return nil
	case f.badFile != "":
		return &jobs.BadLines{Path: f.badFile}
	case path == "-":
		return &jobs.BadLines{Path: "stdin.bad.jsonl"}
	}
	return &jobs.BadLines{Path: path + ".bad.jsonl"}
}

// submitCommand is a command of its own, and one of jobs.
func submitCommand(c *cli.Env) *cobra.Command {
	var f submitFlags
	cmd := &cobra.Command{
		Use:   "submit FILE",
		Short: "Submit a file of tasks to a server as a job",
		Long: `Submits every line of FILE as a task: lines of OpenAI's batch format, or
Batchyard's own task objects. "-" is standard input. FILE may be compressed with
gzip or zstd. --endpoint and --model are for lines that leave these out, as files
for Mistral and Together do.

Every line is checked before the first is submitted. Without --job, the name of the
job is derived from what the lines ask for. Submitting the same file again, say
after an interruption, continues the same job. Another file under the same name is
refused: give each night's file a name of its own.

Exit code 1 if, with --wait, a task did not succeed, or if a bad line was skipped;
2 if a line is bad, or the name of the job belongs to another file; 3 if the server
cannot be reached; 130 after Ctrl-C.`,
		Example: `  batchyard submit tasks.jsonl
  batchyard submit tasks.jsonl --wait -o answers.jsonl
  generate-tasks | batchyard submit - --job nightly-2026-11-21 --json`,
		Args: cli.Exactly("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error { return submitFile(cmd.Context(), c, args[0], f) },
	}
	c.ClientFlags(cmd)
	c.JSONFlag(cmd)
	f.add(cmd)
	cmd.Flags().BoolVar(&f.wait, "wait", false, "wait until every task has ended")
	cmd.Flags().StringVarP(&f.output, "output", "o", "", "`file` for the results, in the order of the lines; \"-\" is standard output (with --wait)")
	cmd.Flags().StringVar(&f.priority, "priority", "", "priority of lines without one: high, normal or low")
	f.fills.add(cmd)
	cmd.Flags().IntVar(&f.maxInput, "max-input", 1<<20, "largest input of a task in `bytes`, as set on the server (task.max_input)")
	cmd.Flags().StringVar(&f.callback, "callback", "", "`URL` that gets the summary of the job once every task has ended")
	cmd.Flags().StringArrayVar(&f.labels, "label", nil, "`NAME=VALUE` to keep with the job; repeatable")
	cli.CompleteFlag(cmd, "priority", priorityNames())
	return cmd
}

func (f *submitFlags) check(c *cli.Env) error {
	switch {
	case f.output != "" && !f.wait:
		return cli.UsageError("-o needs --wait: there are no results before the tasks have ended")
	case f.priority != "" && !slices.Contains(priorityNames(), f.priority):
		return cli.UsageError("unknown priority %q: use %s", f.priority, cli.Or(priorityNames()))
	case f.maxInput < 1:
		return cli.UsageError("--max-input must be at least 1")
	}
	return f.fileFlags.check(c)
}

// complete adds to an announcement what the flags say.
func (f *submitFlags) complete(spec *task.JobSpec) error {
	if f.callback != "" {
		spec.Callback = &task.Callback{URL: f.callback}
	}
	for _, label := range f.labels {
		name, value, ok := strings.Cut(label, "=")
		if !ok {
			return cli.UsageError("--label %q: write NAME=VALUE", label)
		}
		if spec.Labels == nil {
			spec.Labels = map[string]string{}
		}
		spec.Labels[name] = value
	}
	return cli.WithCode(cli.ExitUsage, spec.Validate())
}

// submitted is what submit prints as JSON when it does not wait.
type submitted struct {
	Job      string `json:"job_id"`
	Tenant   string `json:"tenant"`
	Tasks    int    `json:"tasks"`
	SHA256   string `json:"sha256"`
	BadLines int    `json:"bad_lines,omitempty"`
	BadFile  string `json:"bad_lines_file,omitempty"`
}

func submitFile(ctx context.Context, c *cli.Env, path string, f submitFlags) (err error) {
	if err := f.check(c); err != nil {
		return err
	}
	endpoint, err := f.fills.check()
	if err != nil {
		return err
	}
	server, err := connect(c)
	if err != nil {
		return err
	}
	if err := jobs.CheckOutput(f.output); err != nil {
		return cli.WithCode(cli.ExitUsage, err)
	}
	bad := f.bad(path)
	plan, err := jobs.Open(ctx, path, c.In, jobs.Options{
		Job: f.job, Limits: task.Limits{MaxInput: f.maxInput}, Bad: bad,
		Defaults: task.Task{Tenant: c.Tenant, Priority: task.Priority(f.priority), Endpoint: endpoint, Model: f.fills.model},
	})
	if err != nil {
		return fileError(err)
	}
	defer func() { err = errors.Join(err, plan.Close()) }()
	spec := plan.Spec()
	if err := f.complete(spec); err != nil {
		return err
	}
	began := c.Now()
	if err := server.announce(ctx, spec); err != nil {
		return err
	}
	warnUnserved(ctx, c, server, plan.Models)
	if err := submitLines(ctx, c, server, plan); err != nil {
		return err
	}
	if !f.wait {
		return errors.Join(printSubmitted(c, plan, bad), badLinesError(plan.Bad, f.badPath(bad)))
	}
	j, err := waitForJob(ctx, c, server, waiting{job: plan.Job, tasks: plan.Tasks, every: lookEvery})
	if ctx.Err() != nil {
		return interruptedWait(c, j, 0)
	}
	if err != nil {
		return err
	}
	s := summaryOf(j, c.Now())
	if f.output != "" {
		written, err := plan.WriteResults(ctx, server, f.output, c.Out)
		if err != nil {
			return err
		}
		s.wrote(written, f.output)
	}
	s.ofPlan(plan, bad, c.Now().Sub(began))
	return errors.Join(s.show(c, f.output), s.failed())
}

func (f *fileFlags) badPath(bad *jobs.BadLines) string {
	if bad == nil {
		return ""
	}
	return bad.Path
}

// submitLines submits the tasks of a plan and shows how far that is.
func submitLines(ctx context.Context, c *cli.Env, server *server, plan *jobs.Plan) error {
	bar, in := c.Progress("submitting", plan.Tasks), 0
	err := plan.Submit(ctx, server, func(n int) {
		in += n
		bar.Set(in)
	})
	bar.Finish()
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%w\nknown to be submitted: %d of %s; submit the file again to continue", err, in, cli.Counted(plan.Tasks, "task"))
	if ctx.Err() != nil {
		return cli.WithCode(cli.ExitInterrupted, err)
	}
	return err
}

func printSubmitted(c *cli.Env, plan *jobs.Plan, bad *jobs.BadLines) error {
	if c.JSON {
		out := submitted{Job: plan.Job, Tenant: plan.Tenant, Tasks: plan.Tasks, SHA256: plan.SHA256, BadLines: plan.Bad}
		if plan.Bad > 0 {
			out.BadFile = bad.Path
		}
		return c.PrintJSON(out)
	}
	c.Printf("job %s: all %s submitted\n", cli.Plain(plan.Job), cli.Counted(plan.Tasks, "task"))
	return nil
}

// show prints the summary: as JSON, or as a table where it does not mix with the results.
func (s *summary) show(c *cli.Env, output string) error {
	switch {
	case c.JSON:
		return c.PrintJSON(s)
	case output == "-":
		return s.print(c.Err)
	}
	return s.print(c.Out)
}
