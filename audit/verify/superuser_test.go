package verify

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/test/audittest"
)

// TestWhatASuperuserTried continues [TestWhatAnAuditorTried] with what takes the rights of a superuser of Postgres: the rows
// stay as they are, and people are shown others.
func TestWhatASuperuserTried(t *testing.T) {
	t.Parallel()
	w := newScene(t)
	const database = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET ', current_database()) || "
	const day = "'audit_log_' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')"
	for _, c := range []struct {
		name   string
		sql    []string
		reason Reason
		says   string
	}{
		{"an event trigger", []string{"CREATE SCHEMA zz", "CREATE FUNCTION zz.et() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'", "CREATE EVENT TRIGGER watch ON ddl_command_end EXECUTE FUNCTION zz.et()"}, Definition, "event trigger watch"},
		{"a trigger that says it is internal", []string{"CREATE SCHEMA zz", "CREATE FUNCTION zz.tg() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'", "CREATE TRIGGER aa BEFORE UPDATE ON callbacks FOR EACH ROW EXECUTE FUNCTION zz.tg()",
			"UPDATE pg_trigger SET tgisinternal = true WHERE tgname = 'aa'"}, Definition, "trigger callbacks.aa"},
		{"options of a view", []string{"ALTER VIEW task_timeline SET (security_invoker = true)"}, Definition, "view task_timeline has the options security_invoker=true"},
		{"the owner of a view", []string{"ALTER VIEW task_timeline OWNER TO pg_monitor"}, Definition, "view task_timeline belongs to pg_monitor"},
		{"the owner of a table", []string{"ALTER TABLE results OWNER TO pg_monitor"}, Definition, "table results belongs to pg_monitor"},
		{"the owner of a function", []string{"ALTER FUNCTION batchyard_bucket(bigint) OWNER TO pg_monitor"}, Definition, "function batchyard_bucket belongs to pg_monitor"},
		{"an index that is not ready", []string{"UPDATE pg_index SET indisready = false WHERE indexrelid = 'tasks_by_state'::regclass"}, Definition, "index tasks_by_state"},
		{"an index of a partition that is not valid", []string{"UPDATE pg_index SET indisvalid = false WHERE indrelid = (" + day + ")::regclass"}, Definition, "index audit_log_"},
		{"an operator", []string{"CREATE FUNCTION public.zz1(timestamptz, date) RETURNS bool LANGUAGE sql AS 'SELECT false'", "CREATE OPERATOR public.> (LEFTARG = timestamptz, RIGHTARG = date, FUNCTION = public.zz1)"}, Definition, "operator public.>"},
		{"a cast", []string{"CREATE CAST (text AS date) WITH INOUT AS IMPLICIT"}, Definition, "cast from text to date"},
		{"a function next to those of Postgres", []string{"CREATE FUNCTION pg_catalog.date_trunc(text, date) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS $$ SELECT pg_catalog.date_trunc($1, $2::timestamptz) - interval '1 month' $$"}, Definition, "function pg_catalog.date_trunc"},
		{"a function of Postgres", []string{"CREATE OR REPLACE FUNCTION pg_catalog.round(numeric, int) RETURNS numeric LANGUAGE sql IMMUTABLE STRICT AS 'SELECT pg_catalog.trunc($1 * 2, $2)'"}, Definition, "last changed: round(numeric,integer)"},
		{"what a function of Postgres does", []string{"UPDATE pg_proc SET prosrc = 'int8larger' WHERE proname = 'int8pl'"}, Definition, "int8pl"},
		{"how Postgres prints a type", []string{"UPDATE pg_type SET typoutput = 'float4out' WHERE typname = 'money'"}, Definition, "money"},
		{"a hidden condition", []string{"CREATE CAST (text AS pg_node_tree) WITHOUT FUNCTION", `UPDATE pg_rewrite SET ev_action = replace(ev_action::text, ':securityQuals <>',
			':securityQuals ({CONST :consttype 16 :consttypmod -1 :constcollid 0 :constlen 1 :constbyval true :constisnull false :location -1 :constvalue 1 [ 0 0 0 0 0 0 0 0 ]})')::pg_node_tree WHERE ev_class = 'task_timeline'::regclass`,
			"DROP CAST (text AS pg_node_tree)"}, Definition, "view task_timeline has a condition that its text does not show"},
		{"a time zone that lies", []string{database + "'timezone = ''<UTC>-5'''; END $$"}, Definition, "<UTC>-5"},
		{"a date style", []string{database + "'datestyle = ''Postgres'''; END $$"}, Definition, "DateStyle"},
		{"plans without tables", []string{database + "'enable_seqscan = off'; END $$"}, Definition, "enable_seqscan"},
		{"a row that its index does not have", []string{"CREATE TABLE was AS SELECT * FROM results WHERE task_id = 't3'", "UPDATE pg_index SET indisready = false WHERE indrelid = 'results'::regclass", "DELETE FROM results WHERE task_id = 't3'",
			"INSERT INTO results SELECT * FROM was", "UPDATE pg_index SET indisready = true WHERE indrelid = 'results'::regclass"}, Definition, "results_pkey\" lacks 1 of"},
		{"rows in the partition of another day", []string{"ALTER TABLE audit_log DETACH PARTITION audit_log_default",
			"DO $$ BEGIN EXECUTE format('WITH d AS (DELETE FROM %I WHERE task_id = ''t3'' RETURNING *) INSERT INTO audit_log_default SELECT * FROM d', " + day + "); END $$",
			"ALTER TABLE audit_log_default ADD CONSTRAINT xx CHECK (NOT (time IS NOT NULL AND time >= '2000-01-01Z' AND time < '2100-01-01Z')) NOT VALID",
			"UPDATE pg_constraint SET convalidated = true WHERE conname = 'xx'", "ALTER TABLE audit_log ATTACH PARTITION audit_log_default DEFAULT", "ALTER TABLE audit_log_default DROP CONSTRAINT xx"}, Moved, "audit_log_default"},
		{"an endless day", []string{"INSERT INTO rollup_usage SELECT 'infinity', hour, shard, tenant, model, endpoint, state, tasks, attempts, input_tokens, output_tokens FROM rollup_usage LIMIT 1"}, Changed, "rollup_usage has a row of the day infinity"},
		{"an endless day of submissions", []string{"UPDATE rollup_submissions SET day = '-infinity', first_at = '-infinity', last_at = 'infinity'"}, Changed, "rollup_submissions has a row of the day -infinity"},
		{"a rollup row that counts nothing", []string{"INSERT INTO rollup_usage SELECT day, hour, shard, tenant, 'ghost', endpoint, state, 0, 0, 0, 0 FROM rollup_usage LIMIT 1"}, Changed, "ghost"},
		{"rollup rows that cancel out", []string{"INSERT INTO rollup_usage SELECT day, hour, shard, tenant, 'ghost', endpoint, state, 0, 5, 5, 5 FROM rollup_usage LIMIT 1",
			"INSERT INTO rollup_usage SELECT day, hour, shard + 1, tenant, 'ghost', endpoint, state, 0, -5, -5, -5 FROM rollup_usage LIMIT 1"}, Changed, "ghost"},
		{"an hour of submissions", []string{"UPDATE rollup_submissions SET hour = 5"}, Changed, "rollup_submissions has a row"},
		{"an hour that no day has", []string{"UPDATE rollup_attempts SET hour = 77"}, Changed, "rollup_attempts has a row"},
		{"a shard that no writer has", []string{"UPDATE rollup_attempts SET shard = -7"}, Changed, "rollup_attempts has a row"},
		{"which of a job's versions it is", []string{"UPDATE jobs SET version = version + 4294967296"}, Changed, "acme/job-1"},
		{"which of a task's versions it is", []string{"UPDATE tasks SET version = version + 4294967296 WHERE task_id = 't3'"}, Changed, "acme/t3"},
		{"a version of the schema", []string{"UPDATE batchyard_schema SET version_id = 99 WHERE version_id = 3"}, Definition, "batchyard_schema"},
		{"a migration that was not applied", []string{"UPDATE batchyard_schema SET is_applied = false WHERE version_id = 3"}, Definition, "batchyard_schema"},
	} {
		t.Run(c.name, func(t *testing.T) {
			pool, dir := w.copyTo(t)
			for _, sql := range c.sql {
				audittest.Execute(t, pool, sql)
			}
			rep := w.verify(pool, dir)
			require.True(t, slices.ContainsFunc(rep.Findings, func(f Finding) bool {
				return f.Reason == c.reason && strings.Contains(f.Detail, c.says)
			}), "%+v %+v", rep.Findings, rep.Gaps)
			require.Equal(t, Tampered, rep.Verdict())
		})
	}
}
