package recorder

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
)

// relations returns the tables or views of the schema, without partitions.
func relations(t *testing.T, pool *pgxpool.Pool, kinds ...string) []string {
	t.Helper()
	rows, err := pool.Query(t.Context(), `SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind::text = ANY ($1)`, kinds)
	require.NoError(t, err)
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	require.NotEmpty(t, names)
	return names
}

func TestARecorderCanAddAndNothingElse(t *testing.T) {
	t.Parallel()
	owner, of := audittest.Logins(t, "batchyard_recorder")
	r := newRig(t, of["batchyard_recorder"])
	events, results := r.own("events", 0), r.own("results", 0)
	s := audittest.NewStory("t1")
	s.Task.Callback = &task.Callback{URL: "https://example.com/hook"}
	late := s.Event(task.TaskRefused, 0, "")
	late.Time = time.Now().Add(-400 * audit.Day) // to the default partition
	old := s.Event(task.TaskRefused, 0, "")
	old.Time = time.Now().Add(-40 * audit.Day)
	r.record(events.events(t, s.Accepted(), s.Event(task.TaskQueued, 0, ""), late, old), results.result(t, s.Result(task.Success, "d1")))
	r.record(results.result(t, s.Result(task.Failed, "d1", "d2")), events.events(t, s.Event(task.TaskReprioritized, 0, "")))
	require.Len(t, r.w.chunks.days.shortcuts(), 1, "the right to add to the partitions themselves")
	require.NoError(t, r.maintenance(func(cfg *Config) { cfg.Retention = 30 * audit.Day }).Once(t.Context()))
	require.NoError(t, r.w.offsets.reclaim(t.Context(), events))

	audittest.Execute(t, r.pool, "UPDATE stream_breaks SET resolved_at = now()")
	audittest.RequireDenied(t, r.pool, "UPDATE stream_breaks SET actor_id = ''")

	require.Equal(t, 4, audittest.One[int](t, owner, "SELECT count(*) FROM audit_log WHERE action <> 'audit.rows_recorded'"), "six were recorded, and the retention has dropped two")
	require.Equal(t, 1, audittest.One[int](t, owner, "SELECT count(*) FROM audit_log WHERE action = 'result.duplicate'"))
	require.Equal(t, "SUCCESS", audittest.One[string](t, owner, "SELECT state FROM tasks"))
	require.Equal(t, 1, audittest.One[int](t, owner, "SELECT count(*) FROM callbacks"))
	require.Equal(t, 1, audittest.One[int](t, owner, "SELECT sum(tasks)::int FROM rollup_usage"))

	today := "audit_log_" + time.Now().UTC().Format("20060102")
	for _, table := range []string{"audit_log", today, "audit_log_default"} {
		for _, sql := range []string{"SELECT * FROM %s", "SELECT row_hash FROM %s", "UPDATE %s SET outcome = 'ok'", "DELETE FROM %s", "TRUNCATE %s", "DROP TABLE %s", "ALTER TABLE %s ADD x int"} {
			audittest.RequireDenied(t, r.pool, fmt.Sprintf(sql, table))
		}
	}
	for _, sql := range []string{"DELETE FROM results", "UPDATE results SET output = NULL", "DELETE FROM audit_chains", "DELETE FROM audit_dropped", "DELETE FROM tasks", "UPDATE callbacks SET state = 'DUE'",
		"SELECT batchyard_rebuild_rollups('-infinity')", "SELECT batchyard_grant_roles()", "CREATE TABLE mine (x int)"} {
		audittest.RequireDenied(t, r.pool, sql)
	}
	_, err := r.pool.Exec(t.Context(), "SELECT batchyard_drop_audit_partition((now() AT TIME ZONE 'UTC')::date)")
	require.ErrorContains(t, err, "cannot be dropped")
}

// In a database that was created by Postgres 14 everyone may create functions in the schema public.
// One that matches arguments better than Postgres' own would be executed with the owner's
// privileges by the owner's functions.
func TestTheFunctionsOfTheOwnerCannotBeHijacked(t *testing.T) {
	t.Parallel()
	owner, of := audittest.Logins(t, "batchyard_reader", "batchyard_recorder")
	audittest.Execute(t, owner, "GRANT CREATE ON SCHEMA public TO PUBLIC")
	audittest.Execute(t, owner, "SELECT batchyard_grant_roles()")
	_, err := of["batchyard_reader"].Exec(t.Context(), `CREATE FUNCTION public.to_char(date, text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'run as %', current_user; END $$`)
	require.ErrorContains(t, err, "permission denied")
	_, err = of["batchyard_recorder"].Exec(t.Context(), "SELECT batchyard_make_audit_partition('2030-01-01')")
	require.NoError(t, err)
}

func TestReadersSeeTheViewsAndNothingElse(t *testing.T) {
	t.Parallel()
	owner, of := audittest.Logins(t, "batchyard_reader", "batchyard_auditor")
	reader, auditor := of["batchyard_reader"], of["batchyard_auditor"]
	for _, view := range relations(t, owner, "v") {
		for _, pool := range of {
			_, err := pool.Exec(t.Context(), "SELECT * FROM "+view)
			require.NoError(t, err, view)
			require.False(t, audittest.One[bool](t, pool, "SELECT has_table_privilege($1, 'INSERT, UPDATE, DELETE, TRUNCATE')", view), view)
		}
	}
	for _, table := range relations(t, owner, "r", "p") {
		audittest.RequireDenied(t, reader, "SELECT * FROM "+table)
		audittest.RequireDenied(t, auditor, "DELETE FROM "+table)
	}
	for _, table := range []string{"audit_log", "audit_chains", "audit_dropped", "tasks", "results", "callbacks"} {
		_, err := auditor.Exec(t.Context(), "SELECT * FROM "+table)
		require.NoError(t, err, table)
	}
	for _, pool := range of {
		for _, sql := range []string{"SELECT batchyard_make_audit_partition('2030-01-01')", "SELECT batchyard_drop_audit_partition('2020-01-01')",
			"SELECT batchyard_compact_rollups('2100-01-01')", "SELECT batchyard_rebuild_rollups('-infinity')", "SELECT batchyard_grant_roles()"} {
			audittest.RequireDenied(t, pool, sql)
		}
	}
}
