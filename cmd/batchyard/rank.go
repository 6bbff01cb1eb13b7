package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/task"
)

func tasksSetPriorityCommand(c *cli.Env) *cobra.Command {
	level := -1
	cmd := &cobra.Command{
		Use: "set-priority ID [high|normal|low]", Short: "Move a waiting task forward or back",
		Long: `Changes the priority of a waiting task, its level, or both. The exit code is 1 if it
has ended or is already on a device.

A task that is still unread in a long Kafka backlog gets its new rank when a router
reads it; it is not read earlier.`,
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
				return cli.Exactly("ID")(cmd, args)
			}
			return cli.Exactly("ID", "PRIORITY")(cmd, append(args, "-")[:max(2, len(args))])
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var in batchyard.PriorityChange
			if len(args) > 1 {
				in.Priority = task.Priority(args[1])
				if !slices.Contains(task.Priorities, in.Priority) {
					return cli.UsageError("unknown priority %q: use %s", args[1], cli.Or(priorityNames()))
				}
			}
			if cmd.Flags().Changed("level") {
				if level < 0 || level > task.MaxLevel {
					return cli.UsageError("--level must be 0 to %d", task.MaxLevel)
				}
				in.Level = &level
			}
			if in.Priority == "" && in.Level == nil {
				return cli.UsageError("tasks set-priority needs a priority, --level or both")
			}
			return setPriority(cmd.Context(), c, args[0], in)
		},
	}
	c.ClientFlags(cmd)
	c.JSONFlag(cmd)
	cmd.Flags().IntVar(&level, "level", 0, "`level` within the priority, 0 to 9, 9 first (default: unchanged)")
	return cmd
}

func setPriority(ctx context.Context, c *cli.Env, id string, in batchyard.PriorityChange) error {
	server, err := connect(c)
	if err != nil {
		return err
	}
	out, err := server.SetPriority(ctx, id, in)
	if err != nil {
		return fmt.Errorf("task %s: %w", id, err)
	}
	if c.JSON {
		return c.PrintJSON(out.RawJSON())
	}
	c.Printf("task %s (%s): %s level %d → %s level %d\n", cli.Plain(id), out.State, out.From.Priority, out.From.Level, out.To.Priority, out.To.Level)
	return nil
}

func tasksWhyCommand(c *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use: "why ID", Short: "Explain why a task waits, or went where it went",
		Long: `Explains what a task waits for, given the fleet as it is now, with a line for
each device, or which devices a task went to and why. With --json, prints the figures.`,
		Example: "  batchyard tasks why my-task-1\n  batchyard tasks why my-task-1 --json | jq .waiting.out",
		Args:    cli.Exactly("ID"), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, args []string) error { return tasksWhy(cmd.Context(), c, args[0]) },
	}
	c.ClientFlags(cmd)
	c.JSONFlag(cmd)
	return cmd
}

func tasksWhy(ctx context.Context, c *cli.Env, id string) error {
	server, err := connect(c)
	if err != nil {
		return err
	}
	w, err := server.Why(ctx, id)
	if err != nil {
		return fmt.Errorf("task %s: %w", id, err)
	}
	if c.JSON {
		return c.PrintJSON(w.RawJSON())
	}
	c.Printf("%s\n", cli.Plain(w.Sentence))
	if w.Waiting != nil {
		for i := range w.Waiting.Fleet {
			c.Printf("  %s\n", cli.Plain(w.Waiting.Fleet[i].Line))
		}
		if n := w.Waiting.Devices - len(w.Waiting.Fleet); n > 0 && len(w.Waiting.Fleet) > 0 {
			c.Printf("  and %s more: batchyard devices list\n", cli.Counted(n, "device"))
		}
	}
	return nil
}
