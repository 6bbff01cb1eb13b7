package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/api"
	"github.com/batchyard/batchyard/task"
)

func (c *cli) tasksSetPriorityCommand() *cobra.Command {
	level := -1
	cmd := &cobra.Command{
		Use: "set-priority ID [high|normal|low]", Short: "Make a waiting task go earlier or later",
		Long: `Changes the priority of a task that waits, its level, or both. The exit code is 1 if
it has ended, or is at a device already.

A task that is still unread in a long backlog in Kafka is ranked anew when a
router reads it; it is not read earlier.`,
		Example: `  batchyard tasks set-priority my-task-1 high --level 7
  batchyard tasks set-priority my-task-1 --level 9`,
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return priorityNames(), cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return exactly("ID")(cmd, args)
			}
			return exactly("ID", "PRIORITY")(cmd, append(args, "-")[:max(2, len(args))])
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var in api.PriorityIn
			if len(args) > 1 {
				in.Priority = task.Priority(args[1])
				if !slices.Contains(task.Priorities, in.Priority) {
					return usageError("%q is no priority; use %s", args[1], strings.Join(priorityNames(), ", "))
				}
			}
			if cmd.Flags().Changed("level") {
				if level < 0 || level > task.MaxLevel {
					return usageError("--level must be 0 to %d", task.MaxLevel)
				}
				in.Level = &level
			}
			if in.Priority == "" && in.Level == nil {
				return usageError("tasks set-priority needs a priority, --level or both")
			}
			return c.setPriority(cmd.Context(), args[0], in)
		},
	}
	c.clientFlags(cmd)
	c.jsonFlag(cmd)
	cmd.Flags().IntVar(&level, "level", 0, "`level` within the priority, 0 to 9, 9 first (default: as it is)")
	return cmd
}

func (c *cli) setPriority(ctx context.Context, id string, in api.PriorityIn) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encoding the priority: %w", err)
	}
	raw, err := server.ask(ctx, http.MethodPatch, taskPath(id), nil, body, 0)
	if err != nil {
		return fmt.Errorf("task %s: %w", id, err)
	}
	if c.json {
		return c.printJSON(json.RawMessage(raw))
	}
	var out api.Reprioritized
	if err := json.Unmarshal(raw, &out); err != nil {
		return fmt.Errorf("reading what the server says of task %s: %w", id, err)
	}
	c.printf("task %s (%s): %s level %d → %s level %d\n", plain(id), out.State, out.From.Priority, out.From.Level, out.To.Priority, out.To.Level)
	return nil
}

func (c *cli) tasksWhyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "why ID", Short: "Say why a task waits, or went where it went",
		Long: `Says in words what a waiting task waits for, as the fleet is now, or to which
devices a task went, and why to these. With --json, the figures.`,
		Example: "  batchyard tasks why my-task-1\n  batchyard tasks why my-task-1 --json | jq .waiting.out",
		Args:    exactly("ID"), ValidArgsFunction: completeNothing,
		RunE: func(cmd *cobra.Command, args []string) error { return c.tasksWhy(cmd.Context(), args[0]) },
	}
	c.clientFlags(cmd)
	c.jsonFlag(cmd)
	return cmd
}

func (c *cli) tasksWhy(ctx context.Context, id string) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	var raw json.RawMessage
	if err := server.get(ctx, taskPath(id)+"/why", nil, 0, &raw); err != nil {
		return fmt.Errorf("task %s: %w", id, err)
	}
	if c.json {
		return c.printJSON(raw)
	}
	var w api.Why
	if err := json.Unmarshal(raw, &w); err != nil {
		return fmt.Errorf("reading what the server says of task %s: %w", id, err)
	}
	c.printf("%s\n", plain(w.Sentence))
	return nil
}
