// Package migratecmd holds the command migrate, which changes the database schema.
package migratecmd

import (
	"bufio"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/migrations"
)

// Command returns the command migrate.
func Command(c *cli.Env) *cobra.Command {
	up := &cobra.Command{
		Use: "up", Short: "Bring the database schema up to what this program needs",
		Example: "  batchyard migrate up -c config.yaml\n  BATCHYARD_POSTGRES_URL=postgres://… batchyard migrate up",
		Args:    cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return migrateUp(cmd.Context(), c) },
	}
	yes := false
	down := &cobra.Command{
		Use: "down", Short: "Revert the latest migration, and drop its data",
		Long: `Reverts the latest migration, and drops the data in its tables. On a terminal it
asks first; elsewhere it needs --yes.`,
		Example: "  batchyard migrate down --yes",
		Args:    cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return migrateDown(cmd.Context(), c, confirmation(yes, c)) },
	}
	down.Flags().BoolVar(&yes, "yes", false, "do not ask")
	status := &cobra.Command{
		Use: "status", Short: "List the migrations and when each was applied",
		Example: "  batchyard migrate status\n  batchyard migrate status --json",
		Args:    cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return migrateStatus(cmd.Context(), c) },
	}
	for _, cmd := range []*cobra.Command{up, down, status} {
		c.ConfigFlag(cmd)
		c.JSONFlag(cmd)
	}
	return cli.Group(&cobra.Command{Use: "migrate", Short: "Change the database schema", Example: "  batchyard migrate up"}, up, down, status)
}

// Migration is a migration in JSON.
type Migration struct {
	Version   int64      `json:"version"`
	Name      string     `json:"name"`
	AppliedAt *time.Time `json:"applied_at"`
}

func asMigration(m migrations.Migration) Migration {
	out := Migration{Version: m.Version, Name: m.Name}
	if !m.AppliedAt.IsZero() {
		at := m.AppliedAt.UTC()
		out.AppliedAt = &at
	}
	return out
}

func migrateUp(ctx context.Context, c *cli.Env) error {
	url, before, err := migrationsNow(ctx, c)
	if err != nil {
		return err
	}
	if err := migrations.Up(ctx, url); err != nil {
		return migrationError(err)
	}
	applied := 0
	for _, m := range before {
		if !m.AppliedAt.IsZero() {
			continue
		}
		applied++
		if err := tellMigration(c, "applied", m); err != nil {
			return err
		}
	}
	if applied == 0 && !c.JSON {
		c.Printf("nothing to do: the schema is version %d\n", migrations.Needed())
	}
	missing, err := migrations.MissingRoles(ctx, url)
	if err != nil {
		return cli.ServiceError(err)
	}
	if len(missing) > 0 {
		_, _ = fmt.Fprintf(c.Err, "these roles are missing, and this login may not create them: %[1]s\n"+
			"have an administrator run CREATE ROLE … NOLOGIN for each, then run SELECT batchyard_grant_roles(); docs/sql.md says what they are for\n", strings.Join(missing, ", "))
	}
	return nil
}

// confirmation returns what asks before data is dropped: the user, unless --yes already answered.
func confirmation(yes bool, c *cli.Env) func(question string) error { //nolint:revive // the flag itself
	if yes {
		return func(string) error { return nil }
	}
	return func(question string) error { return confirm(c, question) }
}

func migrateDown(ctx context.Context, c *cli.Env, confirmed func(question string) error) error {
	url, before, err := migrationsNow(ctx, c)
	if err != nil {
		return err
	}
	var last *migrations.Migration
	for i := range before {
		if !before[i].AppliedAt.IsZero() {
			last = &before[i]
		}
	}
	if last == nil {
		if !c.JSON {
			c.Printf("nothing to do: the database has no schema\n")
		}
		return nil
	}
	if err := confirmed(fmt.Sprintf("Revert migration %s, and drop its data?", last.Name)); err != nil {
		return err
	}
	if err := migrations.Down(ctx, url); err != nil {
		return migrationError(err)
	}
	return tellMigration(c, "reverted", *last)
}

// confirm asks the user, and fails if there is no terminal to ask on.
func confirm(c *cli.Env, question string) error {
	if !cli.IsTerminal(c.In) || !c.StderrTTY {
		return cli.UsageError("this loses data: confirm with --yes")
	}
	_, _ = fmt.Fprintf(c.Err, "%s [y/N] ", question)
	answer, err := bufio.NewReader(c.In).ReadString('\n')
	if err != nil || !strings.EqualFold(strings.TrimSpace(answer), "y") {
		return cli.WithCode(cli.ExitFailed, fmt.Errorf("not confirmed: nothing was changed"))
	}
	return nil
}

func migrateStatus(ctx context.Context, c *cli.Env) error {
	_, all, err := migrationsNow(ctx, c)
	if err != nil {
		return err
	}
	t := cli.NewTable(c.Out, "VERSION", "NAME", "APPLIED")
	now := c.Now()
	for _, m := range all {
		if c.JSON {
			if err := c.PrintJSON(asMigration(m)); err != nil {
				return err
			}
			continue
		}
		applied := "no"
		if !m.AppliedAt.IsZero() {
			applied = cli.Ago(m.AppliedAt, now)
		}
		t.Row(strconv.FormatInt(m.Version, 10), m.Name, applied)
	}
	if c.JSON {
		return nil
	}
	return t.Flush()
}

// tellMigration prints what was done with a migration.
func tellMigration(c *cli.Env, what string, m migrations.Migration) error {
	if c.JSON {
		return c.PrintJSON(struct {
			Done    string `json:"done"`
			Version int64  `json:"version"`
			Name    string `json:"name"`
		}{what, m.Version, m.Name})
	}
	c.Printf("%s: %s\n", what, m.Name)
	return nil
}

// migrationsNow reads the configuration and the state of the database.
func migrationsNow(ctx context.Context, c *cli.Env) (url string, all []migrations.Migration, err error) {
	cfg, err := c.Config(nil)
	if err != nil {
		return "", nil, err
	}
	all, err = migrations.Status(ctx, cfg.Postgres.URL)
	return cfg.Postgres.URL, all, migrationError(err)
}

// migrationError gives an error from migrating its exit code.
func migrationError(err error) error {
	switch {
	case err == nil:
		return nil
	case strings.Contains(err.Error(), "migrating the database"):
		return cli.WithCode(cli.ExitFailed, err)
	}
	return cli.ServiceError(err)
}
