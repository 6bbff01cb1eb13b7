package auditcmd

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder/statements"
	"github.com/batchyard/batchyard/audit/verify"
	"github.com/batchyard/batchyard/cmd/internal/app"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

const (
	maxReason     = 500 // characters
	acceptTimeout = 30 * time.Second
)

func auditAcceptCommand(c *cli.Env) *cobra.Command {
	var f verifyFlags
	var reason string
	cmd := &cobra.Command{
		Use: "accept-restore", Short: "Declare that the database was restored from a backup",
		Long: `After a restore from a backup, checkpoints contradict the log: they were signed for
rows that the backup lacks. This verifies the whole log, and if a restore explains
everything that it finds, signs a statement with the key of the checkpoints. From then
on older checkpoints no longer count where the backup lacks rows, and later ones guard
the chains again. The statement and its reason stay in the log, and so does the event
audit.restore_accepted.

Run it on the host that has the signing key (audit.signing_key_file). Keep the copy of
the old checkpoints: what the backup lacks was recorded once.`,
		Example: `  batchyard audit accept-restore --reason "disk failure on db-1, backup of 04:00"`,
		Args:    cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if reason = strings.TrimSpace(reason); reason == "" || len([]rune(reason)) > maxReason {
				return cli.UsageError("--reason must have 1 to %d characters: say what was restored, and why", maxReason)
			}
			return acceptRestore(cmd.Context(), c, &f, reason)
		},
	}
	c.ConfigFlag(cmd)
	postgresFlag(c, cmd, &f.postgres)
	cmd.Flags().StringVar(&reason, "reason", "", "why the database was restored; it stays in the log")
	cmd.Flags().StringArrayVar(&f.checkpoints, "checkpoints", nil, "`file` or directory of a copy of checkpoints; repeatable (in addition to audit.checkpoint_dir)")
	cmd.Flags().StringArrayVar(&f.keys, "public-key", nil, "PEM `file` of a key to trust; repeatable (default: signing.pub in audit.checkpoint_dir)")
	return cmd
}

func acceptRestore(ctx context.Context, c *cli.Env, f *verifyFlags, reason string) error {
	return withPostgres(ctx, c, f.postgres, func(pool *pgxpool.Pool, cfg app.Config) error {
		key, err := existingKey(cfg)
		if err != nil {
			return err
		}
		o := verify.Options{LogOnly: true}
		if _, err := loadCheckpoints(ctx, cfg, &f.checkpointFlags, &o); err != nil {
			return err
		}
		show := &verifyProgress{c: c}
		report, err := verify.Run(ctx, pool, o, show.set)
		show.end()
		if err != nil {
			return logError(err)
		}
		accepted, err := report.AcceptRestore(reason)
		if err != nil {
			return cli.WithCode(cli.ExitFailed, fmt.Errorf("nothing was accepted: %w; see `batchyard audit verify`", err))
		}
		log, err := stream.Open(ctx, cfg.Kafka, slog.New(slog.DiscardHandler), nil)
		if err != nil {
			return cli.ServiceError(err)
		}
		defer func() { _ = log.Close() }()
		s := &audit.Statement{Kind: audit.RestoreAccepted, ActorID: operator(), Restore: accepted}
		// The event comes first: if the process dies in between, it says what someone was about to accept.
		if err := announce(ctx, log, c, s); err != nil {
			return err
		}
		if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return statements.Append(ctx, tx, key, s) }); err != nil {
			return logError(err)
		}
		c.Printf("accepted as statement %d: the log is guarded again from here on\n", s.Number)
		return nil
	})
}

// existingKey reads the signing key; it must not create one, which no one would trust.
func existingKey(cfg app.Config) (ed25519.PrivateKey, error) {
	path := cfg.Audit.SigningKeyFile
	if path == "" {
		path = filepath.Join(cfg.Audit.CheckpointDir, audit.SigningKeyFile)
	}
	if !exists(path) {
		return nil, cli.UsageError("there is no signing key at %s: run this where the recorder's key is, or set audit.signing_key_file", path)
	}
	key, err := audit.LoadSigningKey(path)
	return key, cli.WithCode(cli.ExitUsage, err)
}

// operator returns who runs the command, as user@host.
func operator() string { return cli.UserName() + "@" + cli.HostName() }

// announce writes the event, and waits until Kafka has it.
func announce(ctx context.Context, log *stream.Client, c *cli.Env, s *audit.Statement) error {
	detail, err := json.Marshal(s.Restore)
	if err != nil || len(detail) > task.MaxDetail {
		detail, _ = json.Marshal(map[string]string{"reason": s.Restore.Reason}) // text: it cannot fail
	}
	ctx, cancel := context.WithTimeout(ctx, acceptTimeout)
	defer cancel()
	err = cli.WriteEvent(ctx, log, task.Event{
		Time: time.Now().UTC(), Action: task.RestoreAccepted, Outcome: task.OutcomeOK, ActorType: task.ActorUser, ActorID: s.ActorID, UserAgent: "batchyard-cli/" + c.Version,
		ResourceType: "database", ResourceID: "audit_log", Detail: detail,
	})
	if err != nil {
		return fmt.Errorf("writing the event audit.restore_accepted: %w", cli.ServiceError(err))
	}
	return nil
}
