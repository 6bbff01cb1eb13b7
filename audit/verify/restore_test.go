package verify

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder/statements"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/audittest/rig"
	"github.com/batchyard/batchyard/test/testenv"
)

// After a restore from a backup, verification says what the backup lacks; each later checkpoint still
// guards what it was signed for, and once an operator has accepted the restore, nothing else is reported.
func TestARestoredLogIsGuardedAgain(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	g, _ := rig.Grown(t, pool)
	const tables = "audit_log, audit_chains, audit_statements, stream_offsets"
	for _, table := range []string{"audit_log", "audit_chains", "audit_statements", "stream_offsets"} {
		audittest.Execute(t, pool, "CREATE TABLE saved_"+table+" AS TABLE "+table)
	}
	ask := func() *Report { return verify(t, pool, Options{LogOnly: true, Checkpoints: trusted(t, g, g.Dir)}) }
	more := func(n int) {
		r := rig.New(t, pool)
		e0 := r.Own("events", 0)
		for i := range n {
			r.Record(e0.Events(t, audittest.NewStory(fmt.Sprintf("%d of %d", i, n)).Accepted()))
		}
		g.Seal()
	}
	more(3)
	require.True(t, ask().OK())
	_, err := ask().AcceptRestore("nothing happened")
	require.ErrorContains(t, err, "nothing to accept")

	audittest.Execute(t, pool, "TRUNCATE "+tables)
	for _, table := range []string{"audit_log", "audit_chains", "audit_statements", "stream_offsets"} {
		audittest.Execute(t, pool, "INSERT INTO "+table+" SELECT * FROM saved_"+table)
	}
	more(2)
	lost := ask()
	require.EqualValues(t, 1, lost.Count, "%+v", lost.Findings)
	require.Equal(t, []any{Rewritten, int64(77)}, []any{lost.Findings[0].Reason, lost.Findings[0].Seq}, "%+v", lost.Findings)

	// What is rewritten later is another finding.
	more(5)
	require.Equal(t, lost.Count, ask().Count)
	audittest.Execute(t, pool, "CREATE TABLE fine AS TABLE audit_log")
	audittest.Execute(t, pool, "CREATE TABLE fine_chains AS TABLE audit_chains")
	tamper := func() {
		audittest.Execute(t, pool, "UPDATE audit_log SET actor_id = 'mallory' WHERE "+tail0+" AND chain_seq = 80")
		rehash(t, pool, 80, 81, true)
	}
	tamper()
	require.Greater(t, ask().Count, lost.Count, "%+v", ask().Findings)
	audittest.Execute(t, pool, "TRUNCATE audit_log, audit_chains")
	audittest.Execute(t, pool, "INSERT INTO audit_log SELECT * FROM fine")
	audittest.Execute(t, pool, "INSERT INTO audit_chains SELECT * FROM fine_chains")

	accepted, err := ask().AcceptRestore("disk failure")
	require.NoError(t, err)
	require.NoError(t, pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		return statements.Append(t.Context(), tx, g.Key(), &audit.Statement{Kind: audit.RestoreAccepted, ActorID: "alice@test", Restore: accepted})
	}))
	rep := ask()
	require.True(t, rep.OK(), "%+v", rep.Findings)
	require.Contains(t, fmt.Sprint(rep.Notes), "disk failure")
	more(2)
	require.True(t, ask().OK(), "%+v", ask().Findings)
	tamper()
	require.False(t, ask().OK())

	// A restore explains no other finding.
	_, err = ask().AcceptRestore("again")
	require.Error(t, err)
}

