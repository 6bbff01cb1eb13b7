package prove_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/prove"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/audittest/rig"
	"github.com/batchyard/batchyard/test/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// candidates are the checkpoints in the file, the newest first.
func candidates(t testing.TB, g *rig.Signing) (out []prove.Candidate) {
	t.Helper()
	lines := g.Lines()
	for i := range lines {
		c, err := audit.ParseCheckpoint(lines[len(lines)-1-i])
		require.NoError(t, err)
		out = append(out, prove.Candidate{SignedCheckpoint: c, Signed: c.Note})
	}
	return out
}

func write(t testing.TB, pool *pgxpool.Pool, g *rig.Signing, of audit.ProofSubject) ([]byte, error) {
	t.Helper()
	var out bytes.Buffer
	c, rows, err := prove.Write(t.Context(), pool, prove.Request{ProofSubject: of, Candidates: candidates(t, g)}, &out)
	if err == nil {
		require.NotNil(t, c)
		require.Equal(t, rows+1, bytes.Count(out.Bytes(), []byte("\n")))
	}
	return out.Bytes(), err
}

// check checks a proof and returns the numbers of its rows.
func check(t testing.TB, g *rig.Signing, proof []byte, fn func(*audit.ProvenColumns) error) (seqs []int64) {
	t.Helper()
	_, err := audit.CheckProof(bytes.NewReader(proof), audit.Trust{Keys: g.Keys()}, func(r *audit.ProvenColumns) error {
		seqs = append(seqs, r.Seq)
		if fn != nil {
			return fn(r)
		}
		return nil
	})
	require.NoError(t, err)
	return seqs
}

// long writes a log with a chain of three blocks and a half.
func long(t testing.TB, pool *pgxpool.Pool) (*rig.Signing, *rig.Rig) {
	t.Helper()
	g, r := rig.NewSigning(t, pool), rig.New(t, pool)
	r.Key = g.Key()
	e0, e1 := r.Own("events", 0), r.Own("events", 1)
	for i := range 18 {
		var es []task.Event
		for j := range 50 {
			s := audittest.NewStory(fmt.Sprintf("t%d", i*50+j))
			es = append(es, s.Accepted())
			if j == 0 {
				r.Record(e1.Events(t, s.Event(task.TaskQueued, 0, "")))
			}
		}
		r.Record(e0.Events(t, es...))
		if i%5 == 0 {
			g.Seal()
		}
	}
	g.Seal()
	return g, r
}

func subject(id string) audit.ProofSubject { return audit.ProofSubject{Tenant: "acme", Task: id} }

