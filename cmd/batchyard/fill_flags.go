package main

import (
	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/jobs"
	"github.com/batchyard/batchyard/task"
)

// fillFlags say what the lines of a file get that leave it out.
type fillFlags struct{ endpoint, model string }

func (f *fillFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.endpoint, "endpoint", "", "`path` of lines without a url, such as "+task.EndpointChat)
	cmd.Flags().StringVar(&f.model, "model", "", "`name` of the model of lines without one")
	cli.CompleteFlag(cmd, "endpoint", task.Endpoints)
}

// check returns the endpoint as a task has it.
func (f *fillFlags) check() (endpoint string, err error) {
	if f.endpoint == "" {
		return "", nil
	}
	if endpoint = jobs.Endpoint(f.endpoint); endpoint == "" {
		return "", cli.UsageError("unknown endpoint %q: use %s", f.endpoint, cli.Or(task.Endpoints))
	}
	return endpoint, nil
}
