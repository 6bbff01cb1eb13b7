package main

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/batchyard/batchyard"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/task"
)

// submitRetry is how submits are retried. A server that has never answered is
// not: someone waits to hear that the address is wrong.
var submitRetry = batchyard.RetryPolicy{MaxElapsed: 2 * time.Minute, KnownOnly: true}

// Server is the Batchyard server that the flags name. Questions are asked once:
// someone waits for the answer, or asks again anyway.
type server struct {
	*batchyard.Client
	submits *batchyard.Client // retries
}

// connect makes the client that the flags ask for. Nothing is sent yet.
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
		return nil, cli.UsageError("--server must look like http://host:port, without credentials") // which it may hold
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

// job says how far a job is. One that is unknown so far has no tasks.
func (s *server) job(ctx context.Context, id string) (*batchyard.JobProgress, error) {
	j, err := s.Job(ctx, id)
	if errors.Is(err, batchyard.ErrNotFound) {
		return &batchyard.JobProgress{JobID: id}, nil
	}
	return j, err
}

// refused reports whether the server answered that it will not do this, however
// often it is asked.
func refused(err error) bool {
	var answer *batchyard.Error
	return errors.As(err, &answer) && !errors.Is(err, batchyard.ErrUnavailable)
}
