package feed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/jobs"
	"github.com/batchyard/batchyard/jobs/files"
	"github.com/batchyard/batchyard/task"
)

// step does what there is to do now; pause is when to look again.
func (c *claimed) step(ctx context.Context) (pause time.Duration, err error) {
	switch c.Status {
	case Validating:
		return c.validate(ctx)
	case InProgress:
		return c.run(ctx)
	case Cancelling:
		return c.cancel(ctx)
	case Finalizing:
		return 0, c.finish(ctx, c.unfinished())
	}
	return 0, nil
}

// file returns the job's file.
func (c *claimed) file(ctx context.Context) *jobs.Stored {
	if c.stored != nil {
		return c.stored
	}
	d := &c.f.deps
	cfg := d.Config
	cfg.MaxLines = d.Files.Config().MaxLines
	name := c.Input
	if f, err := d.Files.Get(ctx, c.Tenant, c.Input); err == nil { // it may be deleted: its content is there until the job ends
		name = f.Name
	}
	c.stored = &jobs.Stored{
		Name: name, SkipBad: c.SkipBad, Errors: maxProblems,
		Open: func(ctx context.Context) (io.ReadCloser, error) { return d.Files.Read(ctx, c.Input) },
		Options: jobs.Options{
			Job: c.ID, Endpoint: c.Endpoint, Config: cfg, Limits: d.Producer.Config().Limits(), LinesSetting: "files.max_lines",
			Defaults: task.Task{Tenant: c.Tenant, Endpoint: c.Endpoint, Deadline: c.ExpiresAt},
		},
	}
	return c.stored
}

// validate checks the file, and goes on with running it.
func (c *claimed) validate(ctx context.Context) (time.Duration, error) {
	checked, err := c.file(ctx).Check(ctx)
	if problems := problemsOf(err); problems != nil {
		return 0, c.reject(ctx, problems)
	}
	if err != nil {
		return 0, err
	}
	if err := c.f.deps.Producer.AnnounceJob(ctx, checked.Spec, c.Origin); err != nil {
		return 0, err
	}
	var errs []byte
	if len(checked.Errors) > 0 {
		c.Problems = lineProblems(checked.Errors, checked.More)
		errs, _ = json.Marshal(c.Problems) // text and numbers: it cannot fail
	}
	now := clock.Now().UTC()
	err = c.update(ctx, `status = 'in_progress', in_progress_at = $5, tasks = $6, bad_lines = $7, model = nullif($8, ''), errors = $9`,
		now, checked.Spec.Tasks, checked.Spec.BadLines, checked.Model, errs)
	if err != nil {
		return 0, err
	}
	c.Tasks, c.Bad, c.InProgress = checked.Spec.Tasks, checked.Spec.BadLines, &now
	c.changed(ctx, InProgress, map[string]any{"tasks": c.Tasks, "bad_lines": c.Bad})
	return c.run(ctx)
}

// reject ends a job whose file is invalid.
func (c *claimed) reject(ctx context.Context, problems []Problem) error {
	errs, err := json.Marshal(problems)
	if err != nil {
		return err
	}
	if err := c.update(ctx, `status = 'failed', failed_at = $5, errors = $6`, clock.Now().UTC(), errs); err != nil {
		return err
	}
	c.changed(ctx, Failed, map[string]any{"problems": len(problems)})
	return nil
}

// problemsOf returns what is wrong with a file; nil if the error is not about the file.
func problemsOf(err error) []Problem {
	var whole *jobs.FileError
	var invalid *jobs.InvalidError
	switch {
	case errors.As(err, &whole):
		return []Problem{{Code: whole.Code, Message: whole.Problem}}
	case errors.As(err, &invalid):
		return lineProblems(invalid.Lines, invalid.More)
	}
	return nil
}

func lineProblems(lines []jobs.LineError, more int) []Problem {
	out := make([]Problem, 0, len(lines)+1)
	for _, l := range lines {
		p := Problem{Code: "invalid_json_line", Message: l.Err.Error(), Line: &l.Line}
		switch field := l.Err.Field; {
		case l.Repeat:
			p.Code, p.Param = "duplicate_custom_id", &field
		case field != "":
			p.Code, p.Param = "invalid_value", &field
		}
		out = append(out, p)
	}
	if more > 0 {
		out = append(out, Problem{Code: "too_many_errors", Message: fmt.Sprintf("%d more lines are invalid", more)})
	}
	return out
}

// errOver says that the completion window is over.
var errOver = errors.New("the completion window is over")

