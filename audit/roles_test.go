package audit

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/testenv"
	"github.com/batchyard/batchyard/migrations"
	"github.com/batchyard/batchyard/task"
)

// logins makes a login for each role, which ends with the test, and returns
// pools with them, and one of the owner.
func logins(t *testing.T, roles ...string) (owner *pgxpool.Pool, of map[string]*pgxpool.Pool) {
	t.Helper()
	at := testenv.Get(t).DatabaseFrom(t, "batchyard schema", migrations.Up)
	owner, of = poolOn(t, at), map[string]*pgxpool.Pool{}
	for _, role := range roles {
		name := "login_" + strings.ToLower(rand.Text())
		_, err := owner.Exec(t.Context(), fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD 'secret' IN ROLE %s", name, role))
		require.NoError(t, err)
		t.Cleanup(func() {
			_, err := owner.Exec(context.WithoutCancel(t.Context()), "DROP ROLE "+name)
			require.NoError(t, err)
		})
		u, err := url.Parse(at)
		require.NoError(t, err)
		u.User = url.UserPassword(name, "secret")
		of[role] = poolOn(t, u.String())
	}
	return owner, of
}

// refusedFor checks that a statement is refused for want of a right.
func refusedFor(t *testing.T, pool *pgxpool.Pool, sql string) {
	t.Helper()
	_, err := pool.Exec(t.Context(), sql)
	var pg *pgconn.PgError
	require.ErrorAs(t, err, &pg, sql)
	require.Equal(t, "42501", pg.Code, "%s: %s", sql, pg.Message)
}

// relations are the tables or the views of the schema, without partitions.
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
	owner, of := logins(t, "batchyard_recorder")
	r := newRig(t, of["batchyard_recorder"])
	events, results := r.own("events", 0), r.own("results", 0)
	s := newStory("t1")
	s.task.Callback = &task.Callback{URL: "https://example.com/hook"}
	late := s.event(task.TaskRefused, 0, "")
	late.Time = time.Now().Add(-400 * day) // to the default partition
	old := s.event(task.TaskRefused, 0, "")
	old.Time = time.Now().Add(-40 * day)
	r.record(events.events(t, s.accepted(), s.event(task.TaskQueued, 0, ""), late, old), results.result(t, s.result(task.Success, "d1")))
	r.record(results.result(t, s.result(task.Failed, "d1", "d2")), events.events(t, s.event(task.TaskReprioritized, 0, "")))
	require.Len(t, r.w.db.days.shortcuts(), 1, "the right to add to the partitions themselves")
	require.NoError(t, maintainOnce(t.Context(), r.pool, 30*day, quiet(), r.w.m, func(droppedDay) {}))
	require.NoError(t, r.w.offsets.reclaim(t.Context(), events))

	require.Equal(t, 4, one[int](t, owner, "SELECT count(*) FROM audit_log"), "six were recorded, retention has taken two")
	require.Equal(t, 1, one[int](t, owner, "SELECT count(*) FROM audit_log WHERE action = 'result.duplicate'"))
	require.Equal(t, "SUCCESS", one[string](t, owner, "SELECT state FROM tasks"))
	require.Equal(t, 1, one[int](t, owner, "SELECT count(*) FROM callbacks"))
	require.Equal(t, 1, one[int](t, owner, "SELECT sum(tasks)::int FROM rollup_usage"))

	today := "audit_log_" + time.Now().UTC().Format("20060102")
	for _, table := range []string{"audit_log", today, "audit_log_default"} {
		for _, sql := range []string{"SELECT * FROM %s", "SELECT row_hash FROM %s", "UPDATE %s SET outcome = 'ok'", "DELETE FROM %s", "TRUNCATE %s", "DROP TABLE %s", "ALTER TABLE %s ADD x int"} {
			refusedFor(t, r.pool, fmt.Sprintf(sql, table))
		}
	}
	for _, sql := range []string{"DELETE FROM results", "UPDATE results SET output = NULL", "DELETE FROM audit_chains", "DELETE FROM audit_dropped", "DELETE FROM tasks", "UPDATE callbacks SET state = 'DUE'",
		"SELECT batchyard_rebuild_rollups('-infinity')", "SELECT batchyard_grant_roles()", "CREATE TABLE mine (x int)"} {
		refusedFor(t, r.pool, sql)
	}
	_, err := r.pool.Exec(t.Context(), "SELECT batchyard_drop_audit_partition((now() AT TIME ZONE 'UTC')::date)")
	require.ErrorContains(t, err, "cannot be dropped")
}

