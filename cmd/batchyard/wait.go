package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/jobs"
	"github.com/batchyard/batchyard/task"
)

// lookEvery is how often a server is asked how far a job is.
const lookEvery = 500 * time.Millisecond

// strangeAfter is how long tasks of a job may stay unknown while nothing runs.
const strangeAfter = 5 * time.Second

// waiting is how a job is waited for.
type waiting struct {
	job   string
	tasks int           // of the file that was submitted; 0: the server says when the job has ended
	total int           // for the progress bar, without tasks
	every time.Duration // pause between two looks
	// failed is closed, or holds an error, when waiting makes no sense any more; nil: never.
	failed <-chan error
}

// waitForJob shows how far a job is until all of its tasks have ended, and why it makes no progress. It
// returns how the job stands even if ctx ends first; the error is then that of ctx, or its cause.
func waitForJob(ctx context.Context, c *cli.Env, server *server, w waiting) (*task.Job, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	look := time.NewTicker(w.every)
	defer look.Stop()
	bar := c.Progress("running", max(w.tasks, w.total))
	stalled, strange := newStall(c, server, w.tasks > 0), &strangers{c: c, known: -1}
	seen := func(j *task.Job, err error) {
		if err != nil {
			bar.Note(err.Error() + "; asking again")
			return
		}
		bar.Grow(int(j.Total))
		bar.Set(int(j.Done))
		strange.look(j, int64(w.tasks), bar)
		stalled.look(ctx, j, bar)
	}
	ask := func(ctx context.Context) (*task.Job, error) {
		select {
		case err := <-w.failed:
			if err != nil {
				cancel(err)
				return nil, err
			}
			w.failed = nil
		default:
		}
		j, err := server.job(ctx, w.job)
		if err != nil && refused(err) {
			cancel(err) // waiting would not change that
		}
		return j, err
	}
	j, err := jobs.Watch{Job: w.job, Tasks: int64(w.tasks), Look: ask, At: look.C, Seen: seen}.Wait(ctx)
	bar.Finish()
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
			err = cause
		}
	}
	return j, err
}

// strangers notices tasks that do not show up in the job: a task belongs to the first job that
// submitted its id.
type strangers struct {
	c     *cli.Env
	known int64
	since time.Time
}

func (s *strangers) look(j *task.Job, tasks int64, bar *cli.Progress) {
	now := s.c.Now()
	if j.Known != s.known {
		s.known, s.since = j.Known, now
	}
	if j.Done == j.Known && j.Known > 0 && j.Known < tasks && now.Sub(s.since) > strangeAfter {
		bar.Note("unknown to this job: " + cli.Counted(tasks-j.Known, "task") + "; did another job use these ids before?")
		return
	}
	bar.Note("")
}

// interruptedWait says how to wait for a job again, or that some of its tasks are not submitted.
func interruptedWait(c *cli.Env, j *task.Job, missing int64) error {
	at, how := where(c), "the job continues on the server"
	if missing > 0 {
		how = fmt.Sprintf("of the file, %s not submitted yet: submit it again to continue", cli.Counted(missing, "task"))
	}
	return cli.WithCode(cli.ExitInterrupted, fmt.Errorf("interrupted with %d of %s finished; %s\nto wait again: batchyard jobs watch %s%s\nto get the results: batchyard jobs results %s -o FILE%s",
		j.Done, cli.Counted(j.Total, "task"), how, quoted(j.JobID), at, quoted(j.JobID), at))
}

// where is the flags that reach the same server and tenant again.
func where(c *cli.Env) string {
	text := ""
	if env := os.Getenv("BATCHYARD_SERVER"); c.Server != env && (env != "" || c.Server != cli.DefaultServer) {
		text += " --server " + quoted(c.Server)
	}
	if c.Tenant != os.Getenv("BATCHYARD_TENANT") {
		text += " --tenant " + quoted(c.Tenant)
	}
	return text
}

// quoted returns a word as a shell takes it.
func quoted(s string) string {
	if plainWord.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]+$`)
