package main

import (
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit/verify"
	"github.com/batchyard/batchyard/migrations"
	"github.com/batchyard/batchyard/test/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// The rows are what a recorder would have written, and every example in docs/sql.md
// returns rows on them.
func TestExamplesReturnRows(t *testing.T) {
	t.Parallel()
	url := testenv.Get(t).DatabaseFrom(t, "batchyard schema", migrations.Up)
	o := loadOptions{URL: url, Rows: 60_000, Days: 5, Partitions: 2, Workers: 2, Seed: 7, Now: time.Now().UTC(), Out: io.Discard}
	require.NoError(t, load(t.Context(), o))
	require.ErrorContains(t, load(t.Context(), o), "use an empty database")

	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer func() { _ = conn.Close(t.Context()) }()
	ask := func(sql string) (n int64) {
		require.NoError(t, conn.QueryRow(t.Context(), sql).Scan(&n), sql)
		return n
	}
	rows := ask("SELECT count(*) FROM audit_log")
	require.InDelta(t, o.Rows, rows, 0.1*float64(o.Rows))
	require.Equal(t, rows, ask("SELECT sum(rows)::bigint FROM audit_chains"))
	require.Zero(t, ask("SELECT count(*) FROM audit_log_default"))
	pool, err := pgxpool.New(t.Context(), url)
	require.NoError(t, err)
	defer pool.Close()
	report, err := verify.Run(t.Context(), pool, verify.Options{}, nil)
	require.NoError(t, err)
	require.True(t, report.OK(), report.Findings)
	for _, g := range report.Gaps {
		require.Equal(t, verify.GapKeys, g.Kind, g.Detail)
	}
	require.Equal(t, rows, report.Rows)
	require.Equal(t, ask("SELECT count(*) FROM results"), ask("SELECT count(*) FROM tasks WHERE finished_at IS NOT NULL"))
	require.Equal(t, ask("SELECT count(*) FROM audit_log WHERE action = 'task.accepted'"), ask("SELECT count(*) FROM tasks"))
	var indexes []string
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT array_agg(indexname::text) FROM pg_indexes WHERE tablename IN ('audit_log', 'tasks', 'results', 'callbacks')").Scan(&indexes))
	for _, name := range []string{"audit_log_task", "audit_log_time", "audit_log_refused", "audit_log_user", "audit_log_device", "tasks_pkey", "tasks_by_state", "tasks_by_job", "results_pkey", "callbacks_due"} {
		require.Contains(t, indexes, name, "a dropped index must be recreated")
	}

	// The rollups match the rows.
	before := ask("SELECT sum(hashtextextended(u::text, 0) >> 20)::bigint FROM usage_by_day u") + ask("SELECT sum(hashtextextended(u::text, 0) >> 20)::bigint FROM stage_latency u") +
		ask("SELECT sum(hashtextextended(u::text, 0) >> 20)::bigint FROM submissions u")
	_, err = conn.Exec(t.Context(), "SELECT batchyard_rebuild_rollups('-infinity')")
	require.NoError(t, err)
	require.Equal(t, before, ask("SELECT sum(hashtextextended(u::text, 0) >> 20)::bigint FROM usage_by_day u")+ask("SELECT sum(hashtextextended(u::text, 0) >> 20)::bigint FROM stage_latency u")+
		ask("SELECT sum(hashtextextended(u::text, 0) >> 20)::bigint FROM submissions u"))

	page := "../../docs/sql.md"
	all, err := examples(page)
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(all), 14)
	for _, e := range all {
		f, err := measure(t.Context(), viewOptions{URL: url, Repeat: 2}, e)
		require.NoError(t, err, e.Name)
		if !strings.HasPrefix(e.Name, "callback_failures") { // so few tasks may have no failures
			require.NotZero(t, f.Rows, "the example of %s returns no rows", e.Name)
		}
	}
	var names []string
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT array_agg(relname::text) FROM pg_class WHERE relkind = 'v' AND relnamespace = 'public'::regnamespace").Scan(&names))
	for _, view := range names {
		require.True(t, slices.ContainsFunc(all, func(e example) bool { return strings.Contains(e.SQL, view) }), "%s has no example in docs/sql.md", view)
	}
	plans := t.TempDir() + "/plans.md"
	require.NoError(t, views(t.Context(), viewOptions{URL: url, Docs: page, Plans: plans, Repeat: 2, Out: io.Discard}))
	require.FileExists(t, plans)
}
