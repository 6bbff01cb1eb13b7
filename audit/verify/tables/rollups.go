package tables

import (
	"fmt"
	"strings"

	"github.com/batchyard/batchyard/audit/verify/copyrows"
)

// rollup is a table of counts, with a query that counts the rows themselves, as batchyard_rebuild_rollups
// does. The query has the columns at (a day, as a date), the hour of the day, the keys and the sums.
type rollup struct {
	table, keys string
	sums        []string // names
	rows        string
	days        bool // it has no hours
	keyCount    int
}

// rollups are all rollups, in the order of the constants that begin with counts.
var rollups = [rollupCount]rollup{
	{
		table: "rollup_usage", keys: "tenant, model, endpoint, state", keyCount: 4, sums: []string{"tasks", "attempts", "input_tokens", "output_tokens"},
		rows: `SELECT finished_at::date AS day, extract(hour FROM finished_at)::int AS hour, tenant, coalesce(model, '') AS model, coalesce(endpoint, '') AS endpoint, state,
	1 AS tasks, attempt AS attempts, input_tokens, output_tokens FROM @results`,
	},
	{
		table: "rollup_latency", keys: "stage, model, bucket", keyCount: 3, sums: []string{"n", "us"},
		rows: `SELECT at::date AS day, extract(hour FROM at)::int AS hour, stage, model, @batchyard_bucket(us) AS bucket, 1 AS n, us FROM (
	SELECT time AS at, CASE action WHEN 'task.assigned' THEN 'queue' WHEN 'batch.closed' THEN 'batch' WHEN 'attempt.succeeded' THEN 'attempt'
		WHEN 'attempt.failed' THEN 'failed_attempt' ELSE 'callback' END AS stage, coalesce(model, '') AS model, greatest(0, coalesce(round(duration_ms * 1e6)::bigint / 1000, 0)) AS us
	FROM @audit_log WHERE action IN ('task.assigned', 'batch.closed', 'attempt.succeeded', 'attempt.failed', 'callback.delivered')
	UNION ALL
	SELECT finished_at, 'dispatch', coalesce(model, ''), (extract(epoch FROM started_at - assigned_at) * 1000000)::bigint FROM @results WHERE started_at >= assigned_at
	UNION ALL
	SELECT finished_at, 'total', coalesce(model, ''), (extract(epoch FROM finished_at - submitted_at) * 1000000)::bigint FROM @results WHERE state = 'SUCCESS' AND finished_at >= submitted_at) s`,
	},
	{
		table: "rollup_attempts", keys: "device_id, model, action, cause", keyCount: 4, sums: []string{"n", "requests", "us"},
		rows: `SELECT time::date AS day, extract(hour FROM time)::int AS hour, coalesce(device_id, '') AS device_id, coalesce(model, '') AS model, action,
	coalesce(error_class, CASE WHEN action = 'task.requeued' THEN left(detail->>'reason', 64) END, '') AS cause, 1 AS n,
	CASE WHEN action LIKE 'attempt.%' AND coalesce(detail->>'request_index', '0') = '0' THEN 1 ELSE 0 END AS requests,
	CASE WHEN action LIKE 'attempt.%' AND coalesce(detail->>'request_index', '0') = '0' AND duration_ms > 0 THEN round(duration_ms * 1e6)::bigint / 1000 ELSE 0 END AS us
	FROM @audit_log WHERE action IN ('attempt.succeeded', 'attempt.failed', 'task.requeued', 'task.degraded')`,
	},
	{
		table: "rollup_batches", keys: "model, reason, size", keyCount: 3, sums: []string{"tasks", "bytes"},
		rows: `SELECT time::date AS day, extract(hour FROM time)::int AS hour, coalesce(model, '') AS model, left(coalesce(detail->>'reason', ''), 64) AS reason,
	coalesce((detail->>'tasks')::int, 0) AS size, 1 AS tasks, coalesce((detail->>'bytes')::bigint, 0) AS bytes
	FROM @audit_log WHERE action = 'batch.closed' AND detail->>'unreadable_bytes' IS NULL`,
	},
	{
		table: "rollup_submissions", keys: "tenant, actor_id, source, user_agent", keyCount: 4, sums: []string{"tasks", "input_bytes"}, days: true,
		rows: `SELECT time::date AS day, 0 AS hour, tenant, left(actor_id, 128) AS actor_id,
	left(@batchyard_source(source_addr), 100) AS source,
	left(coalesce(user_agent, ''), 256) AS user_agent, 1 AS tasks, coalesce(input_bytes, 0) AS input_bytes, time AS first_at, time AS last_at FROM @audit_log WHERE action = 'task.accepted'`,
	},
}

