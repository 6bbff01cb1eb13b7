package verify

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/task"
)

const (
	// maxBreaks bounds the breaks that are read: the newest.
	maxBreaks = 1 << 16
	// breakMargin is how far the clocks of two recorders may differ: one signs the break, and another
	// one the checkpoints before it.
	breakMargin = time.Minute
)

// statedBreak is what a statement says about an interruption of the recording. It explains what would otherwise be a
// finding.
type statedBreak struct {
	*audit.Break
	number  int64 // of the statement
	listed  bool  // stream_breaks has it
	refuted bool  // it does not fit the rows around it, and explains nothing
	beyond  int64 // the last row that a checkpoint of before has, and that is another now
}

// lostUntil returns the number of the last row that was lost, as far as the recorder knew.
func (b *statedBreak) lostUntil() int64 { return b.Seq - 1 + b.LostRows }

// takeBreak adds what a statement says to its chain, and a note.
func (v *verifier) takeBreak(s *audit.Statement, signed bool) { //nolint:revive // what is known of it
	b := &statedBreak{Break: s.Break, number: s.Number}
	v.breaks = append(v.breaks, b)
	if c := v.chains[b.At()]; c != nil {
		c.breaks = append(c.breaks, b)
		if c.places == nil {
			c.places = map[int64]*audit.Position{}
		}
		c.places[b.Seq-1], c.places[b.Seq] = nil, nil
	}
	by := fmt.Sprintf("statement %d, which no key is there to check", s.Number)
	if signed {
		by = fmt.Sprintf("statement %d, signed by %s", s.Number, s.Signer)
	}
	at := b.Time.UTC().Format(time.RFC3339)
	switch b.Kind {
	case audit.RecordedAgain:
		v.recovered = append(v.recovered, b.Time)
		v.report.note("%s: Postgres lost the records %s; %s recorded them again from Kafka at %s, from row %d on (%s)", b.At(), b.Offsets(), b.ActorID, at, b.Seq, by)
	case audit.TopicReplaced:
		v.report.note("%s: the topic was replaced; %s noticed that at %s, and rows from %d on are of the new one (%s). Records %s of the old one were not recorded", b.At(), b.ActorID, at, b.Seq, by, b.Offsets())
	case audit.RecordsMissed:
		v.report.note("%s: Kafka deleted the records %s before they were read; %s noticed that at %s (%s)", b.At(), b.Offsets(), b.ActorID, at, by)
	}
}

// readBreaks compares stream_breaks, by which recorders look for what was lost, with the statements.
func (v *verifier) readBreaks(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, `SELECT coalesce(topic, ''), coalesce(partition, -1), coalesce(kind, ''), coalesce(chain_seq, -1), coalesce(first_offset, -1), coalesce(last_offset, $1),
		CASE WHEN isfinite(noticed_at) THEN noticed_at END, coalesce(actor_id, '')
		FROM `+v.table("stream_breaks")+` ORDER BY noticed_at DESC LIMIT $2`, audit.UnknownOffset, maxBreaks)
	if err != nil {
		return fmt.Errorf("reading stream_breaks: %w", err)
	}
	defer rows.Close()
	n := 0
	for ; rows.Next(); n++ {
		var b audit.Break
		var at *time.Time
		if err := rows.Scan(&b.Topic, &b.Partition, &b.Kind, &b.Seq, &b.First, &b.Last, &at, &b.ActorID); err != nil {
			return fmt.Errorf("reading stream_breaks: %w", err)
		}
		if at != nil {
			b.Time = *at
		}
		v.compareBreak(&b)
	}
	if err := rows.Err(); err != nil || n == maxBreaks {
		return err
	}
	for _, b := range v.breaks {
		if !b.listed {
			v.report.gap(GapRecovery, "stream_breaks does not have the interruption of %s at %s that statement %d is about: someone deleted it, and unless it was resolved then, recorders do not look for what was lost", b.At(), b.Time.UTC().Format(time.RFC3339), b.number)
		}
	}
	return nil
}

// compareBreak compares an entry of stream_breaks with the statement about it.
func (v *verifier) compareBreak(b *audit.Break) {
	for _, said := range v.breaks {
		if !said.listed && said.At() == b.At() && said.Kind == b.Kind && said.Seq == b.Seq && said.First == b.First && said.Last == b.Last && said.ActorID == b.ActorID && said.Time.Equal(b.Time) {
			said.listed = true
			return
		}
	}
	if v.statementsEnd == 0 {
		v.report.gap(GapKeys, "stream_breaks says that %s was interrupted at %s (%s), and its recorder had no key to sign that with: it explains nothing", b.At(), b.Time.UTC().Format(time.RFC3339), b.Kind)
		return
	}
	v.report.add(Finding{Reason: Statement, Topic: b.Topic, Partition: b.Partition, Seq: b.Seq,
		Detail: fmt.Sprintf("stream_breaks says that recording was interrupted at %s (%s, offsets %s), but no recorder has signed that: it explains nothing", b.Time.UTC().Format(time.RFC3339), b.Kind, b.Offsets())})
}

