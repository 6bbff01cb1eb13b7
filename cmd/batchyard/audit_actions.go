package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/task"
)

func (c *cli) auditActionsCommand() *cobra.Command {
	markdown := false
	cmd := &cobra.Command{
		Use: "actions", Short: "List every action that is ever recorded",
		Long: `Lists every action that the audit log knows: who records it, the state that the
task is in afterwards, and what it means. What is not in the list is not recorded.`,
		Example: "  batchyard audit actions\n  batchyard audit actions --json | jq -r '.[].action'",
		Args:    exactly(), ValidArgsFunction: completeNothing,
		RunE: func(*cobra.Command, []string) error {
			switch {
			case markdown && c.json:
				return usageError("--markdown and --json exclude each other")
			case markdown:
				return writeActions(c.out)
			case c.json:
				return c.printJSON(actionRows())
			}
			t := newTable(c.out)
			t.row("ACTION", "RECORDED BY", "STATE", "MEANING")
			for _, a := range task.Actions {
				t.row(string(a.Action), a.Stage, string(a.State), a.Meaning)
			}
			return t.flush()
		},
	}
	c.jsonFlag(cmd)
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
		"Everything that the audit log records, in the order of a task's way. The list is\n" +
		"`task.Actions` in the code and this page is made from it (`make config`); what the\n" +
		"list lacks is never recorded: the recorder sends it to the dead letters.\n\n" +
		"| action | recorded by | state afterwards | meaning |\n|---|---|---|---|\n")
	for _, a := range task.Actions {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", a.Action, a.Stage, a.State, strings.ReplaceAll(a.Meaning, "|", `\|`))
	}
	b.WriteString("\nA terminal state (SUCCESS, FAILED, CANCELLED, EXPIRED) comes from the task's result,\nnot from an action.\n")
	_, err := io.WriteString(w, b.String())
	return err
}
