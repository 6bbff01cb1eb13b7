package recorder

import (
	"crypto/ed25519"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/verify"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
)

// tablesOfTasks are the tables, besides audit_log, that a transaction of the recorder writes.
var tablesOfTasks = []string{"tasks", "results", "callbacks", "audit_chains", "audit_statements", "stream_offsets"}

// lossy is a database that can forget what was written after a moment, as a replica that lagged when
// it was promoted.
type lossy struct {
	t    *testing.T
	pool *pgxpool.Pool
}

func (l lossy) exec(sql ...string) {
	l.t.Helper()
	require.NoError(l.t, pgx.BeginFunc(l.t.Context(), l.pool, func(tx pgx.Tx) error {
		for _, s := range sql {
			if _, err := tx.Exec(l.t.Context(), s); err != nil {
				return fmt.Errorf("%s: %w", s, err)
			}
		}
		return nil
	}))
}

// keep remembers what there is.
func (l lossy) keep() {
	l.t.Helper()
	var sql []string
	for _, table := range tablesOfTasks {
		sql = append(sql, fmt.Sprintf("CREATE TABLE kept_%s AS SELECT * FROM %s", table, table))
	}
	l.exec(sql...)
}

// forget goes back to what keep has remembered.
func (l lossy) forget() {
	l.t.Helper()
	sql := []string{
		"LOCK TABLE stream_offsets IN EXCLUSIVE MODE",
		`DELETE FROM audit_log a WHERE chain_seq > coalesce((SELECT rows FROM kept_audit_chains k WHERE k.topic = a.src_topic AND k.partition = a.src_partition), 0)`,
	}
	for _, table := range tablesOfTasks {
		sql = append(sql, "DELETE FROM "+table, fmt.Sprintf("INSERT INTO %s SELECT * FROM kept_%s", table, table))
	}
	l.exec(sql...)
}

// verifyWith verifies the log against the checkpoints of a directory.
func verifyWith(t *testing.T, pool *pgxpool.Pool, dir string) *verify.Report {
	t.Helper()
	key, err := audit.LoadSigningKey(filepath.Join(dir, audit.SigningKeyFile))
	require.NoError(t, err)
	points := verify.NewCheckpoints([]ed25519.PublicKey{key.Public().(ed25519.PublicKey)})
	require.NoError(t, points.Read(dir, verify.FromDirectory))
	report, err := verify.Run(t.Context(), pool, verify.Options{Checkpoints: points, LogOnly: true}, nil)
	require.NoError(t, err)
	return report
}

// awaitRows waits until the audit log has rows of n tasks, two each.
func awaitRows(t *testing.T, pool *pgxpool.Pool, tasks int) {
	t.Helper()
	require.Eventually(t, func() bool {
		return audittest.One[int](t, pool, "SELECT count(*) FROM audit_log WHERE task_id IS NOT NULL") >= 2*tasks &&
			audittest.One[int](t, pool, "SELECT count(*) FROM results") >= tasks
	}, audittest.Patience, 20*time.Millisecond)
}

// Postgres loses the end of what it had confirmed. The recorder notices it, also in a partition that
// nothing is written to any more, records the loss again from Kafka, each record once, and says so.
// Verify tells that from tampering, because the recorder has signed what it did.
func TestWhatPostgresLostIsRecordedAgain(t *testing.T) {
	t.Parallel()
	for _, partitions := range []int{1, 3} {
		t.Run(fmt.Sprint(partitions, " partitions"), func(t *testing.T) {
			t.Parallel()
			testRecordedAgain(t, partitions)
		})
	}
}

