package verify

import (
	"context"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
)

// maxStatements bounds the statements: there is about one a day.
const maxStatements = 1 << 20

// restore is what an accepted backup means for a chain: what was signed before, about rows from a
// number on, no longer counts.
type restore struct {
	from int64
	time time.Time
}

// readStatements reads what recorders and operators have signed to explain what would otherwise be a
// finding. Each must follow the one before, and be signed by a trusted key.
func (v *verifier) readStatements(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, `SELECT coalesce(number, 0), coalesce(statement, ''), coalesce(kind, ''), CASE WHEN isfinite(noted_at) THEN noted_at ELSE '1970-01-01Z' END FROM `+v.table("audit_statements")+` ORDER BY number LIMIT $1`, maxStatements+1)
	if err != nil {
		return fmt.Errorf("reading audit_statements: %w", err)
	}
	defer rows.Close()
	end := audit.ChainEnd{Hash: audit.Genesis(audit.StatementsChain)}
	for rows.Next() {
		var number int64
		var line string
		var kind audit.StatementKind
		var noted time.Time
		if err := rows.Scan(&number, &line, &kind, &noted); err != nil {
			return fmt.Errorf("reading audit_statements: %w", err)
		}
		if end.Rows >= maxStatements {
			return fmt.Errorf("audit_statements has more than %d rows, more than recorders ever write", maxStatements)
		}
		v.takeStatement(number, line, &end)
		if s, _, err := audit.ParseStatement([]byte(line), nil); err == nil && (s.Kind != kind || !s.Time.Equal(noted)) {
			v.report.add(Finding{Reason: Statement, Topic: audit.StatementsChain.Topic, Seq: number, Detail: fmt.Sprintf("the columns of statement %d of audit_statements are not what was signed: kind %q, noted_at %s", number, kind, noted.UTC().Format(time.RFC3339))})
		}
	}
	v.statementsEnd = end.Rows
	return rows.Err()
}

func (v *verifier) takeStatement(number int64, line string, end *audit.ChainEnd) {
	wrong := func(format string, args ...any) {
		v.report.add(Finding{Reason: Statement, Topic: audit.StatementsChain.Topic, Seq: number, Detail: fmt.Sprintf("statement %d of audit_statements ", number) + fmt.Sprintf(format, args...)})
	}
	if number != end.Rows+1 {
		wrong("follows number %d: those between are missing, or it is forged", end.Rows)
	}
	keys := v.o.Checkpoints.trusted()
	s, signed, err := audit.ParseStatement([]byte(line), keys)
	prev := hex.EncodeToString(end.Hash[:])
	end.Rows, end.Hash = number, audit.LineHash([]byte(line))
	v.statements[number] = end.Hash
	v.told[number] = time.Time{}
	switch {
	case err != nil:
		wrong("is not a statement: %s", err)
		return
	case len(keys) > 0 && !signed:
		wrong("is not signed by a trusted key: it explains nothing")
		return
	case s.Number != number || s.Prev != prev:
		wrong("was signed for another place: it does not follow the one before")
		return
	}
	if signed {
		v.report.Statements++
	}
	v.told[number] = s.Time
	switch at := s.Time.UTC().Format(time.RFC3339); {
	case s.Kind == audit.RowsDropped && s.Dropped != nil:
		v.drops[s.Dropped.Digest] = s
	case s.Kind == audit.RestoreAccepted && s.Restore != nil:
		v.takeRestore(s)
	case s.Kind == audit.RecordingInterrupted && s.Break != nil:
		v.takeBreak(s, signed)
	case s.Kind == audit.SchemaSeen && s.Schema != nil:
		if v.schemaSeen == nil && s.Dropped != nil {
			v.adopted = s
		}
		v.schemaSeen = s
		v.report.note("schema version %d on Postgres %d since %s (statement %d)", s.Schema.Version, s.Schema.Server, at, number)
	default:
		wrong("says nothing that this program knows: use the version of batchyard that wrote it")
	}
}