// In a database that comes from Postgres 14 everybody may create functions in the
// schema public. One with better fitting arguments than Postgres' own would be run
// with the owner's rights by the functions that work with these.
func TestNobodySlipsIntoTheFunctionsOfTheOwner(t *testing.T) {
	t.Parallel()
	owner, of := logins(t, "batchyard_reader", "batchyard_recorder")
	execute(t, owner, "GRANT CREATE ON SCHEMA public TO PUBLIC")
	execute(t, owner, "SELECT batchyard_grant_roles()")
	_, err := of["batchyard_reader"].Exec(t.Context(), `CREATE FUNCTION public.to_char(date, text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'run as %', current_user; END $$`)
	require.ErrorContains(t, err, "permission denied")
	_, err = of["batchyard_recorder"].Exec(t.Context(), "SELECT batchyard_make_audit_partition('2030-01-01')")
	require.NoError(t, err)
}

func TestReadersSeeTheViewsAndNothingElse(t *testing.T) {
	t.Parallel()
	owner, of := logins(t, "batchyard_reader", "batchyard_auditor")
	reader, auditor := of["batchyard_reader"], of["batchyard_auditor"]
	for _, view := range relations(t, owner, "v") {
		for _, pool := range of {
			_, err := pool.Exec(t.Context(), "SELECT * FROM "+view)
			require.NoError(t, err, view)
			require.False(t, one[bool](t, pool, "SELECT has_table_privilege($1, 'INSERT, UPDATE, DELETE, TRUNCATE')", view), view)
		}
	}
	for _, table := range relations(t, owner, "r", "p") {
		refusedFor(t, reader, "SELECT * FROM "+table)
		refusedFor(t, auditor, "DELETE FROM "+table)
	}
	for _, table := range []string{"audit_log", "audit_chains", "audit_dropped", "tasks", "results", "callbacks"} {
		_, err := auditor.Exec(t.Context(), "SELECT * FROM "+table)
		require.NoError(t, err, table)
	}
	for _, pool := range of {
		for _, sql := range []string{"SELECT batchyard_make_audit_partition('2030-01-01')", "SELECT batchyard_drop_audit_partition('2020-01-01')",
			"SELECT batchyard_compact_rollups('2100-01-01')", "SELECT batchyard_rebuild_rollups('-infinity')", "SELECT batchyard_grant_roles()"} {
			refusedFor(t, pool, sql)
		}
	}
}

func TestTheAPIReadsAndDoesNotWrite(t *testing.T) {
	t.Parallel()
	owner, of := logins(t, "batchyard_api")
	r := newRig(t, owner)
	s := newStory("t1")
	r.record(r.own("events", 0).events(t, s.accepted(), s.event(task.TaskQueued, 0, "")), r.own("results", 0).result(t, s.result(task.Success, "d1")))
	store := newTestStore(t, &rig{t: t, pool: of["batchyard_api"]}, Config{})
	row, err := store.Task(t.Context(), s.task.Key())
	require.NoError(t, err)
	require.NotNil(t, row.Result)
	_, err = store.WaitTask(t.Context(), s.task.Key())
	require.NoError(t, err)
	rows, _, err := store.Tasks(t.Context(), Filter{Tenant: "acme"})
	require.NoError(t, err)
	require.Len(t, rows, 1)
	events, err := store.Events(t.Context(), s.task.Key())
	require.NoError(t, err)
	require.Len(t, events, 2)
	counts, err := store.JobCounts(t.Context(), "acme", s.task.Job)
	require.NoError(t, err)
	require.Equal(t, int64(1), counts.Total)
	require.NoError(t, store.JobResults(t.Context(), "acme", s.task.Job, func(*task.Result) error { return nil }))
	for _, sql := range []string{"SELECT * FROM audit_log", "DELETE FROM tasks", "UPDATE results SET output = NULL", "SELECT * FROM callbacks"} {
		refusedFor(t, of["batchyard_api"], sql)
	}
}
