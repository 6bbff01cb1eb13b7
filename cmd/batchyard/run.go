package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/cmd/internal/app"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/cmd/internal/local"
	"github.com/batchyard/batchyard/jobs"
	"github.com/batchyard/batchyard/producer"
	"github.com/batchyard/batchyard/task"
)

// runLook is how often run reads the counts for the progress bar.
const runLook = 200 * time.Millisecond

type runFlags struct {
	output  string
	devices []string
	slots   int
	job     string
	verbose bool
	timeout time.Duration
}

func runCommand(c *cli.Env) *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run FILE",
		Short: "Run every line of a file through the whole pipeline, then exit",
		Long: `Start broker, Redis, Postgres and all stages in this process, run every line of
FILE through them, write the results in the order of the input, print a summary,
and exit; exit code 1 if a task did not succeed.

FILE is JSONL: lines of OpenAI's batch format (custom_id, method, url, body) or
Batchyard's own task objects; - is standard input. Without --device, a simulated
fleet of unequal devices answers over real HTTP.`,
		Example: `  batchyard run tasks.jsonl -o results.jsonl
  batchyard run tasks.jsonl -o results.jsonl --device gpu-1=http://10.0.0.5:8000 --device edge=http://10.0.0.9:8080
  cat tasks.jsonl | batchyard run - --json`,
		Args: cli.Exactly("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error { return runFile(cmd.Context(), c, args[0], f) },
	}
	c.ConfigFlag(cmd)
	c.JSONFlag(cmd)
	fl := cmd.Flags()
	fl.StringVarP(&f.output, "output", "o", "", "write the results to this `file`; - is standard output (default: write no results)")
	fl.StringArrayVar(&f.devices, "device", nil, "`NAME=URL` of an OpenAI-compatible server; repeatable")
	fl.IntVar(&f.slots, "slots", 4, "requests that each --device runs at the same time")
	fl.StringVar(&f.job, "job", "", "`name` of the job (default: derived from the content of the file)")
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "log what the stages do")
	fl.DurationVar(&f.timeout, "timeout", 0, "give up after this long; 0 means never")
	return cmd
}

func runFile(ctx context.Context, c *cli.Env, path string, f runFlags) (err error) {
	if f.timeout < 0 {
		return cli.UsageError("--timeout must not be negative")
	}
	if f.timeout > 0 {
		over := fmt.Errorf("--timeout (%s) passed", f.timeout)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, f.timeout, over)
		defer cancel()
		defer func() { // the step that failed reports only a deadline
			if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
				err = fmt.Errorf("%w: %w", over, err)
			}
		}()
	}
	if f.output == "-" && c.JSON {
		return cli.UsageError("-o - and --json both write to standard output; choose one")
	}
	devices, err := parseDevices(f.devices, f.slots)
	if err != nil {
		return err
	}
	if err := jobs.CheckOutput(f.output); err != nil {
		return cli.WithCode(cli.ExitUsage, err)
	}
	cfg, err := c.Config(nil)
	if err != nil {
		return err
	}
	plan, err := jobs.Open(ctx, path, c.In, jobs.Options{Job: f.job, Limits: cfg.Task.Limits(), Config: cfg.Jobs})
	if err != nil {
		return fileError(err)
	}
	defer func() { _ = plan.Close() }()

	began := c.Now()
	logger := c.ErrorLog()
	if f.verbose {
		logger = debugLog()
	}
	o := local.Options{ConfigPath: c.ConfigPath, Version: c.Version, Devices: devices, Logger: logger, Progress: c.Step}
	system, err := local.Start(ctx, o)
	if err != nil {
		return cli.ServiceError(err)
	}
	c.Step("")
	s, err := runPlan(ctx, c, system, plan, f.output)
	if cerr := system.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	s.Elapsed = c.Now().Sub(began)
	if c.JSON {
		s.finish()
		err = c.PrintJSON(s)
	} else if f.output == "-" {
		err = s.print(c.Err)
	} else {
		err = s.print(c.Out)
	}
	return errors.Join(err, s.failed())
}

// runPlan submits, waits and writes the results.
func runPlan(ctx context.Context, c *cli.Env, system *local.System, plan *jobs.Plan, output string) (*summary, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { // stop waiting if the stages end by themselves
		select {
		case <-system.Ended():
			cancel(errors.New("the stages ended; see the log with --verbose"))
		case <-ctx.Done():
		}
	}()
	p := system.App.Producer()
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = p.Close(closing) // every submit was acknowledged
	}()
	store := system.App.Store()
	defer store.Close()

	bar := c.Progress("running", plan.Tasks)
	submitted := make(chan error, 1)
	go func() { submitted <- plan.Submit(ctx, inProcess{p}, nil) }()
	look := time.NewTicker(runLook)
	defer look.Stop()
	counts := func(ctx context.Context) (map[task.State]int64, error) {
		select {
		case err := <-submitted:
			if err != nil {
				cancel(err)
				return nil, err
			}
		default:
		}
		n, err := store.JobCounts(ctx, plan.Tenant, plan.Job)
		return n.ByState, err
	}
	n, err := plan.Wait(ctx, counts, look.C, func(n jobs.Counts, _ error) { bar.Set(n.Done()) })
	bar.Finish()
	if err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, fmt.Errorf("%w with %d of %s finished", context.Cause(ctx), n.Done(), cli.Counted(plan.Tasks, "task"))
		}
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
			return nil, cause
		}
		return nil, fmt.Errorf("interrupted: %w", err)
	}
	s := &summary{Job: plan.Job, Total: plan.Tasks}
	to := c.Out
	switch output {
	case "": // counted only
		output, to = "-", io.Discard
	case "-":
	default:
		s.Output = output
	}
	written, err := plan.WriteResults(ctx, store, output, to)
	s.ByState, s.ByDevice, s.Missing = written.ByState, written.ByDevice, written.Missing
	return s, err
}

// inProcess submits to a producer of this process.
type inProcess struct{ p *producer.Producer }

func (i inProcess) Submit(ctx context.Context, tasks []*task.Task) error {
	return i.p.Submit(ctx, tasks, task.Origin{Actor: "cli", Addr: "local", UserAgent: "batchyard/" + versionNumber()})
}

// debugLog returns a logger for everything that the stages of this process do.
func debugLog() *slog.Logger {
	logger, _ := app.NewLogger(app.LogConfig{Level: "debug", Format: "text"})
	return logger
}
