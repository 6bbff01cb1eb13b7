package verify

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/audittest/rig"
)

// TestWhatAnAuditorTried is a list of ways to tamper with a log that look innocent. Each is done to a
// copy of the same log, which is fine before.
func TestWhatAnAuditorTried(t *testing.T) {
	t.Parallel()
	w := newScene(t)
	const of0 = " src_topic = 'events' AND src_partition = 0 "
	claim := `INSERT INTO audit_dropped SELECT %s, 'events', 0, %d, %d, f.prev_hash, l.row_hash, now() - interval '3 hours' FROM audit_log f, audit_log l
		WHERE f.src_topic = 'events' AND f.src_partition = 0 AND l.src_topic = 'events' AND l.src_partition = 0 AND f.chain_seq = %d AND l.chain_seq = %d`
	for _, c := range []struct {
		name   string
		sql    []string
		reason Reason
		says   string
	}{
		{"the log is emptied, and retention is said to have dropped it", []string{
			"INSERT INTO audit_dropped SELECT '2020-01-01', topic, partition, 1, rows, sha256(convert_to('batchyard audit chain 1' || chr(10) || topic || '/' || partition, 'UTF8')), hash, now() - interval '1 day' FROM audit_chains WHERE NOT EXISTS (SELECT FROM audit_dropped d WHERE d.topic = audit_chains.topic AND d.partition = audit_chains.partition)",
			"TRUNCATE audit_log"}, Missing, "no recorder has signed that"},
		{"the newest rows are said to be dropped", []string{fmt.Sprintf(claim, "current_date - 40", 20, 26, 20, 26), "DELETE FROM audit_log WHERE" + of0 + "AND chain_seq BETWEEN 20 AND 26"}, Missing, "no recorder has signed that"},
		{"an entry of retention covers more rows", []string{
			"UPDATE audit_dropped SET last_seq = 5, row_hash = (SELECT row_hash FROM audit_log WHERE" + of0 + "AND chain_seq = 5) WHERE last_seq = (SELECT max(last_seq) FROM audit_dropped)",
			"DELETE FROM audit_log WHERE" + of0 + "AND chain_seq <= 5"}, Missing, "no recorder has signed that"},
		{"the statement of a drop is taken away", []string{"DELETE FROM audit_statements WHERE number = (SELECT max(number) FROM audit_statements)"}, Statement, "statements were removed"},
		{"when retention dropped rows", []string{"UPDATE audit_dropped SET dropped_at = dropped_at + interval '1 microsecond'"}, Missing, "no recorder has signed that"},
		{"statements of another type", []string{"ALTER TABLE audit_statements ALTER COLUMN statement TYPE bytea USING convert_to(statement, 'UTF8')"}, Definition, "cannot be read as the migrations define it"},
		{"a delivered callback was never tried", []string{"UPDATE callbacks SET state = 'DUE', attempts = 0 WHERE task_id = 't2'"}, Changed, "after 0 attempts"},
		{"a forged row without a hash, before the chains began", []string{`INSERT INTO audit_log (time, ingested_at, tenant, actor_type, actor_id, action, outcome, src_topic, src_partition, src_offset, src_index)
			VALUES ('2020-01-01', '2020-01-01', 'acme', 'user', 'mallory', 'device.drained', 'ok', 'events', 0, 7, 0)`}, Inserted, "it has no hash"},
		{"an output", []string{`UPDATE results SET output = '{"answer":43}' WHERE task_id = 't3'`}, Changed, "SHA-256"},
		{"the outputs of two tasks", []string{"UPDATE results SET output = '{}' WHERE task_id IN ('t2', 't3')"}, Changed, "acme/t2"},
		{"tokens", []string{"UPDATE results SET output_tokens = 99 WHERE task_id = 't3'", "UPDATE tasks SET output_tokens = 99 WHERE task_id = 't3'"}, Changed, "acme/t3"},
		{"the end of a task", []string{"UPDATE results SET state = 'FAILED' WHERE task_id = 't3'", "UPDATE tasks SET state = 'FAILED' WHERE task_id = 't3'"}, Changed, "acme/t3"},
		{"a result is gone, and its task", []string{"DELETE FROM results WHERE task_id = 't3'", "DELETE FROM tasks WHERE task_id = 't3'"}, Missing, "acme/t3"},
		{"the device of a finished task", []string{"UPDATE tasks SET device_id = 'mine' WHERE task_id = 't3'"}, Changed, "mine"},
		{"the device of a running task", []string{"UPDATE tasks SET device_id = 'mine' WHERE task_id = 'w2'"}, Changed, "mine"},
		{"the state of a waiting task", []string{"UPDATE tasks SET state = 'RUNNING' WHERE task_id = 'w1'"}, Changed, "acme/w1"},
		{"the state of a callback", []string{"UPDATE callbacks SET state = 'DELIVERED' WHERE task_id = 't1'"}, Changed, "DELIVERED"},
		{"a callback is gone", []string{"DELETE FROM callbacks WHERE task_id = 't1'"}, Missing, "acme/t1"},
		{"a job's size", []string{"UPDATE jobs SET tasks = 3"}, Changed, "acme/job-1"},
		{"usage", []string{"UPDATE rollup_usage SET output_tokens = output_tokens + 1"}, Changed, "rollup_usage"},
		{"latency", []string{"DELETE FROM rollup_latency WHERE stage = 'queue'"}, Changed, "rollup_latency"},
		{"attempts", []string{"UPDATE rollup_attempts SET device_id = 'mine'"}, Changed, "rollup_attempts"},
		{"batches", []string{"UPDATE rollup_batches SET size = 1"}, Changed, "rollup_batches"},
		{"submissions", []string{"UPDATE rollup_submissions SET first_at = first_at - interval '1 hour'"}, Changed, "rollup_submissions"},
		{"a clean copy, and a search path that leads to it", []string{"CREATE SCHEMA clean", "CREATE TABLE clean.results AS TABLE public.results",
			"DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = clean, public', current_database()); END $$"}, Definition, "clean.results"},
		{"a clean copy of all, and tampered views", []string{"CREATE SCHEMA clean", "CREATE VIEW clean.user_actions AS SELECT * FROM public.user_actions LIMIT 0"}, Definition, "clean.user_actions"},
		{"a view that hides rows", []string{"CREATE OR REPLACE VIEW user_actions AS SELECT time, tenant, actor_id, source_addr, user_agent, action, outcome, error_class, resource_type, resource_id, task_id, job_id, device_id, trace_id, detail FROM audit_log WHERE actor_type = 'user' AND action <> 'task.accepted' AND tenant <> 'acme'"},
			Definition, "view user_actions"},
		{"a trigger", []string{"CREATE FUNCTION forge() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN RETURN NULL; END $f$", "CREATE TRIGGER forge BEFORE INSERT ON results FOR EACH ROW EXECUTE FUNCTION forge()"}, Definition, "trigger results.forge"},
		{"a row at a place that no record has", []string{"INSERT INTO audit_log SELECT * FROM audit_log WHERE" + of0 + "AND chain_seq = 10", "UPDATE audit_log SET src_index = -1 WHERE ctid = (SELECT max(ctid) FROM audit_log WHERE" + of0 + "AND chain_seq = 10) AND" + of0}, Inserted, ""},
		{"absurd values", []string{"UPDATE audit_log SET time = 'infinity', ingested_at = '-infinity', src_offset = -9223372036854775808, attempt = -2147483648 WHERE" + of0 + "AND chain_seq = 12"}, Changed, ""},
		{"a column less", []string{"ALTER TABLE audit_log DROP COLUMN user_agent CASCADE"}, Definition, "column audit_log.user_agent"},
	} {
		t.Run(c.name, func(t *testing.T) {
			pool, dir := w.copyTo(t)
			for _, sql := range c.sql {
				audittest.Execute(t, pool, sql)
			}
			rep := w.verify(pool, dir)
			require.Equal(t, Tampered, rep.Verdict())
			require.True(t, slices.ContainsFunc(rep.Findings, func(f Finding) bool {
				return f.Reason == c.reason && strings.Contains(f.Detail, c.says)
			}), "%+v", rep.Findings)
		})
	}
}

