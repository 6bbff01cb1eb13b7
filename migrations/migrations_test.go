package migrations_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/testenv"
	"github.com/batchyard/batchyard/migrations"
)

// recorderTables is the version from which on all tables are there that a recorder
// writes in the order of its locks.
const recorderTables = 4

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
	require.NoError(t, migrations.Up(t.Context(), url), "the second time there is nothing to do")

	require.NoError(t, migrations.Down(t.Context(), url))
	require.ErrorContains(t, migrations.Check(t.Context(), conn), fmt.Sprintf("is version %d, this program needs %d: run `batchyard migrate up`", migrations.Needed()-1, migrations.Needed()))
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

func TestNewerSchemaIsReported(t *testing.T) {
	t.Parallel()
	url := testenv.Get(t).Database(t)
	require.NoError(t, migrations.Up(t.Context(), url))
	conn := connect(t, url)
	_, err := conn.Exec(t.Context(), "INSERT INTO batchyard_schema (version_id, is_applied) VALUES (999, true)")
	require.NoError(t, err)
	require.ErrorContains(t, migrations.Check(t.Context(), conn), fmt.Sprintf("is version 999, this program knows %d: update batchyard", migrations.Needed()))
}

func TestConcurrentMigrations(t *testing.T) {
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

// TestMigratingUnderARecorder: programs keep running during a migration. A recorder
// locks rows of results before rows of tasks, so a migration that waited for
// one of the two with a lock on the other would be in a deadlock with it.
func TestMigratingUnderARecorder(t *testing.T) {
	t.Parallel()
	url := testenv.Get(t).Database(t)
	require.NoError(t, migrations.Up(t.Context(), url))
	for range migrations.Needed() - recorderTables {
		require.NoError(t, migrations.Down(t.Context(), url))
	}
	conn, watch := connect(t, url), connect(t, url)
	tx, err := conn.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `INSERT INTO results (tenant, task_id, state, attempt, input_tokens, output_tokens, finished_at)
		VALUES ('acme', 't1', 'SUCCESS', 1, 0, 0, now())`)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- migrations.Up(t.Context(), url) }()
	var ended bool
	require.Eventually(t, func() bool { // it waits for the recorder, or has no need to
		select {
		case err = <-done:
			ended = true
			return true
		default:
		}
		var waits bool
		err := watch.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`).Scan(&waits)
		return err == nil && waits
	}, 30*time.Second, 20*time.Millisecond)
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `INSERT INTO tasks (tenant, task_id, state, seq, attempt, updated_at, known_from, submitted_at) VALUES ('acme', 't1', 'SUCCESS', 1, 1, now(), 0, now())`)
	require.NoError(t, err)
	require.NoError(t, tx.Commit(t.Context()))
	if !ended {
		require.NoError(t, <-done)
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

func TestNewPartitionTakesRowsFromTheDefault(t *testing.T) {
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

func TestDroppingADayRecordsItsRuns(t *testing.T) {
	t.Parallel()
	url := testenv.Get(t).Database(t)
	require.NoError(t, migrations.Up(t.Context(), url))
	conn := connect(t, url)
	exec := func(sql string, args ...any) {
		t.Helper()
		_, err := conn.Exec(t.Context(), sql, args...)
		require.NoError(t, err)
	}
	for _, made := range []bool{true, false} { // in a partition of its own, and in the default one
		exec("TRUNCATE audit_log, audit_dropped")
		if made {
			exec("SELECT batchyard_make_audit_partition('2026-01-31')")
		}
		// Rows 1, 2, 4, 5, 6 of one chain, where 6 does not follow 5; row 7 of another;
		// one outside any chain.
		for i, r := range []struct {
			part      int
			seq       any
			prev, row any
		}{{0, 2, "b", "c"}, {0, 1, "a", "b"}, {0, 4, "d", "e"}, {0, 6, "x", "g"}, {0, 5, "e", "f"}, {1, 7, "y", "z"}, {0, nil, nil, nil}} {
			exec(`INSERT INTO audit_log (time, tenant, actor_type, actor_id, action, outcome, src_topic, src_partition, src_offset, src_index, chain_seq, prev_hash, row_hash)
				VALUES ('2026-01-31T12:00:00Z', '', 'stage', 'x', 'device.joined', 'ok', 'events', $1, $2, 0, $3, $4::text::bytea, $5::text::bytea)`, r.part, i, r.seq, r.prev, r.row)
		}
		exec(`INSERT INTO audit_log (time, tenant, actor_type, actor_id, action, outcome, src_topic, src_partition, src_offset, src_index)
			VALUES ('2026-02-01T00:00:00Z', '', 'stage', 'x', 'device.joined', 'ok', 'events', 0, 99, 0)`) // of another day
		var dropped, chained, runs int
		require.NoError(t, conn.QueryRow(t.Context(), "SELECT * FROM batchyard_drop_audit_partition('2026-01-31')").Scan(&dropped, &chained, &runs))
		require.Equal(t, []int{7, 6, 4}, []int{dropped, chained, runs})
		rows, err := conn.Query(t.Context(), `SELECT format('%s %s/%s %s-%s %s %s', day, topic, partition, first_seq, last_seq,
			convert_from(prev_hash, 'UTF8'), convert_from(row_hash, 'UTF8')) FROM audit_dropped ORDER BY topic, partition, first_seq`)
		require.NoError(t, err)
		got, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		require.Equal(t, []string{"2026-01-31 events/0 1-2 a c", "2026-01-31 events/0 4-5 d f", "2026-01-31 events/0 6-6 x g", "2026-01-31 events/1 7-7 y z"}, got)
		var left int
		require.NoError(t, conn.QueryRow(t.Context(), "SELECT count(*) FROM audit_log").Scan(&left))
		require.Equal(t, 1, left)
	}
	// A day that may still get rows is not dropped.
	_, err := conn.Exec(t.Context(), "SELECT batchyard_drop_audit_partition((now() AT TIME ZONE 'UTC')::date - 1)")
	require.ErrorContains(t, err, "ended less than 24 hours ago")
	exec("SELECT batchyard_drop_audit_partition((now() AT TIME ZONE 'UTC')::date - 2)")
}
