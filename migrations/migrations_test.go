package migrations_test

import (
	"context"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/testenv"
	"github.com/batchyard/batchyard/migrations"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

func TestUpDownUp(t *testing.T) {
	t.Parallel()
	url := testenv.Get(t).Database(t)
	conn := connect(t, url)
	require.ErrorContains(t, migrations.Check(t.Context(), conn), "no schema yet: run `batchyard migrate up`")
	require.NoError(t, migrations.Up(t.Context(), url))
	require.NoError(t, migrations.Check(t.Context(), conn))
	require.NoError(t, migrations.Up(t.Context(), url), "a second time there is nothing to do")

	require.NoError(t, migrations.Down(t.Context(), url))
	require.ErrorContains(t, migrations.Check(t.Context(), conn), "is version 3, this program needs 4: run `batchyard migrate up`")
	all, err := migrations.Status(t.Context(), url)
	require.NoError(t, err)
	require.Len(t, all, int(migrations.Needed()))
	require.False(t, all[0].AppliedAt.IsZero())
	require.True(t, all[len(all)-1].AppliedAt.IsZero())

	for range migrations.Needed() + 1 { // one more than there are
		require.NoError(t, migrations.Down(t.Context(), url))
	}
	var left int
	require.NoError(t, conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_class
		WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v') AND relname <> 'batchyard_schema'`).Scan(&left))
	require.Zero(t, left)
	require.NoError(t, migrations.Up(t.Context(), url))
	require.NoError(t, migrations.Check(t.Context(), conn))
}

func TestANewerSchemaIsTold(t *testing.T) {
	t.Parallel()
	url := testenv.Get(t).Database(t)
	require.NoError(t, migrations.Up(t.Context(), url))
	conn := connect(t, url)
	_, err := conn.Exec(t.Context(), "INSERT INTO batchyard_schema (version_id, is_applied) VALUES (999, true)")
	require.NoError(t, err)
	require.ErrorContains(t, migrations.Check(t.Context(), conn), "is version 999, this program knows 4: update batchyard")
}

func TestSeveralMigrateAtOnce(t *testing.T) {
	t.Parallel()
	url := testenv.Get(t).Database(t)
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		wg.Go(func() { errs[i] = migrations.Up(t.Context(), url) })
	}
	wg.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
	require.NoError(t, migrations.Check(t.Context(), connect(t, url)))
}

func TestEverythingHasAComment(t *testing.T) {
	t.Parallel()
	url := testenv.Get(t).Database(t)
	require.NoError(t, migrations.Up(t.Context(), url))
	conn := connect(t, url)
	_, err := conn.Exec(t.Context(), "SELECT batchyard_make_audit_partition('2026-01-31')")
	require.NoError(t, err)
	rows, err := conn.Query(t.Context(), `
		SELECT c.relname || coalesce('.' || a.attname, '')
		FROM pg_class c
		LEFT JOIN LATERAL (SELECT attname, attnum FROM pg_attribute
			WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped UNION ALL SELECT NULL, 0) a ON true
		WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v')
		  AND col_description(c.oid, a.attnum) IS NULL AND NOT (a.attnum = 0 AND obj_description(c.oid, 'pg_class') IS NOT NULL)
		  AND NOT (c.relispartition AND a.attnum > 0)`)
	require.NoError(t, err)
	missing, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	require.Empty(t, missing)
}

func TestThePartitionOfADayTakesWhatTheDefaultOneHeld(t *testing.T) {
	t.Parallel()
	url := testenv.Get(t).Database(t)
	require.NoError(t, migrations.Up(t.Context(), url))
	conn := connect(t, url)
	insert := `INSERT INTO audit_log (time, tenant, actor_type, actor_id, action, outcome, src_topic, src_partition, src_offset, src_index)
		VALUES ($1, '', 'stage', 'x', 'device.joined', 'ok', 'events', 0, $2, 0)`
	for i, at := range []string{"2026-01-30T23:59:59.999999Z", "2026-01-31T00:00:00Z", "2026-01-31T23:59:59.999999Z", "2026-02-01T00:00:00Z"} {
		_, err := conn.Exec(t.Context(), insert, at, i)
		require.NoError(t, err)
	}
	var made bool
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT batchyard_make_audit_partition('2026-01-31')").Scan(&made))
	require.True(t, made)
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT batchyard_make_audit_partition('2026-01-31')").Scan(&made))
	require.False(t, made)
	var day, rest int
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT (SELECT count(*) FROM audit_log_20260131), (SELECT count(*) FROM audit_log_default)").Scan(&day, &rest))
	require.Equal(t, []int{2, 2}, []int{day, rest})
}