// What nothing can show is said to be unproven, and never well.
func TestWhatCannotBeProvenIsSaid(t *testing.T) {
	t.Parallel()
	w := newScene(t)
	kinds := func(rep *Report) []GapKind {
		require.True(t, rep.OK(), "%+v", rep.Findings)
		require.Equal(t, Unproven, rep.Verdict())
		out := map[GapKind]bool{}
		for _, g := range rep.Gaps {
			out[g.Kind] = true
		}
		return slices.Sorted(maps.Keys(out))
	}
	appendRow := func(pool *pgxpool.Pool) {
		audittest.Execute(t, pool, "INSERT INTO audit_log SELECT * FROM audit_log WHERE "+tail0+" ORDER BY chain_seq DESC LIMIT 1")
		audittest.Execute(t, pool, "UPDATE audit_log SET chain_seq = chain_seq + 1, src_offset = src_offset + 1, src_index = 0, action = 'device.drained', task_id = NULL, duration_ms = NULL, row_digests = NULL WHERE ctid = (SELECT max(ctid) FROM audit_log WHERE "+tail0+" AND chain_seq = (SELECT max(chain_seq) FROM audit_log WHERE "+tail0+")) AND "+tail0)
		audittest.Execute(t, pool, "UPDATE audit_chains SET rows = rows + 1 WHERE topic = 'events' AND partition = 0")
		end := audittest.One[int64](t, pool, "SELECT rows FROM audit_chains WHERE topic = 'events' AND partition = 0")
		rehash(t, pool, end, end, true)
	}
	p, dir := w.copyTo(t)
	base := kinds(w.verify(p, dir))
	require.Equal(t, []GapKind{GapCopies, GapWitness}, base)
	require.Equal(t, Well, w.verify(p, dir).Verdict(base...))

	appendRow(p)
	rep := w.verify(p, dir)
	require.Contains(t, kinds(rep), GapTail, "a row that is correctly hashed is at the end")
	require.EqualValues(t, 1, rep.Proofs[0].Missing)

	p, dir = w.copyTo(t) // no checkpoints
	require.NoError(t, os.Remove(dir+"/"+audit.CheckpointFile))
	rep = w.verify(p, dir)
	require.Contains(t, kinds(rep), GapCheckpoints)
	require.False(t, rep.Proofs[0].Proven)

	rep = verify(t, p, Options{Settled: true}) // no key
	require.Contains(t, kinds(rep), GapKeys)
}

