package migrations

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Roles are the roles to grant to logins; docs/sql.md describes their privileges. A
// migration that adds tables or views for them ends with SELECT batchyard_grant_roles().
var Roles = []string{"batchyard_recorder", "batchyard_callbacks", "batchyard_api", "batchyard_auditor", "batchyard_reader"}

// MissingRoles returns the roles that do not exist, because the user who migrated may not
// create roles.
func MissingRoles(ctx context.Context, url string) ([]string, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("connecting to Postgres: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	rows, err := conn.Query(ctx, `SELECT r FROM unnest($1::text[]) AS r WHERE r NOT IN (SELECT rolname FROM pg_roles)`, Roles)
	if err != nil {
		return nil, fmt.Errorf("looking for the roles: %w", err)
	}
	missing, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("looking for the roles: %w", err)
	}
	return missing, nil
}