// run submits what is missing, and finishes the job once every task has.
func (c *claimed) run(ctx context.Context) (time.Duration, error) {
	if c.FedTasks < c.Tasks {
		if err := c.feed(ctx); err != nil && !errors.Is(err, errOver) {
			return 0, err
		}
	}
	known, done, pause, err := c.count(ctx)
	if err != nil {
		return 0, err
	}
	now := clock.Now()
	switch {
	case known >= c.Tasks && done == known:
	case now.Before(c.ExpiresAt):
		return min(pause, max(shortPause, c.ExpiresAt.Sub(now))), nil
	// Routers and workers end what waits, and what runs may still succeed for a moment.
	case (known < c.FedTasks || done < known) && now.Before(c.ExpiresAt.Add(grace)):
		return pause, nil
	}
	if err := c.update(ctx, `status = 'finalizing', finalizing_at = $5`, now.UTC()); err != nil {
		return 0, err
	}
	c.changed(ctx, Finalizing, nil)
	return 0, c.finish(ctx, c.unfinished())
}

// unfinished is the state that lines without a result get.
func (c *claimed) unfinished() task.State {
	switch {
	case c.Status == Cancelling:
		return task.Cancelled
	case !clock.Now().Before(c.ExpiresAt):
		return task.Expired
	}
	return ""
}

// count counts the tasks that are recorded and those of them that have finished. pause is ten times as long as that took.
func (c *claimed) count(ctx context.Context) (known, done int64, pause time.Duration, err error) {
	began := time.Now()
	err = c.f.deps.Pool.QueryRow(ctx, `SELECT count(*), count(*) FILTER (WHERE seq = $3) FROM tasks WHERE tenant = $1 AND job_id = $2`,
		c.Tenant, c.ID, task.TerminalSequence).Scan(&known, &done)
	if err != nil {
		return 0, 0, 0, fmt.Errorf("counting the tasks of batch %s: %w", c.ID, err)
	}
	return known, done, min(max(10*time.Since(began), shortPause), longPause), nil
}

// window is lines that are submitted together, in several chunks at a time.
type window struct {
	chunks [][]*task.Task
	bytes  int64 // of the last chunk
	tasks  int64
	last   int // line
}

// feed submits the tasks after FedLine. It returns errOver once the completion window is over.
func (c *claimed) feed(ctx context.Context) error {
	cfg := c.f.deps.Config.WithDefaults()
	most := min(cfg.ChunkTasks, c.f.deps.Producer.Config().MaxTasks)
	var w window
	err := c.file(ctx).Tasks(ctx, int(c.FedLine), c.Bad, func(line int, t *task.Task) error {
		n := len(w.chunks)
		size := int64(len(t.Input))
		if n == 0 || len(w.chunks[n-1]) == most || w.bytes+size > cfg.ChunkBytes {
			if n == cfg.Concurrency {
				if err := c.submit(ctx, &w); err != nil {
					return err
				}
				w, n = window{}, 0
			}
			w.chunks, w.bytes = append(w.chunks, make([]*task.Task, 0, most)), 0
			n++
		}
		w.chunks[n-1] = append(w.chunks[n-1], t)
		w.bytes += size
		w.tasks++
		w.last = line
		return nil
	})
	if err == nil && w.tasks > 0 {
		err = c.submit(ctx, &w)
	}
	return err
}

// submit submits a window. If the process dies in between, the next owner submits it again.
func (c *claimed) submit(ctx context.Context, w *window) error {
	if !clock.Now().Before(c.ExpiresAt) {
		return errOver
	}
	c.FedUntil = max(c.FedUntil, int64(w.last))
	if err := c.update(ctx, `fed_until = $5`, c.FedUntil); err != nil {
		return err
	}
	fault.At("feed.before_submit")
	g, gctx := errgroup.WithContext(ctx)
	for _, chunk := range w.chunks {
		g.Go(func() error { return c.f.deps.Producer.Submit(gctx, chunk, c.Origin) })
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("submitting %d tasks of batch %s: %w", w.tasks, c.ID, err)
	}
	fault.At("feed.after_submit")
	line, fed := int64(w.last), c.FedTasks+w.tasks
	if err := c.update(ctx, `fed_line = $5, fed_tasks = $6`, line, fed); err != nil {
		return err
	}
	c.FedLine, c.FedTasks = line, fed
	return nil
}

// lazyFile is a file that is created with its first byte.
type lazyFile struct {
	ctx   context.Context //nolint:containedctx // an io.Writer has no parameter for it
	store *files.Store
	file  files.File
	w     *files.Writer
}

func (l *lazyFile) Write(b []byte) (int, error) {
	if l.w == nil {
		w, err := l.store.Create(l.ctx, l.file)
		if err != nil {
			return 0, err
		}
		l.w = w
	}
	return l.w.Write(b)
}

// id returns the id of the file; empty if nothing was written.
func (l *lazyFile) id() string {
	if l.w == nil {
		return ""
	}
	return l.w.File.ID
}