// What was dropped before drops were signed is in the first statement. Someone who empties the table of
// statements gets no recorder to sign that again for entries of their own.
func TestOldDropsAreInTheFirstStatement(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	r := rig.New(t, pool)
	e0 := r.Own("events", 0)
	old := audittest.NewStory("old").Accepted()
	for i := range 4 {
		old.Time = time.Now().Add(-time.Duration(40-i) * audit.Day)
		r.Record(e0.Events(t, old))
	}
	r.Record(e0.Events(t, audittest.NewStory("new").Accepted()))
	require.NoError(t, r.DropDays(time.Now().Add(-38*audit.Day))) // without a key
	g := rig.NewSigning(t, pool)
	g.Seal()
	ask := func() *Report { return verify(t, pool, Options{LogOnly: true, Checkpoints: trusted(t, g, g.Dir)}) }
	rep := ask()
	require.True(t, rep.OK(), "%+v", rep.Findings)
	require.Contains(t, fmt.Sprint(rep.Gaps), "before drops were signed")

	audittest.Execute(t, pool, "TRUNCATE audit_statements")
	audittest.Execute(t, pool, `INSERT INTO audit_dropped SELECT day + 1, topic, partition, 3, 4, row_hash, (SELECT prev_hash FROM audit_log WHERE chain_seq = 5), dropped_at FROM audit_dropped WHERE last_seq = 2`)
	audittest.Execute(t, pool, "DELETE FROM audit_log WHERE chain_seq < 5")
	g.Restart()
	r.Record(e0.Events(t, audittest.NewStory("more").Accepted()))
	g.Seal()
	reasons := map[Reason]bool{}
	for _, f := range ask().Findings {
		reasons[f.Reason] = true
	}
	require.Equal(t, map[Reason]bool{Missing: true, Statement: true}, reasons, "%+v", ask().Findings)
}

// A copy of the checkpoints elsewhere proves the log against those who can write to the directory and
// to Kafka.
func TestWhereCheckpointsComeFrom(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	g, _ := rig.Grown(t, pool)
	g.Flush()
	proven := func(c *Checkpoints) (out []bool) {
		rep := verify(t, pool, Options{LogOnly: true, Checkpoints: c})
		require.True(t, rep.OK(), "%+v", rep.Findings)
		for _, p := range rep.Proofs {
			out = append(out, p.Proven)
		}
		return out
	}
	c := NewCheckpoints(g.Keys())
	require.Equal(t, []bool{false, false, false}, proven(c))
	require.NoError(t, c.Read(g.Dir, FromDirectory))
	require.Equal(t, []bool{true, false, false}, proven(c))
	require.NoError(t, c.ReadTopic(t.Context(), g.Log))
	require.Equal(t, []bool{true, true, false}, proven(c))
	require.NoError(t, c.Read(g.File(), FromCopy))
	require.Equal(t, []bool{true, true, true}, proven(c))
}

// Row security hides rows from an auditor's login.
func TestRowSecurityIsFound(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	rig.Chained(t, pool)
	cfg := pool.Config()
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "SET ROLE batchyard_auditor")
		return err
	}
	auditor, err := pgxpool.NewWithConfig(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(auditor.Close)
	require.True(t, verify(t, auditor, Options{}).OK())
	for _, table := range []string{"results", "audit_log"} {
		audittest.Execute(t, pool, "ALTER TABLE "+table+" ENABLE ROW LEVEL SECURITY")
		audittest.Execute(t, pool, "CREATE POLICY hide ON "+table+" FOR SELECT USING (task_id <> 't1-1')")
		rep := verify(t, auditor, Options{})
		require.Contains(t, fmt.Sprint(rep.Findings), "table "+table)
		require.Equal(t, Tampered, rep.Verdict())
	}
}
