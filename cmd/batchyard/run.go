package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/batchyard/batchyard"
	"github.com/batchyard/batchyard/cmd/internal/app"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/cmd/internal/local"
	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/jobs"
	"github.com/batchyard/batchyard/producer"
	"github.com/batchyard/batchyard/status"
	"github.com/batchyard/batchyard/task"
)

// runLook is how often run asks how far the job is, for the progress bar.
const runLook = 200 * time.Millisecond

// rescueTime bounds how long the results of an unfinished job may take to write.
const rescueTime = time.Minute

type runFlags struct {
	fileFlags
	devices []string
	slots   int
	verbose bool
	timeout time.Duration
	fills   fillFlags
	dataDir string
	resume  bool
	again   string // the command that continues, when interrupted
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
Batchyard's own task objects; - is standard input. It may be compressed with gzip
or zstd. --endpoint and --model are for lines that leave these out, as files for
Mistral and Together do. Without --device, a simulated fleet of unequal devices
answers over real HTTP.

After Ctrl-C, or when --timeout passes, the results so far are written; a line that
has not finished gets the error batch_cancelled or batch_expired. With --data-dir,
"run FILE --data-dir DIR --resume" continues, and what has an answer keeps it.

Exit code 1 if a task did not succeed, a bad line was skipped, or --timeout passed;
2 if a line is bad; 130 after Ctrl-C.`,
		Example: `  batchyard run tasks.jsonl -o results.jsonl
  batchyard run tasks.jsonl -o results.jsonl --device gpu-1=http://10.0.0.5:8000 --device edge=http://10.0.0.9:8080
  batchyard run tasks.jsonl -o results.jsonl --data-dir state --resume
  cat tasks.jsonl | batchyard run - --json`,
		Args: cli.Exactly("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.again = resumeCommand(cmd, args[0])
			return runFile(cmd.Context(), c, args[0], f)
		},
	}
	c.ConfigFlag(cmd)
	c.JSONFlag(cmd)
	f.add(cmd)
	fl := cmd.Flags()
	fl.StringVarP(&f.output, "output", "o", "", "write the results to this `file`; - is standard output (default: write no results)")
	fl.StringArrayVar(&f.devices, "device", nil, deviceHelp)
	fl.IntVar(&f.slots, "slots", 4, "requests that each --device runs at the same time, unless it says otherwise")
	f.fills.add(cmd)
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "log what the stages do")
	fl.DurationVar(&f.timeout, "timeout", 0, "give up after this long; 0 means never")
	fl.StringVar(&f.dataDir, "data-dir", "", "`directory` for Kafka, Postgres and Redis, to continue later (default: a temporary one)")
	fl.BoolVar(&f.resume, "resume", false, "continue the job of this file that --data-dir has; an error if it has none")
	return cmd
}

// resumeCommand returns the command line with --resume. Every other flag stays: without --device, for
// example, simulated devices would answer the rest.
func resumeCommand(cmd *cobra.Command, path string) string {
	words := []string{cmd.CommandPath(), quoted(path)}
	cmd.Flags().Visit(func(f *pflag.Flag) {
		name := "--" + f.Name
		if list, ok := f.Value.(pflag.SliceValue); ok {
			for _, v := range list.GetSlice() {
				words = append(words, name, quoted(v))
			}
			return
		}
		switch {
		case f.Name == "resume", f.Name == "timeout":
		case f.Value.Type() == "bool":
			words = append(words, name+"="+f.Value.String())
		default:
			words = append(words, name, quoted(f.Value.String()))
		}
	})
	return strings.Join(append(words, "--resume"), " ")
}

func (f *runFlags) check(c *cli.Env) error {
	switch {
	case f.timeout < 0:
		return cli.UsageError("--timeout must not be negative")
	case f.resume && f.dataDir == "":
		return cli.UsageError("--resume needs --data-dir: the directory that the first run was given")
	case f.resume && isEmpty(f.dataDir):
		return cli.UsageError("--resume: %s does not exist or is empty: leave --resume out to start the job, or check --data-dir", f.dataDir)
	}
	return f.fileFlags.check(c)
}

// isEmpty reports whether a directory has nothing in it, or does not exist.
func isEmpty(dir string) bool {
	d, err := os.Open(dir) //nolint:gosec // the user names it
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	defer func() { _ = d.Close() }()
	_, err = d.Readdirnames(1)
	return errors.Is(err, io.EOF)
}

func runFile(ctx context.Context, c *cli.Env, path string, f runFlags) (err error) {
	if err := f.check(c); err != nil {
		return err
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
	devices, err := parseDevices(f.devices, f.slots)
	if err != nil {
		return err
	}
	endpoint, err := f.fills.check()
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
	bad := f.bad(path)
	plan, err := jobs.Open(ctx, path, c.In, jobs.Options{
		Job: f.job, Limits: cfg.Task.Limits(), Config: cfg.Jobs, Bad: bad, Defaults: task.Task{Endpoint: endpoint, Model: f.fills.model},
	})
	if err != nil {
		return fileError(err)
	}
	defer func() { _ = plan.Close() }()

	began := c.Now()
	logger := c.ErrorLog()
	if f.verbose {
		logger = debugLog()
	}
	system, err := local.Start(ctx, local.Options{
		ConfigPath: c.ConfigPath, Version: c.Version, DataDir: f.dataDir, Devices: devices, Logger: logger, Progress: c.Step, Absent: absentDevice(c), Present: presentDevice(c),
	})
	r := jobRun{plan: plan, flags: f, path: path}
	if err != nil {
		switch {
		case errors.Is(ctx.Err(), context.Canceled):
			err = cli.WithCode(cli.ExitInterrupted, err)
		case ctx.Err() != nil:
			err = cli.WithCode(cli.ExitFailed, err)
		}
		return errors.Join(cli.ServiceError(err), r.unstarted(ctx, c))
	}
	c.Step("")
	s, err := runPlan(ctx, c, system, r)
	if cerr := system.Close(); err == nil {
		err = cerr
	}
	if s == nil {
		return err
	}
	s.ofPlan(plan, bad, c.Now().Sub(began))
	err = errors.Join(err, s.show(c, f.output))
	if err != nil {
		return errors.Join(err, badLinesError(plan.Bad, f.badPath(bad)))
	}
	return s.failed()
}

// absentDevice reports a device that does not come up.
func absentDevice(c *cli.Env) func(device.Device) {
	return func(d device.Device) {
		c.Step("")
		_, _ = fmt.Fprintf(c.Err, "device %s at %s does not answer: %s; it gets no tasks until it does\n", cli.Plain(d.ID), cli.Plain(d.URL), cli.Plain(d.Problem))
	}
}

// presentDevice reports a device that answers again.
func presentDevice(c *cli.Env) func(device.Device) {
	return func(d device.Device) {
		c.Step("")
		_, _ = fmt.Fprintf(c.Err, "device %s at %s answers now\n", cli.Plain(d.ID), cli.Plain(d.URL))
	}
}

// jobRun is one run of a file.
type jobRun struct {
	plan  *jobs.Plan
	flags runFlags
	path  string
}

// runPlan submits, waits and writes the results. If it is interrupted, it writes those that there are;
// then it returns a summary and an error.
func runPlan(ctx context.Context, c *cli.Env, system *local.System, r jobRun) (*summary, error) {
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
	api, err := localServer(c, system)
	if err != nil {
		return nil, err
	}
	warnUnserved(ctx, c, api, r.plan.Models)
	if err := r.announce(ctx, api); err != nil {
		if early := r.early(ctx, &task.Job{}); early != nil {
			return r.finish(ctx, c, system, early)
		}
		return nil, err
	}
	submitting, submitted := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(submitted)
		submitting <- r.plan.Submit(ctx, inProcess{p}, nil)
	}()
	j, err := waitForJob(ctx, c, api, waiting{job: r.plan.Job, tasks: r.plan.Tasks, every: runLook, failed: submitting})
	var early *earlyEnd
	if err != nil {
		if early = r.early(ctx, j); early == nil {
			return nil, err
		}
	}
	cancel(nil)
	<-submitted
	return r.finish(ctx, c, system, early)
}

// localServer is the API of this process.
func localServer(c *cli.Env, system *local.System) (*server, error) {
	client, err := batchyard.New(system.URL, batchyard.WithUserAgent("batchyard-cli/"+c.Version), batchyard.WithRetry(batchyard.RetryPolicy{}))
	return &server{client, client}, err
}

// announce announces the job. With --resume it must be known.
func (r *jobRun) announce(ctx context.Context, api *server) error {
	if r.flags.resume {
		_, err := api.Job(ctx, r.plan.Job)
		if errors.Is(err, batchyard.ErrNotFound) {
			return cli.UsageError("--resume: %s has no job %s: leave --resume out to start it, or check --data-dir, --job and the file", r.flags.dataDir, r.plan.Job)
		}
		if err != nil {
			return err
		}
	}
	return api.announce(ctx, r.plan.Spec())
}

// earlyEnd is why a run ended before its tasks.
type earlyEnd struct {
	state task.State // of the tasks that had not finished
	err   error
}

// early says how a run ends that was stopped; nil if it failed instead.
func (r *jobRun) early(ctx context.Context, j *task.Job) *earlyEnd {
	far := fmt.Sprintf("with %d of %s finished", j.Done, cli.Counted(r.plan.Tasks, "task"))
	again := "nothing is kept; with --data-dir DIR, --resume could continue"
	if r.flags.dataDir != "" {
		again = "continue with: " + r.flags.again
	}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return &earlyEnd{task.Expired, cli.WithCode(cli.ExitFailed, fmt.Errorf("%w %s; %s", context.Cause(ctx), far, again))}
	case errors.Is(context.Cause(ctx), context.Canceled):
		return &earlyEnd{task.Cancelled, cli.WithCode(cli.ExitInterrupted, fmt.Errorf("interrupted %s; %s", far, again))}
	}
	return nil
}

// finish writes the results, and says how the job stands.
func (r *jobRun) finish(ctx context.Context, c *cli.Env, system *local.System, early *earlyEnd) (*summary, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rescueTime)
	defer cancel()
	store := system.App.Store()
	defer store.Close()
	out := jobs.Output{Path: r.flags.output, Stdout: c.Out}
	if out.Path == "" { // counted only
		out.Path, out.Stdout = "-", io.Discard
	}
	if early != nil {
		out.Unfinished = early.state
	}
	written, err := r.plan.WriteOutput(ctx, store, out)
	if err != nil {
		return nil, err
	}
	j, err := store.Job(ctx, r.plan.Tenant, r.plan.Job)
	if errors.Is(err, status.ErrNoJob) { // stopped before it was recorded
		j, err = &task.Job{JobID: r.plan.Job, State: task.JobRunning}, nil
	}
	if err != nil {
		return nil, err
	}
	s := summaryOf(j, c.Now())
	s.wrote(written, out.Path)
	if early != nil {
		return s, early.err
	}
	return s, nil
}

// unstarted writes the output of a job that was stopped before anything could run. It does nothing if
// the start failed by itself.
func (r *jobRun) unstarted(ctx context.Context, c *cli.Env) error {
	state := task.Cancelled
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		state = task.Expired
	case ctx.Err() == nil:
		return nil
	}
	if r.flags.output == "" {
		return nil
	}
	out := jobs.Output{Path: r.flags.output, Stdout: c.Out, Unfinished: state}
	_, err := r.plan.WriteOutput(context.WithoutCancel(ctx), noResults{}, out)
	return err
}

// noResults is the results of a job that has none.
type noResults struct{}

func (noResults) JobResults(context.Context, string, string, func(*task.Result) error) error {
	return nil
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