// check returns the comparison of some days ($3). Both sides are summed by day, and by hour for as long as hours are kept.
func (r rollup) check() Check {
	var sums []string
	for _, s := range r.sums {
		sums = append(sums, fmt.Sprintf("least(sum(%s), 9223372036854775807)::bigint AS %s", s, s))
	}
	if r.days {
		sums = append(sums, "min(first_at) AS first_at", "max(last_at) AS last_at")
	}
	sum := strings.Join(sums, ", ")
	from := "day = ANY ($3::text[]::date[])"
	with := fmt.Sprintf(`counted AS MATERIALIZED (SELECT day, hour, %[1]s, %[2]s FROM (%[3]s) c WHERE %[4]s GROUP BY day, hour, %[1]s),
counted_days AS MATERIALIZED (SELECT day, -1 AS hour, %[1]s, %[2]s FROM counted GROUP BY day, %[1]s),
kept_days AS MATERIALIZED (SELECT day, -1 AS hour, %[1]s, %[2]s FROM @%[5]s WHERE (hour = -1 OR shard >= 0) AND %[4]s GROUP BY day, %[1]s),
kept AS MATERIALIZED (SELECT day, hour, %[1]s, %[2]s FROM @%[5]s WHERE hour >= 0 AND %[4]s GROUP BY day, hour, %[1]s)`, r.keys, sum, r.rows, from, r.table)
	differ := []string{"(SELECT * FROM counted_days EXCEPT SELECT * FROM kept_days)", "(SELECT * FROM kept_days EXCEPT SELECT * FROM counted_days)"}
	if !r.days {
		// Hours are deleted two days later.
		recent := "day >= (now() - interval '1 day')::date"
		differ = append(differ, "(SELECT * FROM counted WHERE "+recent+" EXCEPT SELECT * FROM kept)", "(SELECT * FROM kept EXCEPT SELECT * FROM counted)")
	}
	return Check{
		name: r.table, byDay: true, with: with,
		found: fmt.Sprintf(`SELECT DISTINCT format('%s does not match the rows: %%s of %%s%%s', concat_ws(', ', %s), day, CASE WHEN hour >= 0 THEN ' at ' || hour || ' h' END) FROM (%s) d`,
			r.table, textKeys(r.keys), strings.Join(differ, " UNION ALL ")),
	}
}

// keptQuery returns the query of the rows that kept takes, and their width.
func (r *rollup) keptQuery(schema string) (string, int) {
	columns := append([]string{"CASE WHEN isfinite(day) THEN day - date '1970-01-01' ELSE -2147483648 END", "hour::int", "shard"}, strings.Split(r.keys, ", ")...)
	for i, c := range columns {
		if c == "bucket" || c == "size" {
			columns[i] = c + "::int"
		}
	}
	columns = append(columns, r.sums...)
	if r.days {
		columns = append(columns, "first_at", "last_at")
	}
	columns = append(columns, "day::text")
	return "SELECT " + strings.Join(columns, ", ") + " FROM " + schema + r.table, len(columns)
}

// describe names a row, as [rollup.keptQuery] returns it, that no recorder writes: days are finite, hours and shards are
// numbers from -1 on, and what happened never is not counted.
func (r rollup) describe(row *copyrows.Row) string {
	var keys []string
	for i, k := range strings.Split(r.keys, ", ") {
		if k == "bucket" || k == "size" {
			keys = append(keys, fmt.Sprint(row.Int4(3+i)))
		} else if f := row.Field(3 + i); len(f) > 0 {
			keys = append(keys, string(f))
		}
	}
	day := 3 + r.keyCount + len(r.sums)
	if r.days {
		day += 2
	}
	return fmt.Sprintf("%s has a row of the day %s that no recorder writes: %s, hour %d, shard %d, %s %d", r.table, row.Field(day), strings.Join(keys, ", "), row.Int4(1), row.Int4(2), r.sums[0], row.Int8(3+r.keyCount))
}

func textKeys(keys string) string {
	var out []string
	for k := range strings.SplitSeq(keys, ", ") {
		out = append(out, "nullif("+k+"::text, '')")
	}
	return strings.Join(out, ", ")
}
