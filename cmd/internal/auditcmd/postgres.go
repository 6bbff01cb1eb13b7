package auditcmd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/cmd/internal/app"
	"github.com/batchyard/batchyard/cmd/internal/cli"
)

// postgresFlag is for commands whose users may have their own login.
func postgresFlag(c *cli.Env, cmd *cobra.Command, url *string) {
	cmd.Flags().Var((*givenValue)(url), "postgres", "connection `URL` of Postgres (default: postgres.url of the configuration)")
}

// withPostgres connects to the Postgres of the URL, or of the configuration if it is
// empty, and calls fn.
func withPostgres(ctx context.Context, c *cli.Env, url string, fn func(*pgxpool.Pool, app.Config) error) error {
	cfg, err := c.Config(nil)
	if err != nil {
		return err
	}
	if url != "" {
		cfg.Postgres.URL = url
	}
	pool, err := app.OpenPostgres(ctx, cfg.Postgres)
	if err != nil {
		return cli.ServiceError(err)
	}
	defer pool.Close()
	return fn(pool, cfg)
}

// givenValue is a flag's value, which must not be empty: an unset shell variable would
// show the rows of all tenants, or of another database.
type givenValue string

func (n *givenValue) String() string { return string(*n) }

// Type is not shown: each flag names its value.
func (*givenValue) Type() string { return "string" }

// Set stores the value.
func (n *givenValue) Set(s string) error {
	if s == "" {
		return errors.New("it is empty; give a value, or omit the flag")
	}
	*n = givenValue(s)
	return nil
}

// logError gives an error from reading the audit log or other tables its exit code and
// its remedy. It looks at Postgres errors only: other errors may say that a topic does
// not exist, or that permission for a file is denied.
func logError(err error) error {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	switch {
	case !ok:
		return err
	case pg.Code == "42501": // insufficient_privilege
		return cli.WithCode(cli.ExitUsage, fmt.Errorf("%w; this login needs the role batchyard_auditor", err))
	case strings.Contains(pg.Message, "does not exist"):
		return cli.WithCode(cli.ExitUsage, fmt.Errorf("%w; run `batchyard migrate up`", err))
	}
	return err
}
