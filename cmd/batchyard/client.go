package main

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/batchyard/batchyard"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/jobs"
	"github.com/batchyard/batchyard/task"
)

// submitRetry is how submits are retried. If the server has never answered, they are
// not: a wrong address should be reported at once.
var submitRetry = batchyard.RetryPolicy{MaxElapsed: 2 * time.Minute, KnownOnly: true}

// server is the Batchyard server of the flags. Reads are not retried: someone waits
// for the answer, or the caller asks again anyway.
type server struct {
	*batchyard.Client
	submits *batchyard.Client // retries
}

// connect returns the client of the flags. It sends nothing yet.
func connect(c *cli.Env) (*server, error) {
	questions, err := newClient(c, batchyard.RetryPolicy{})
	if err != nil {
		return nil, err
	}
	submits, err := newClient(c, submitRetry)
	return &server{questions, submits}, err
}

func newClient(c *cli.Env, retry batchyard.RetryPolicy) (*batchyard.Client, error) {
	options := []batchyard.Option{batchyard.WithUserAgent("batchyard-cli/" + c.Version), batchyard.WithRetry(retry)}
	client, err := batchyard.New(c.Server, options...)
	if err != nil {
		return nil, cli.UsageError("--server must look like http://host:port, without credentials") // not quoted: it may hold a password
	}
	for _, given := range []struct {
		name   string
		option batchyard.Option
	}{
		{"--tenant", batchyard.WithTenant(c.Tenant)},
		{"BATCHYARD_SERVER_KEY", batchyard.WithAPIKey(os.Getenv("BATCHYARD_SERVER_KEY"))},
	} {
		options = append(options, given.option)
		if client, err = batchyard.New(c.Server, options...); err != nil {
			return nil, cli.UsageError("%s: %w", given.name, err)
		}
	}
	return client, nil
}

// Submit is jobs.Submitter.
func (s *server) Submit(ctx context.Context, tasks []*task.Task) error {
	return s.submits.Submit(ctx, tasks...)
}

// JobResults is jobs.Source. The tenant is the client's own.
func (s *server) JobResults(ctx context.Context, _, job string, fn func(*task.Result) error) error {
	for r, err := range s.Results(ctx, job) {
		if err != nil {
			return err
		}
		if err := fn(r); err != nil {
			return err
		}
	}
	return nil
}

// job returns how far a job is. An unknown job has no tasks yet.
func (s *server) job(ctx context.Context, id string) (*task.Job, error) {
	j, err := s.Job(ctx, id)
	if errors.Is(err, batchyard.ErrNotFound) {
		return &task.Job{JobID: id, State: task.JobRunning}, nil
	}
	if err != nil {
		return nil, err
	}
	return &j.Job, nil
}

// announce announces a job. A name that belongs to another file is a mistake of the caller.
func (s *server) announce(ctx context.Context, spec *task.JobSpec) error {
	_, err := s.submits.AnnounceJob(ctx, spec)
	if errors.Is(err, batchyard.ErrConflict) {
		return cli.WithCode(cli.ExitUsage, err)
	}
	return err
}

// announced checks that a file is that of its job, without announcing it.
func (s *server) announced(ctx context.Context, plan *jobs.Plan) error {
	j, err := s.Job(ctx, plan.Job)
	if err != nil || j.SHA256 == "" || j.SHA256 == plan.SHA256 {
		return err
	}
	return cli.UsageError("%s is not the file of job %s (sha256 %s): name the file that was submitted", plan.Path, plan.Job, j.SHA256)
}

// refused reports whether the server answered, and would answer the same again.
func refused(err error) bool {
	var answer *batchyard.Error
	return errors.As(err, &answer) && !errors.Is(err, batchyard.ErrUnavailable)
}
