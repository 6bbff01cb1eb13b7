package verify

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder/statements"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/audittest/rig"
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
