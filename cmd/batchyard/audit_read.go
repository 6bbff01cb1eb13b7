package main

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/internal/app"
)

// postgresFlag is for commands that people with a login of their own use.
func (c *cli) postgresFlag(cmd *cobra.Command, url *string) {
	cmd.Flags().StringVar(url, "postgres", "", "connection `URL` of Postgres (default: postgres.url of the configuration)")
}

// withPostgres connects to Postgres, by a URL or else by the configuration, and calls fn.
func (c *cli) withPostgres(ctx context.Context, url string, fn func(*pgxpool.Pool, app.Config) error) error {
	cfg, err := c.config(nil)
	if err != nil {
		return err
	}
	if url != "" {
		cfg.Postgres.URL = url
	}
	pool, err := app.OpenPostgres(ctx, cfg.Postgres)
	if err != nil {
		return serviceError(err)
	}
	defer pool.Close()
	return fn(pool, cfg)
}
