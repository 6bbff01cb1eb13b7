package main

import (
	"context"
	"fmt"
	"time"

	"github.com/batchyard/batchyard"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/task"
)

const (
	// stallAfter is how long a job may make no progress until it is explained why.
	stallAfter = 10 * time.Second
	// whyTimeout bounds the question why.
	whyTimeout = 5 * time.Second
)

// stall notices that a job makes no progress, and says why: each cause once.
type stall struct {
	c    *cli.Env
	why  func(ctx context.Context, job string) ([]batchyard.JobCause, error)
	sent bool // the whole file is known to be submitted
	done int64
	last time.Time // when there was progress, or the question was asked
	told map[string]bool
}

func newStall(c *cli.Env, s *server, sent bool) *stall {
	return &stall{c: c, why: s.WhyJob, sent: sent, done: -1, told: map[string]bool{}}
}

// look takes how far the job is.
func (s *stall) look(ctx context.Context, j *task.Job, bar *cli.Progress) {
	now := s.c.Now()
	if j.Done != s.done {
		s.done, s.last = j.Done, now
		return
	}
	if now.Sub(s.last) < stallAfter {
		return
	}
	s.last = now
	switch {
	case j.Known == 0:
		s.tell(bar, "unrecorded", "no task of the job is recorded yet: was its file submitted to the end, and is the stage audit running?")
		return
	case j.Done == j.Known:
		if missing := j.NotSubmitted(); missing > 0 && !s.sent {
			s.tell(bar, "not submitted", fmt.Sprintf("%s of %d of the file not submitted: submit the file again to continue", cli.Counted(missing, "task"), j.Total))
		}
		return
	}
	ctx, cancel := context.WithTimeout(ctx, whyTimeout)
	defer cancel()
	causes, err := s.why(ctx, j.JobID)
	if err != nil {
		return // the next look at the job reports what is wrong
	}
	for _, cause := range causes {
		text := cause.Sentence
		if cause.Tasks > 1 {
			text = cli.Counted(cause.Tasks, "task") + " like " + cause.TaskID + ": " + text
		} else {
			text = "task " + cause.TaskID + ": " + text
		}
		s.tell(bar, cause.Cause, text, cause.Devices...)
	}
}

func (s *stall) tell(bar *cli.Progress, cause, text string, lines ...string) {
	if s.told[cause] {
		return
	}
	s.told[cause] = true
	bar.Note(text)
	for _, line := range lines {
		if !s.told[line] { // of another cause
			s.told[line] = true
			bar.Note("  " + line)
		}
	}
}