// takeRestore takes an accepted backup: what was signed before no longer counts where the backup lacks
// it, and the chains as they were accepted are signed.
func (v *verifier) takeRestore(s *audit.Statement) {
	v.report.note("%s accepted at %s that the database was restored from a backup: %q", s.ActorID, s.Time.UTC().Format(time.RFC3339), s.Restore.Reason)
	for _, e := range s.Restore.Chains {
		at := audit.TopicPartition{Topic: e.Topic, Partition: e.Partition}
		r := restore{e.From, s.Time}
		v.restores[at] = append(v.restores[at], r)
		c := v.chains[at]
		if c == nil {
			continue
		}
		c.restores = append(c.restores, r)
		if b, err := hex.DecodeString(e.Hash); err == nil && len(b) == sha256Size && e.Rows > 0 && v.o.Checkpoints != nil {
			v.o.Checkpoints.point(at, e.Rows, &point{hash: audit.Hash(b), time: s.Time, stated: audit.ChainEnd{Rows: s.Number, Hash: v.statements[s.Number]}, name: fmt.Sprintf("statement %d of %s", s.Number, s.Time.UTC().Format(time.RFC3339))})
			c.points = v.o.Checkpoints.pointsOf(at)
		}
	}
}

// judgeStatements compares the chain of statements with the checkpoints, and returns the number up to
// which a checkpoint has them.
func (v *verifier) judgeStatements() (signed int64) {
	points := v.o.Checkpoints.pointsOf(audit.StatementsChain)
	var lost *point
	var at int64
	for _, seq := range slices.Sorted(maps.Keys(points)) {
		for p := points[seq]; p != nil; p = p.other {
			switch {
			case v.statements[seq] == p.hash:
				signed = seq
				v.judgeTimes(seq, p)
			case v.standby:
			case v.lostStatements(p):
				v.report.gap(GapRecovery, "%s has another hash of statement %d, or there is no such statement: Postgres lost it, and someone with the key can have replaced it", p.name, seq)
			case lost == nil:
				lost, at = p, seq
			}
		}
	}
	if lost != nil {
		v.report.lostStatements = min(signed, at-1) + 1
		v.report.add(Finding{Reason: Statement, Topic: audit.StatementsChain.Topic, Seq: min(signed, at-1) + 1, To: max(at, signed+1),
			Detail: fmt.Sprintf("%s has another hash of statement %d, or there is no such statement: statements were removed or replaced", lost.name, at)})
	}
	if v.o.Checkpoints != nil && v.statementsEnd > signed {
		v.report.gap(GapTail, "statements %d to %d of audit_statements are newer than the newest checkpoint", signed+1, v.statementsEnd)
	}
	return signed
}

// lateMargin is how much later than it was signed a statement may become visible: its transaction may take some time, and
// the clocks of two recorders may differ.
const lateMargin = 10 * time.Minute

// judgeTimes finds statements that were written later than they say: a checkpoint of after that time does not have them.
// at is the last one that it has. Only someone who has the key can have made them.
func (v *verifier) judgeTimes(at int64, p *point) {
	said := v.told[at+1]
	if at == v.statementsEnd || said.IsZero() || !p.time.After(said.Add(lateMargin)) {
		return
	}
	v.report.add(Finding{Reason: Statement, Topic: audit.StatementsChain.Topic, Seq: at + 1,
		Detail: fmt.Sprintf("statement %d of audit_statements was written later than it says: it claims to be of %s, and %s does not have it", at+1, said.UTC().Format(time.RFC3339), p.name)})
}

// lostStatements reports whether Postgres has lost transactions after a checkpoint was signed, and a
// trusted signature says so.
func (v *verifier) lostStatements(p *point) bool {
	if slices.ContainsFunc(v.breaks, func(b *statedBreak) bool {
		return b.Kind == audit.RecordedAgain && p.time.Before(b.Time.Add(breakMargin))
	}) {
		return true
	}
	return slices.ContainsFunc(v.restores[audit.StatementsChain], func(r restore) bool { return p.time.Before(r.time) })
}
