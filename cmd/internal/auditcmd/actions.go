package auditcmd

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/task"
)

func auditActionsCommand(c *cli.Env) *cobra.Command {
	markdown := false
	cmd := &cobra.Command{
		Use: "actions", Short: "List all actions that the audit log records",
		Long: `Lists all actions that the audit log records: which stage records it, the new state
of the task, and what it means.`,
		Example: "  batchyard audit actions\n  batchyard audit actions --json | jq -r '.[].action'",
		Args:    cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(*cobra.Command, []string) error {
			switch {
			case markdown && c.JSON:
				return cli.UsageError("--markdown and --json cannot be combined")
			case markdown:
				return writeActions(c.Out)
			case c.JSON:
				return c.PrintJSON(actionRows())
			}
			t := cli.NewTable(c.Out)
			t.Row("ACTION", "RECORDED BY", "STATE", "MEANING")
			for _, a := range task.Actions {
				t.Row(string(a.Action), a.Stage, string(a.State), a.Meaning)
			}
			return t.Flush()
		},
	}
	c.JSONFlag(cmd)
	cmd.Flags().BoolVar(&markdown, "markdown", false, "write the page docs/actions.md")
	return cmd
}

type actionRow struct {
	Action task.Action `json:"action"`
	Stage  string      `json:"recorded_by"`
	State  task.State  `json:"state,omitempty"`
	What   string      `json:"meaning"`
}

func actionRows() []actionRow {
	rows := make([]actionRow, 0, len(task.Actions))
	for _, a := range task.Actions {
		rows = append(rows, actionRow{a.Action, a.Stage, a.State, a.Meaning})
	}
	return rows
}

// writeActions writes the page about actions.
func writeActions(w io.Writer) error {
	var b strings.Builder
	b.WriteString("# Actions\n\n" +
		"Every action that the audit log records, in the order in which a task meets them. This page is\n" +
		"generated from `task.Actions` by `make config`. The recorder sends events with any other action to\n" +
		"the dead-letter topic.\n\n" +
		"| action | recorded by | new state | meaning |\n|---|---|---|---|\n")
	for _, a := range task.Actions {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", a.Action, a.Stage, a.State, strings.ReplaceAll(a.Meaning, "|", `\|`))
	}
	b.WriteString("\nTerminal states (SUCCESS, FAILED, CANCELLED, EXPIRED) come from the result of the task, not from an\naction.\n")
	_, err := io.WriteString(w, b.String())
	return err
}
