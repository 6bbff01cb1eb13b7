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

// readBreaks reads where recorders could not simply continue. A break explains what would otherwise
// be a finding, so one counts only if a trusted key has signed it, or if there is no trusted key to
// check it with, and then nothing but the chains is checked anyway.
func (v *verifier) readBreaks(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, `SELECT coalesce(topic, ''), coalesce(partition, -1), coalesce(kind, ''), coalesce(chain_seq, -1), coalesce(first_offset, -1), coalesce(last_offset, $1),
		CASE WHEN isfinite(noticed_at) THEN noticed_at END, coalesce(actor_id, ''), coalesce(statement, '')
		FROM `+v.table("stream_breaks")+` ORDER BY noticed_at DESC LIMIT $2`, audit.UnknownOffset, maxBreaks)
	if err != nil {
		return fmt.Errorf("reading stream_breaks: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var b audit.Break
		var statement string
		var at *time.Time
		if err := rows.Scan(&b.Topic, &b.Partition, &b.Kind, &b.Seq, &b.First, &b.Last, &at, &b.ActorID, &statement); err != nil {
			return fmt.Errorf("reading stream_breaks: %w", err)
		}
		if at != nil {
			b.Time = *at
		}
		v.takeBreak(&b, statement)
	}
	return rows.Err()
}

// takeBreak adds a break to its chain if it can be trusted, and a note either way.
func (v *verifier) takeBreak(b *audit.Break, statement string) {
	by := "which no key is there to check"
	if keys := v.o.Checkpoints.trusted(); len(keys) > 0 {
		said, signed, err := audit.ParseBreak([]byte(statement), keys)
		switch {
		case err != nil || !signed:
			v.forgedBreak(b, statement, "no trusted key has signed that")
			return
		case said.At() != b.At() || said.Kind != b.Kind || said.Seq != b.Seq || said.First != b.First || said.Last != b.Last || said.ActorID != b.ActorID || !said.Time.Equal(b.Time):
			v.forgedBreak(b, statement, "that is not what was signed about it")
			return
		}
		b, by = said, "signed by "+said.Signer
	}
	c := v.chains[b.At()]
	if c == nil {
		c = &chainCheck{}
	}
	c.breaks = append(c.breaks, b)
	at := b.Time.UTC().Format(time.RFC3339)
	switch b.Kind {
	case audit.RecordedAgain:
		v.recovered = append(v.recovered, b.Time)
		// Someone who can set a database back brings this about, and can change what is recorded again before it is signed.
		v.report.gap(GapRecovery, "%s: rows from %d on were recorded again at %s: what was signed about them before does not count any more", b.At(), b.Seq, at)
		v.report.note("%s: Postgres lost the records %s; %s recorded them again from Kafka at %s, from row %d on (%s)", b.At(), b.Offsets(), b.ActorID, at, b.Seq, by)
	case audit.TopicReplaced:
		v.report.note("%s: the topic was replaced; %s noticed that at %s, and rows from %d on are of the new one (%s). Records %s of the old one were not recorded", b.At(), b.ActorID, at, b.Seq, by, b.Offsets())
	case audit.RecordsMissed:
		v.report.note("%s: Kafka deleted the records %s before they were read; %s noticed that at %s (%s)", b.At(), b.Offsets(), b.ActorID, at, by)
	}
}

// forgedBreak reports an entry of stream_breaks that no recorder wrote as it is.
func (v *verifier) forgedBreak(b *audit.Break, statement, why string) {
	if statement == "" {
		v.report.gap(GapKeys, "stream_breaks says that %s was interrupted at %s (%s), and its recorder had no key to sign that with: it explains nothing", b.At(), b.Time.UTC().Format(time.RFC3339), b.Kind)
		return
	}
	v.report.add(Finding{Reason: Statement, Topic: b.Topic, Partition: b.Partition, Seq: b.Seq,
		Detail: fmt.Sprintf("stream_breaks says that recording was interrupted at %s (%s), but %s: it explains nothing", b.Time.UTC().Format(time.RFC3339), b.Kind, why)})
}

// replacedAt reports whether the topic was replaced before the row was recorded, so that its record
// has a lower offset than the one of the row before.
func (c *chainCheck) replacedAt(seq int64) bool {
	return slices.ContainsFunc(c.breaks, func(b *audit.Break) bool { return b.Kind == audit.TopicReplaced && b.Seq == seq })
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
	return slices.ContainsFunc(c.breaks, func(b *audit.Break) bool {
		return b.Kind == audit.RecordedAgain && seq >= b.Seq && p.time.Before(b.Time.Add(breakMargin))
	}) || slices.ContainsFunc(c.restores, func(r restore) bool { return seq >= r.from && p.time.Before(r.time) })
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
