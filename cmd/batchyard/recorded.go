package main

import (
	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/task"
)

// recordedCommands are the commands that write to the audit log themselves that they ran, because they reach
// Kafka or Postgres without a server that could record it.
var recordedCommands = map[string]struct {
	action   task.Action
	resource string
}{
	"audit query":   {task.DataRead, "audit_log"},
	"audit tail":    {task.DataRead, "audit_log"},
	"audit stats":   {task.DataRead, "audit_log"},
	"audit export":  {task.AuditExported, "audit_log"},
	"audit verify":  {task.AuditVerified, "audit_log"},
	"ledger check":  {task.LedgerChecked, "ledger"},
	"dlq list":      {task.DataRead, "dead_letter"},
	"dlq show":      {task.DataRead, "dead_letter"},
	"migrate up":    {task.SchemaChanged, "schema"},
	"migrate down":  {task.SchemaChanged, "schema"},
	"topics create": {task.TopicsCreated, "topic"},
}

// recordCommands wraps the commands that are recorded, below cmd, which has the given path.
func recordCommands(c *cli.Env, cmd *cobra.Command, path string) {
	for _, sub := range cmd.Commands() {
		at := sub.Name()
		if path != "" {
			at = path + " " + at
		}
		if r, ok := recordedCommands[at]; ok {
			c.Recorded(sub, r.action, r.resource)
		}
		recordCommands(c, sub, at)
	}
}
