package verify

import (
	"fmt"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit/verify/tables"
	"github.com/batchyard/batchyard/test/audittest"
)

// Each column of results, tasks, callbacks and jobs is proven, unless tables.Bookkeeping lists it: whichever is changed,
// in whichever row, verification finds it.
func TestEveryColumnIsProven(t *testing.T) {
	t.Parallel()
	w := newScene(t)
	pool, dir := w.copyTo(t)
	type column struct{ Table, Name, Type string }
	all, err := pgx.CollectRows(must(pool.Query(t.Context(), `SELECT c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
		WHERE c.relnamespace = 'public'::regnamespace AND c.relname IN ('results', 'tasks', 'callbacks', 'jobs') AND a.attnum > 0 AND NOT a.attisdropped ORDER BY 1, a.attnum`)), pgx.RowToStructByPos[column])
	require.NoError(t, err)
	require.Greater(t, len(all), 80)
	other := map[string]string{
		"text": "coalesce(%s, '') || 'x'", "json": `'{"other":1}'`, "integer": "coalesce(%s, 1) - 1", "bigint": "coalesce(%s, 0) + 1", "smallint": "%s - 1", "bytea": "sha256('x')",
		"timestamp with time zone": "coalesce(%s, now()) + interval '1 microsecond'",
	}
	for _, table := range []string{"results", "tasks", "callbacks", "jobs"} {
		audittest.Execute(t, pool, fmt.Sprintf("CREATE TABLE saved_%[1]s AS TABLE %[1]s", table))
	}
	audittest.Execute(t, pool, "ALTER TABLE callbacks DROP CONSTRAINT callbacks_check")
	wrong := func() bool {
		return slices.ContainsFunc(w.verify(pool, dir).Findings, func(f Finding) bool { return f.Reason != Definition })
	}
	for _, c := range all {
		value := other[c.Type]
		if c.Name == "state" {
			value = "CASE WHEN %[1]s IN ('DUE', 'GIVEN_UP') THEN 'DELIVERED' WHEN %[1]s = 'DELIVERED' THEN 'DUE' WHEN %[1]s = 'FAILED' THEN 'CANCELLED' ELSE 'FAILED' END"
		}
		if slices.Contains([]string{"text", "integer", "bigint", "smallint", "timestamp with time zone"}, c.Type) {
			value = fmt.Sprintf(value, c.Name)
		}
		listed := slices.ContainsFunc(tables.Bookkeeping, func(u struct {
			Table   string
			Columns []string
		}) bool {
			return u.Table == c.Table && slices.Contains(u.Columns, c.Name)
		})
		audittest.Execute(t, pool, fmt.Sprintf("UPDATE %[1]s SET %[2]s = %[3]s WHERE ctid = (SELECT ctid FROM %[1]s ORDER BY md5(%[1]s::text) LIMIT 1)", c.Table, c.Name, value))
		require.Equal(t, !listed, wrong(), "%s.%s", c.Table, c.Name)
		audittest.Execute(t, pool, "TRUNCATE "+c.Table)
		audittest.Execute(t, pool, fmt.Sprintf("INSERT INTO %[1]s SELECT * FROM saved_%[1]s", c.Table))
	}
	require.False(t, wrong(), "all is as it was")
}