// checkBreaks compares what statements say with the rows around it. Someone who has the key can sign anything, but the
// rows before a break are those of the records before it, and the first one after it is of the first record.
func (c *chainCheck) checkBreaks() {
	for _, b := range c.breaks {
		if b.Kind != audit.RecordedAgain {
			continue
		}
		wrong, before, after := "", c.places[b.Seq-1], c.places[b.Seq]
		switch {
		case b.LostRows < 0 || b.Seq < 1 || b.Last < b.First:
			wrong = "its numbers are impossible"
		case c.replacedAt(b.Seq): // offsets start over
		case before != nil && before.Offset >= b.First:
			wrong = fmt.Sprintf("row %d is of the record with offset %d, which was not lost", b.Seq-1, before.Offset)
		case after != nil && after.Offset < b.First:
			wrong = fmt.Sprintf("row %d is of the record with offset %d, which is before those", b.Seq, after.Offset)
		}
		if wrong != "" {
			b.refuted = true
			c.found(Finding{Reason: Statement, Seq: b.Seq, Detail: fmt.Sprintf("statement %d says that the records %s were recorded again from row %d on, but %s: it explains nothing", b.number, b.Offsets(), b.Seq, wrong)})
		}
	}
}

// judgeBreaks says which rows were recorded again that nothing signed before proves to be what they were. Someone who can
// set a database back brings that about, and can change what is recorded again before it is signed.
func (c *chainCheck) judgeBreaks(r *Report) {
	for _, b := range c.breaks {
		if b.Kind != audit.RecordedAgain || b.refuted || b.LostRows == 0 && b.beyond == 0 || b.beyond == 0 && c.provenBefore(b) {
			continue
		}
		at := b.Time.UTC().Format(time.RFC3339)
		r.gap(GapRecovery, "%s: rows from %d on were recorded again at %s: what was signed about them before does not count any more", c.at, b.Seq, at)
		if b.beyond > b.lostUntil() {
			r.gap(GapRecovery, "%s: the recorder that noticed at %s that rows were lost knew of %d rows, and checkpoints of before have %d", c.at, at, b.lostUntil(), b.beyond)
		}
	}
}

// provenBefore reports whether a checkpoint that does not know of a break proves all rows that it says were lost.
func (c *chainCheck) provenBefore(b *statedBreak) bool {
	for seq, first := range c.points {
		for p := first; p != nil; p = p.other {
			if p.matched && seq >= b.lostUntil() && !c.knows(p, b) && p.time.Before(b.Time.Add(breakMargin)) {
				return true
			}
		}
	}
	return false
}

// knows reports whether a checkpoint was signed after a break: it has the statement about it.
func (c *chainCheck) knows(p *point, b *statedBreak) bool {
	sum, ok := c.statements[p.stated.Rows]
	return ok && p.stated.Rows >= b.number && sum == p.stated.Hash
}

// replacedAt reports whether the topic was replaced before the row was recorded, so that its record
// has a lower offset than the one of the row before.
func (c *chainCheck) replacedAt(seq int64) bool {
	return slices.ContainsFunc(c.breaks, func(b *statedBreak) bool { return b.Kind == audit.TopicReplaced && b.Seq == seq })
}

// settle forgets what was signed about rows that Postgres has lost since, and finds checkpoints that
// disagree for no such reason: two of them are proof by themselves.
func (c *chainCheck) settle(from *Checkpoints) {
	for seq, first := range c.points {
		var kept *point
		for p := first; p != nil; p = p.other {
			if c.superseded(seq, p) {
				continue
			}
			if kept == nil {
				kept = p
				continue
			}
			a, b := kept, p
			if b.time.Before(a.time) {
				a, b = b, a
			}
			from.found(Finding{Reason: Rewritten, Topic: c.at.Topic, Partition: c.at.Partition, Seq: seq,
				Detail: fmt.Sprintf("%s and %s have different hashes of row %d: the chain was rewritten between them", a.name, b.name, seq)})
		}
		if kept == nil {
			delete(c.points, seq)
			continue
		}
		c.points[seq] = kept
	}
}

// superseded reports whether a row was recorded again, or an older backup accepted, after a checkpoint
// was signed. A row that is as signed never is.
func (c *chainCheck) superseded(seq int64, p *point) bool {
	if p.matched {
		return false
	}
	by := false
	for _, b := range c.breaks {
		if b.Kind == audit.RecordedAgain && !b.refuted && seq >= b.Seq && p.time.Before(b.Time.Add(breakMargin)) && !c.knows(p, b) {
			b.beyond, by = max(b.beyond, seq), true
		}
	}
	return by || slices.ContainsFunc(c.restores, func(r restore) bool { return seq >= r.from && p.time.Before(r.time) })
}

// takeHole takes what a row says about records that were never recorded. It is a finding, although the
// row is as it should be: the log is not complete.
func (c *chainCheck) takeHole(seq int64, r *rawRow) {
	kind := audit.RecordsMissed
	switch task.Action(r.Field(audit.ColAction)) {
	case task.RecordsMissed:
	case task.TopicReplaced:
		kind = audit.TopicReplaced
	case task.RecordedAgain:
		c.again++
		return
	default:
		return
	}
	b, err := audit.BreakOf(kind, r.Field(audit.ColDetail))
	if err != nil {
		b = &audit.Break{Kind: kind, Last: audit.UnknownOffset, Why: err.Error()}
	}
	if !b.Hole() {
		return
	}
	if c.holeCount++; len(c.holes) < maxFindings {
		c.holes = append(c.holes, Finding{Reason: Unrecorded, Topic: c.at.Topic, Partition: c.at.Partition, Seq: seq, Row: r.ref(),
			Detail: fmt.Sprintf("records of %s are gone, offsets %s: %s", b.At(), b.Offsets(), b.Why)})
	}
}
