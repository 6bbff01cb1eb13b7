// Package auditcmd has the commands that check what Batchyard did: audit, which
// searches, exports and verifies the audit log, and ledger, which accounts for every
// task. They read Kafka and Postgres themselves and need no running server.
package auditcmd

import (
	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/cmd/internal/cli"
)

// Command returns audit. Auditors log in to Postgres themselves, so no part of
// Batchyard has to run.
func Command(c *cli.Env) *cobra.Command {
	return cli.Group(&cobra.Command{
		Use: "audit", Short: "Search, follow, export, measure, verify and prove the audit log",
		Long: `The audit log has a row for everything that a person or a part of Batchyard did:
who, what, when, from where, and how it ended. It holds no prompts and no answers.

These commands read Postgres themselves, from postgres.url of the configuration or
from --postgres; a login with the role batchyard_auditor is enough.`,
		Example: "  batchyard audit query --task my-task-1\n  batchyard audit tail --action 'callback.*'",
	}, auditQueryCommand(c), auditTailCommand(c), auditExportCommand(c), auditStatsCommand(c), auditVerifyCommand(c), auditProveCommand(c), auditCheckProofCommand(c), auditWitnessCommand(c), auditAcceptCommand(c), auditActionsCommand(c))
}
