package catalog

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// The digests are those of a server as it was installed. If this fails for a version that is known, another minor version
// has another catalog, and the part of it cannot be compared.
func TestTheCatalogOfPostgresIsKnown(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	server := audittest.One[int](t, pool, "SELECT current_setting('server_version_num')::int / 10000")
	tx, err := pool.BeginTx(t.Context(), pgx.TxOptions{AccessMode: pgx.ReadOnly})
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(t.Context()) }()
	_, err = tx.Exec(t.Context(), "SELECT set_config('search_path', 'pg_catalog, pg_temp', true)")
	require.NoError(t, err)
	got, _, err := Builtins(t.Context(), tx)
	require.NoError(t, err)
	if builtinDigests[server] == nil {
		t.Skipf("the catalog of Postgres %d is not known: its digests are %q", server, got)
	}
	require.Equal(t, builtinDigests[server], got)
}
