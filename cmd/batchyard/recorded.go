package main

import (
	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/task"
)

// recordedCommands are the commands that write to the audit log themselves that they ran, because they reach
// Kafka or Postgres without a server that could record it.
var recordedCommands = map[string]struct {
	Action   task.Action
	Resource string
}{
	"audit query":   {Action: task.DataRead, Resource: "audit_log"},
	"audit tail":    {Action: task.DataRead, Resource: "audit_log"},
	"audit stats":   {Action: task.DataRead, Resource: "audit_log"},
	"audit export":  {Action: task.AuditExported, Resource: "audit_log"},
	"audit verify":  {Action: task.AuditVerified, Resource: "audit_log"},
	"audit prove":   {Action: task.DataRead, Resource: "audit_log"},
	"jobs prove":    {Action: task.DataRead, Resource: "audit_log"},
	"ledger check":  {Action: task.LedgerChecked, Resource: "ledger"},
	"dlq list":      {Action: task.DataRead, Resource: "dead_letter"},
	"dlq show":      {Action: task.DataRead, Resource: "dead_letter"},
	"migrate up":    {Action: task.SchemaChanged, Resource: "schema"},
	"migrate down":  {Action: task.SchemaChanged, Resource: "schema"},
	"topics create": {Action: task.TopicsCreated, Resource: "topic"},
}

// recordCommands wraps the commands that are recorded, below cmd, which has the given path.
func recordCommands(c *cli.Env, cmd *cobra.Command, path string) {
	for _, sub := range cmd.Commands() {
		at := sub.Name()
		if path != "" {
			at = path + " " + at
		}
		if r, ok := recordedCommands[at]; ok {
			c.Recorded(sub, r.Action, r.Resource)
		}
		recordCommands(c, sub, at)
	}
}
