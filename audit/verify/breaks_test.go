package verify

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder/statements"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/audittest/rig"
)

// interrupted is a log of which rows 72, 73 and 74 of events/0 are signed, and someone who has its key.
type interrupted struct {
	t    *testing.T
	pool *pgxpool.Pool
	g    *rig.Signing
}

func newInterrupted(t *testing.T) *interrupted {
	t.Helper()
	pool := audittest.NewPool(t)
	g, _ := rig.Grown(t, pool)
	x := &interrupted{t, pool, g}
	require.True(t, x.verify().OK())
	return x
}

func (x *interrupted) verify() *Report {
	x.t.Helper()
	return verify(x.t, x.pool, Options{LogOnly: true, Checkpoints: trusted(x.t, x.g, x.g.Dir)})
}

// offset returns that of the record of a row of events/0.
func (x *interrupted) offset(seq int64) int64 {
	return audittest.One[int64](x.t, x.pool, "SELECT src_offset FROM audit_log WHERE "+tail0+" AND chain_seq = $1", seq)
}

// state signs that rows from one on were recorded again, as of a time; zero: now.
func (x *interrupted) state(b audit.Break, at time.Time) {
	x.t.Helper()
	b.Kind, b.Topic, b.ActorID, b.Time = audit.RecordedAgain, "events", "audit@test-1", time.Now().UTC().Truncate(time.Millisecond)
	s := &audit.Statement{Kind: audit.RecordingInterrupted, ActorID: b.ActorID, Break: &b}
	if !at.IsZero() {
		b.Time = at.UTC().Truncate(time.Millisecond)
	}
	require.NoError(x.t, pgx.BeginFunc(x.t.Context(), x.pool, func(tx pgx.Tx) error {
		if at.IsZero() {
			return statements.Append(x.t.Context(), tx, x.g.Key(), s)
		}
		end, err := statements.End(x.t.Context(), tx)
		require.NoError(x.t, err)
		s.Number, s.Prev, s.Time = end.Rows+1, hex.EncodeToString(end.Hash[:]), b.Time
		line, err := s.Sign(x.g.Key())
		require.NoError(x.t, err)
		_, err = tx.Exec(x.t.Context(), "INSERT INTO audit_statements (number, kind, noted_at, statement) VALUES ($1, $2, $3, $4)", s.Number, string(s.Kind), s.Time, string(line))
		return err
	}))
	audittest.Execute(x.t, x.pool, `INSERT INTO stream_breaks (topic, partition, kind, chain_seq, first_offset, last_offset, noticed_at, actor_id) VALUES ('events', 0, 'recorded_again', $1, $2, $3, $4, $5)`,
		b.Seq, b.First, b.Last, b.Time, b.ActorID)
}

// rewrite changes a row of events/0, consistently.
func (x *interrupted) rewrite(seq int64) {
	x.t.Helper()
	audittest.Execute(x.t, x.pool, "UPDATE audit_log SET actor_id = actor_id || 'x' WHERE "+tail0+" AND chain_seq = $1", seq)
	rehash(x.t, x.pool, seq, 74, true)
}

func (x *interrupted) requireFinding(rep *Report, reason Reason, says string) {
	x.t.Helper()
	for _, f := range rep.Findings {
		if f.Reason == reason && strings.Contains(f.Detail, says) {
			return
		}
	}
	require.Fail(x.t, "not found", "%s %q in %+v", reason, says, rep.Findings)
}

// Someone who sets the database back makes recorders record rows again, and what was signed before does not guard
// these. Someone who has the key can sign that it happened. Neither is ever called well.
func TestRowsThatWereRecordedAgainAreUnproven(t *testing.T) {
	t.Parallel()
	x := newInterrupted(t)
	x.rewrite(74)
	x.requireFinding(x.verify(), Rewritten, "has another hash of row 74")
	x.state(audit.Break{Seq: 74, First: x.offset(74), Last: x.offset(74), LostRows: 1}, time.Time{})
	rep := x.verify()
	require.True(t, rep.OK(), "%+v", rep.Findings)
	require.Contains(t, fmt.Sprint(rep.Gaps), "rows from 74 on were recorded again")
	require.NotContains(t, fmt.Sprint(rep.Gaps), "the recorder that noticed")
	require.NotEqual(t, Well, rep.Verdict(GapTail, GapCopies, GapWitness))

	// A later checkpoint has the statement, and what it signs is guarded.
	x.g.Seal()
	rep = x.verify()
	require.True(t, rep.OK(), "%+v", rep.Findings)
	x.rewrite(74)
	x.requireFinding(x.verify(), Rewritten, "has another hash of row 74")

	audittest.Execute(t, x.pool, "DELETE FROM stream_breaks")
	require.Contains(t, fmt.Sprint(x.verify().Gaps), "stream_breaks does not have the interruption")
}

// What checkpoints of before prove to be as it was is not unproven because a recorder noticed a loss.
func TestRowsThatWereNotLostStayProven(t *testing.T) {
	t.Parallel()
	x := newInterrupted(t)
	x.state(audit.Break{Seq: 75, First: x.offset(74) + 1, Last: x.offset(74) + 1}, time.Time{})
	rep := x.verify()
	require.True(t, rep.OK(), "%+v", rep.Findings)
	require.Contains(t, fmt.Sprint(rep.Notes), "recorded them again from Kafka")
	require.NotContains(t, fmt.Sprint(rep.Gaps), string(GapRecovery))
}

// A statement with a good signature explains nothing if it does not fit the rows and the checkpoints around it.
func TestABreakHasToFitWhatIsAroundIt(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		seq    int64 // of the break
		first  int64 // row of the first record
		lost   int64
		at     time.Duration
		reason Reason
		says   string
	}{
		"its records were not lost":           {74, 73, 1, 0, Statement, "which was not lost: it explains nothing"},
		"it does not explain the others":      {74, 73, 1, 0, Rewritten, "has another hash of row 74"},
		"its rows are of records of before":   {73, 74, 2, 0, Statement, "which is before those"},
		"it lost a negative number":           {74, 74, -1, 0, Statement, "its numbers are impossible"},
		"it was signed later than it says":    {74, 74, 1, -time.Hour, Statement, "was written later than it says"},
		"checkpoints of after do not have it": {74, 74, 1, -time.Hour, Rewritten, "has another hash of row 74"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newInterrupted(t)
			x.rewrite(74)
			var at time.Time
			if c.at != 0 {
				at = time.Now().Add(c.at)
			}
			x.state(audit.Break{Seq: c.seq, First: x.offset(c.first), Last: x.offset(74), LostRows: c.lost}, at)
			x.requireFinding(x.verify(), c.reason, c.says)
		})
	}

	x := newInterrupted(t)
	x.rewrite(74)
	x.state(audit.Break{Seq: 73, First: x.offset(73), Last: x.offset(73), LostRows: 1}, time.Time{})
	require.Contains(t, fmt.Sprint(x.verify().Gaps), "knew of 73 rows, and checkpoints of before have 74")

	// An entry of stream_breaks alone is not a break.
	audittest.Execute(t, x.pool, "UPDATE stream_breaks SET last_offset = last_offset + 1")
	x.requireFinding(x.verify(), Statement, "no recorder has signed that")
}
