package migrations_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/migrations"
	"github.com/batchyard/batchyard/test/testenv"
)

// A database that was restored from a dump has the same definitions: verification would report others.
func TestDefinitionsAreTheSameAfterARestore(t *testing.T) {
	t.Parallel()
	dump, err := exec.LookPath("pg_dump")
	if err != nil {
		t.Skip("there is no pg_dump")
	}
	read := func(url string) (d migrations.Definitions) {
		require.NoError(t, pgx.BeginFunc(t.Context(), connect(t, url), func(tx pgx.Tx) (err error) {
			d, _, err = migrations.ReadDefinitions(t.Context(), tx, "public")
			return err
		}))
		return d
	}
	run := func(name string, args ...string) {
		out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
		if err != nil && strings.Contains(string(out), "server version mismatch") {
			t.Skip("pg_dump is older than the server")
		}
		require.NoError(t, err, "%s", out)
	}
	from, to := testenv.Get(t).Database(t), testenv.Get(t).Database(t)
	require.NoError(t, migrations.Up(t.Context(), from))
	want := read(from)
	file := filepath.Join(t.TempDir(), "dump")
	run(dump, "--format=custom", "--file="+file, "--dbname="+from)
	restore, err := exec.LookPath("pg_restore")
	require.NoError(t, err)
	run(restore, "--dbname="+to, file)
	require.Equal(t, want, read(to))
}