func testRecordedAgain(t *testing.T, partitions int) {
	t.Helper()
	pool, l := audittest.NewPool(t), audittest.OpenLog(t, partitions)
	out := l.NewOutbox("test", 1000, 8<<20)
	dir := t.TempDir()
	stop := startRecorderWith(t, Config{CheckpointDir: dir, CheckpointInterval: time.Second}, Deps{Log: l, Pool: pool, Instance: "audit@one-1"})
	var wg sync.WaitGroup
	submit := func(from, to int) {
		for i := from; i < to; i++ {
			s := audittest.NewStory(fmt.Sprintf("t%d", i))
			write(t, out, &wg, []task.Event{s.Accepted(), s.Event(task.TaskQueued, 0, "")}, s.Result(task.Success, "d1"))
		}
		wg.Wait()
	}
	db := lossy{t, pool}
	submit(0, 60)
	awaitRows(t, pool, 60)
	db.keep()
	submit(60, 120)
	awaitRows(t, pool, 120)
	rows := audittest.One[int64](t, pool, "SELECT sum(rows) FROM audit_chains")
	require.Eventually(t, func() bool { // a checkpoint covers what will be lost
		report := verifyWith(t, pool, dir)
		signed := int64(0)
		for _, c := range report.Chains {
			signed += c.Signed
		}
		return signed >= rows
	}, audittest.Patience, 50*time.Millisecond)
	db.forget()
	submit(120, 121) // one partition notices; the others have nothing new
	awaitRows(t, pool, 121)
	require.Eventually(t, func() bool {
		return audittest.One[int](t, pool, "SELECT count(*) FROM audit_log WHERE action = 'audit.recorded_again'") == audittest.One[int](t, pool, "SELECT count(*) FROM stream_breaks")
	}, audittest.Patience, 20*time.Millisecond)
	require.Equal(t, 2*121, audittest.One[int](t, pool, "SELECT count(*) FROM audit_log WHERE task_id IS NOT NULL"))
	require.Equal(t, 2*121, audittest.One[int](t, pool, "SELECT count(DISTINCT (src_topic, src_partition, src_offset, src_index)) FROM audit_log WHERE task_id IS NOT NULL"))
	require.Equal(t, 121, audittest.One[int](t, pool, "SELECT count(*) FROM results"))
	require.Equal(t, "recorded_again", audittest.One[string](t, pool, "SELECT string_agg(DISTINCT kind, ' ') FROM stream_breaks"))
	require.NoError(t, stop(), "the recorder did not end by itself")
	require.NoError(t, out.Close(t.Context()))

	report := verifyWith(t, pool, dir)
	require.Empty(t, report.Findings)
	require.Contains(t, fmt.Sprint(report.Notes), "recorded them again from Kafka")

	// What no recorder has signed explains nothing.
	db.exec(`UPDATE stream_breaks SET actor_id = actor_id || 'x'`)
	require.Contains(t, fmt.Sprint(verifyWith(t, pool, dir).Findings), "no recorder has signed that")
	db.exec(`UPDATE stream_breaks SET actor_id = rtrim(actor_id, 'x')`)
	db.exec(`UPDATE audit_statements SET statement = replace(statement, '"chain_seq"', '"Chain_seq"') WHERE kind = 'recording_interrupted'`)
	report = verifyWith(t, pool, dir)
	require.NotEmpty(t, report.Findings)
	require.Contains(t, fmt.Sprint(report.Findings), "is not signed by a trusted key")
	require.True(t, slices.ContainsFunc(report.Findings, func(f verify.Finding) bool { return f.Reason == verify.Rewritten }), "%+v", report.Findings)
}

// A topic is deleted and created again while the recorder runs. It records the new one from its
// beginning, the chain continues, and what of the old one is missing is written down and signed.
func TestARecreatedTopicIsRecordedFromItsBeginning(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	l := audittest.OpenLog(t, 2)
	out := l.NewOutbox("test", 1000, 8<<20)
	dir := t.TempDir()
	run := func() func() error {
		return startRecorderWith(t, Config{CheckpointDir: dir}, Deps{Log: l, Pool: pool, Instance: "audit@one-1"})
	}
	stop := run()
	var wg sync.WaitGroup
	submit := func(from, to int) {
		for i := from; i < to; i++ {
			s := audittest.NewStory(fmt.Sprintf("t%d", i))
			write(t, out, &wg, []task.Event{s.Accepted(), s.Event(task.TaskQueued, 0, "")}, nil)
		}
		wg.Wait()
	}
	submit(0, 100)
	rows := func() int {
		return audittest.One[int](t, pool, "SELECT count(*) FROM audit_log WHERE task_id IS NOT NULL")
	}
	require.Eventually(t, func() bool { return rows() == 200 }, audittest.Patience, 20*time.Millisecond)
	old, err := l.Identity(t.Context(), stream.Events)
	require.NoError(t, err)
	require.NotEmpty(t, old.Topic)
	require.Equal(t, old.Topic, audittest.One[string](t, pool, "SELECT min(topic_id) FROM stream_offsets WHERE topic = 'events'"))
	require.NoError(t, stop())
	audittest.Recreate(t, l, stream.Events)
	for i := 100; i < 130; i++ { // a record each: more than the next topic will have
		submit(i, i+1)
	}
	stop = run()
	require.Eventually(t, func() bool { return rows() >= 260 }, audittest.Patience, 20*time.Millisecond)
	require.Equal(t, 260, rows())
	replaced := "SELECT count(*) FROM stream_breaks WHERE kind = 'topic_replaced' AND topic = 'events' AND last_offset IS NULL"
	n := audittest.One[int](t, pool, replaced)
	require.Equal(t, 2, n, "both partitions")
	require.Eventually(t, func() bool {
		return audittest.One[int](t, pool, "SELECT count(*) FROM audit_log WHERE action = 'audit.topic_replaced'") == n
	}, audittest.Patience, 20*time.Millisecond)

	// While it runs: the new topic is shorter than what was read of the old one.
	audittest.Recreate(t, l, stream.Events)
	submit(130, 140)
	require.Eventually(t, func() bool { return rows() >= 280 }, audittest.Patience, 20*time.Millisecond)
	require.Equal(t, 280, rows())
	require.Eventually(t, func() bool { return audittest.One[int](t, pool, replaced) == 4 }, audittest.Patience, 20*time.Millisecond)
	require.NoError(t, stop())
	report := verifyWith(t, pool, dir)
	require.Len(t, report.Findings, 4, "what of the old topics was not recorded is unknown")
	for _, f := range report.Findings {
		require.Equal(t, verify.Unrecorded, f.Reason, f.Detail)
	}
	require.Contains(t, fmt.Sprint(report.Notes), "the topic was replaced")
	require.NoError(t, out.Close(t.Context()))
}
