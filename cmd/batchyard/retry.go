package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/task"
)

func tasksRetryCommand(c *cli.Env) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "retry ID…", Short: "Run finished tasks again",
		Long: `Runs finished tasks again, however they ended. The result of the new run becomes
the answer, and is sent to the callback of the task; earlier results stay in the
table results. Who asked, and the reason, go into the audit log.

A task that has not finished is left alone; the exit code is then 1. Kafka must
still have the task's record: it keeps records for kafka.retention.`,
		Example: `  batchyard tasks retry my-task-1 --reason "the model had the wrong template"
  batchyard tasks list --state FAILED --all --json | jq -r .task_id | xargs batchyard tasks retry`,
		Args: cli.AtLeastOne("ID"), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, args []string) error { return tasksRetry(cmd.Context(), c, args, reason) },
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit log")
	c.ClientFlags(cmd)
	c.JSONFlag(cmd)
	return cmd
}

// retried is what retry prints as JSON for each task.
type retried struct {
	ID         string     `json:"task_id"`
	Retried    bool       `json:"retried"`
	Generation int        `json:"generation,omitempty"`
	Previous   task.State `json:"previous_state,omitempty"`
	State      task.State `json:"state,omitempty"`
	Error      string     `json:"error,omitempty"`
}

func tasksRetry(ctx context.Context, c *cli.Env, ids []string, reason string) error {
	server, err := connect(c)
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range ids {
		out := retried{ID: id}
		r, err := server.Retry(ctx, id, reason)
		var answer *batchyard.Error
		switch {
		case err == nil:
			out.Retried, out.Generation, out.Previous, out.State = true, r.Generation, r.Previous, r.State
		case refused(err) && errors.As(err, &answer):
			out.State, out.Error = answer.State, answer.Detail
			errs = append(errs, cli.WithCode(cli.CodeOf(err), fmt.Errorf("task %s: %w", id, err)))
		default:
			return errors.Join(append(errs, fmt.Errorf("retrying task %s: %w", id, err))...) // the others would fail the same way
		}
		if c.JSON {
			if err := c.PrintJSON(out); err != nil {
				return err
			}
		} else if out.Retried {
			c.Printf("task %s (%s): runs again as generation %d\n", cli.Plain(id), out.Previous, out.Generation)
		}
	}
	return errors.Join(errs...)
}
