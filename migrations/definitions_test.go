package migrations_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/migrations"
	"github.com/batchyard/batchyard/test/testenv"
)

var update = flag.Bool("update", false, "write the definitions for the version of Postgres that the tests use")

// The definitions that verification compares a database with are those that the migrations make.
func TestDefinitionsAreThoseOfTheMigrations(t *testing.T) {
	t.Parallel()
	url := testenv.Get(t).Database(t)
	require.NoError(t, migrations.Up(t.Context(), url))
	conn := connect(t, url)
	_, err := conn.Exec(t.Context(), "SELECT batchyard_make_audit_partition('2026-01-31')")
	require.NoError(t, err)
	read := func(schema string) (d migrations.Definitions, server int) {
		require.NoError(t, pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) (err error) {
			d, server, err = migrations.ReadDefinitions(t.Context(), tx, schema)
			return err
		}))
		return d, server
	}
	got, server := read("public")
	path := fmt.Sprintf("definitions/%d.json", server)
	if *update {
		b, err := json.MarshalIndent(got, "", " ")
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path, append(b, '\n'), 0o644))
		return
	}
	want, err := migrations.KnownDefinitions(server)
	require.NoError(t, err)
	if want == nil {
		t.Skipf("no definitions are known for Postgres %d: run this test with -update", server)
	}
	require.Equal(t, want, got, "run `go test ./migrations -run TestDefinitions -update`")
	require.Equal(t, want.Digest(), got.Digest())

	// The same in a schema of another name.
	_, err = conn.Exec(t.Context(), `ALTER SCHEMA public RENAME TO "Other one"`)
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), `ALTER FUNCTION "Other one".batchyard_audit_partition(date) SET search_path = "Other one", pg_temp`)
	require.NoError(t, err)
	other, _ := read("Other one")
	require.Equal(t, got["function batchyard_audit_partition(day date)"], other["function batchyard_audit_partition(day date)"])
	require.Equal(t, got["view user_actions"], other["view user_actions"])
}