// A backup is restored from a dump, and the recorder goes on: it records what the backup lacks again from Kafka, also how
// a callback was delivered and a job was finished the first time. Other processes do that a second time. Once the restore is
// accepted, verify explains what happened, finds nothing wrong, and guards what follows.
func TestABackupIsRestoredFromADump(t *testing.T) {
	t.Parallel()
	dump, err := exec.LookPath("pg_dump")
	if err != nil {
		t.Skip("there is no pg_dump")
	}
	run := func(name string, args ...string) {
		out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
		if err != nil && strings.Contains(string(out), "server version mismatch") {
			t.Skip("pg_dump is older than the server")
		}
		require.NoError(t, err, "%s", out)
	}
	w := newScene(t)
	pool, dir := w.copyTo(t)
	file := filepath.Join(t.TempDir(), "dump")
	run(dump, "--format=custom", "--file="+file, "--dbname="+pool.Config().ConnString())

	// What Kafka has that the backup lacks.
	s := audittest.NewStory("later")
	s.Task.Callback = &task.Callback{URL: "https://receiver.example/later"}
	es, end := s.Life()
	delivery := func(action task.Action, state string) task.Event {
		e := s.Event(action, 0, "")
		e.ResourceType, e.ResourceID, e.Detail, e.Duration = "callback", end.Run().CallbackID(), outcomeOf(end.Run(), state, 1), time.Millisecond
		return e
	}
	finished := jobSubmitted()
	finished.Time, finished.Action, finished.ActorType, finished.ActorID = time.Now().UTC().Truncate(time.Microsecond), task.JobCompleted, task.ActorStage, "audit@test-1"
	var name pg.Fields
	name.Text("acme")
	name.Text("job-1")
	d := audit.DigestRow(audit.JobRows, 3, name.B) // what the row was then does not matter
	finished.Detail = fmt.Appendf(nil, `{"digests":"%s"}`, audit.TextOfDigests(d.Append(nil)))
	record := func(pool *pgxpool.Pool) *rig.Rig {
		r := rig.New(t, pool)
		e0, results := r.Own("events", 0), r.Own("results", 0)
		r.Record(e0.Events(t, es...), results.Result(t, end), e0.Events(t, delivery(task.CallbackSent, "DELIVERED"), finished))
		return r
	}
	seal := func(pool *pgxpool.Pool) *rig.Signing {
		g := rig.SigningIn(t, pool, dir)
		g.Seal()
		g.Resign()
		return g
	}
	record(pool)
	seal(pool)

	url := testenv.Get(t).Database(t)
	run("pg_restore", "--dbname="+url, file)
	restored := audittest.PoolOn(t, url)
	r := record(restored)
	key := seal(restored).Key()
	points := func() *Checkpoints {
		keys, err := audit.ReadPublicKeys(filepath.Join(dir, audit.PublicKeyFile))
		require.NoError(t, err)
		c := NewCheckpoints(keys)
		require.NoError(t, c.Read(dir, FromDirectory))
		return c
	}
	before := verify(t, restored, Options{LogOnly: true, Checkpoints: points()})
	require.NotEmpty(t, before.Findings)
	accepted, err := before.AcceptRestore("disk failure")
	require.NoError(t, err, "%+v", before.Findings)
	require.NoError(t, pgx.BeginFunc(t.Context(), restored, func(tx pgx.Tx) error {
		return statements.Append(t.Context(), tx, key, &audit.Statement{Kind: audit.RestoreAccepted, ActorID: "alice@test", Restore: accepted})
	}))
	rep := w.verify(restored, dir)
	require.True(t, rep.OK(), "%+v", rep.Findings)
	require.Contains(t, fmt.Sprint(rep.Notes), "disk failure")
	require.Contains(t, fmt.Sprint(rep.Gaps), "callbacks were delivered, or are being delivered")
	require.Contains(t, fmt.Sprint(rep.Gaps), "1 jobs have no digest")
	r.Record(r.Owned("events", 0).Events(t, delivery(task.CallbackGivenUp, "GIVEN_UP"))) // delivered again, which fails now
	audittest.Execute(t, restored, "UPDATE callbacks SET state = 'GIVEN_UP', attempts = 1, last_status = 200 WHERE callback_id = $1", end.Run().CallbackID())
	seal(restored)
	require.True(t, w.verify(restored, dir).OK(), "%+v", w.verify(restored, dir).Findings)

	audittest.Execute(t, restored, "UPDATE results SET output = '{}' WHERE task_id = 'later'")
	require.Equal(t, Tampered, w.verify(restored, dir).Verdict())
}