func TestEveryRowCanBeProven(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	g, r := long(t, pool)
	for i := range 900 {
		if i%37 != 0 && i%256 > 1 && i%256 < 254 && i < 895 {
			continue
		}
		proof, err := write(t, pool, g, subject(fmt.Sprintf("t%d", i)))
		require.NoError(t, err, i)
		seqs := check(t, g, proof, nil)
		require.Equal(t, int64(i+1), seqs[0])
		require.Len(t, seqs, 1+btoi(i%50 == 0))
	}
	_, err := write(t, pool, g, subject("nothing"))
	require.ErrorIs(t, err, prove.ErrNoRows)
	_, err = write(t, pool, g, audit.ProofSubject{Tenant: "other", Task: "t1"})
	require.ErrorIs(t, err, prove.ErrNoRows)

	r.Record(r.Owned("events", 0).Events(t, audittest.NewStory("t1").Event(task.TaskQueued, 0, "")))
	_, err = write(t, pool, g, subject("t1"))
	require.ErrorContains(t, err, "no checkpoint has all rows yet")
	g.Seal()
	proof, err := write(t, pool, g, subject("t1"))
	require.NoError(t, err)
	require.Equal(t, []int64{2, 901}, check(t, g, proof, nil))
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// What is done to a row after it was proven does not change the proof, and there is no proof of what it became.
func TestATamperedRowHasNoProof(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	g, _ := long(t, pool)
	proof, err := write(t, pool, g, subject("t300"))
	require.NoError(t, err)
	const row = " src_topic = 'events' AND src_partition = 0 AND chain_seq = 301"
	audittest.Execute(t, pool, "CREATE TABLE saved AS TABLE audit_log")
	audittest.Execute(t, pool, "CREATE TABLE saved_tree AS TABLE audit_tree")
	for name, sql := range map[string][]string{
		"changed":              {"UPDATE audit_log SET actor_id = 'mallory' WHERE" + row},
		"changed and rehashed": {"UPDATE audit_log SET actor_id = 'mallory', row_hash = sha256('x') WHERE" + row},
		"moved":                {"UPDATE audit_log SET chain_seq = 5000 WHERE" + row},
		"moved to another":     {"UPDATE audit_log SET src_partition = 1 WHERE" + row},
		"swapped": {"UPDATE audit_log SET chain_seq = -1 WHERE" + row, "UPDATE audit_log SET chain_seq = 301 WHERE src_topic = 'events' AND src_partition = 0 AND chain_seq = 302",
			"UPDATE audit_log SET chain_seq = 302 WHERE chain_seq = -1"},
		"a neighbour deleted": {"DELETE FROM audit_log WHERE src_topic = 'events' AND src_partition = 0 AND chain_seq = 310"},
		"a malformed hash":    {"UPDATE audit_log SET row_hash = 'x' WHERE" + row},
		"a node of the tree":  {"UPDATE audit_tree SET hash = sha256('x') WHERE node = 0"},
		"no tree":             {"DELETE FROM audit_tree"},
	} {
		for _, s := range sql {
			audittest.Execute(t, pool, s)
		}
		bad, err := write(t, pool, g, subject("t300"))
		if name == "changed" { // Write makes sure that paths lead to roots, and leaves the content to the check
			require.NoError(t, err)
			_, err = audit.CheckProof(bytes.NewReader(bad), audit.Trust{Keys: g.Keys()}, func(*audit.ProvenColumns) error { return nil })
		}
		require.Error(t, err, name)
		require.Equal(t, []int64{301}, check(t, g, proof, nil)[:1], name)
		audittest.Execute(t, pool, "TRUNCATE audit_log, audit_tree")
		audittest.Execute(t, pool, "INSERT INTO audit_log SELECT * FROM saved")
		audittest.Execute(t, pool, "INSERT INTO audit_tree SELECT * FROM saved_tree")
	}
	audittest.Execute(t, pool, "DELETE FROM audit_log WHERE"+row)
	audittest.Execute(t, pool, "DELETE FROM audit_log WHERE task_id = 't300'")
	_, err = write(t, pool, g, subject("t300"))
	require.ErrorIs(t, err, prove.ErrNoRows)
	require.Len(t, check(t, g, proof, nil), 2)
}

// Rows beside those that retention has dropped can still be proven, in whatever order the days of a block are dropped.
func TestRowsBesideDroppedOnesCanBeProven(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	g, r := rig.NewSigning(t, pool), rig.New(t, pool)
	r.Key = g.Key()
	e0 := r.Own("events", 0)
	var es []task.Event
	for i := range 300 {
		e := audittest.NewStory(fmt.Sprintf("t%d", i)).Accepted()
		e.Time = time.Now().Add(-time.Duration(40-i%7*3) * audit.Day)
		es = append(es, e)
	}
	r.Record(e0.Events(t, es...))
	g.Seal()
	for _, days := range []int{38, 32, 25} {
		require.NoError(t, r.DropDays(time.Now().Add(-time.Duration(days)*audit.Day)))
		proven := 0
		for i := range 300 {
			proof, err := write(t, pool, g, subject(fmt.Sprintf("t%d", i)))
			if err == nil {
				require.Equal(t, []int64{int64(i + 1)}, check(t, g, proof, nil))
				proven++
				continue
			}
			require.ErrorIs(t, err, prove.ErrNoRows)
		}
		require.Equal(t, audittest.One[int](t, pool, "SELECT count(*) FROM audit_log WHERE task_id IS NOT NULL"), proven)
		require.Positive(t, proven)
	}
	require.NoError(t, r.DropDays(time.Now().Add(-10*audit.Day)))
	require.Zero(t, audittest.One[int](t, pool, "SELECT count(*) FROM audit_tree WHERE level = 0 AND node < 256"), "leaves that nothing needs any more")
}
