package verify

import (
	"fmt"
	"slices"
	"time"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/verify/trees"
)

// segment is a run of consecutive rows of a chain, linked by their hashes.
type segment struct {
	first, last int64
	prev        audit.Hash // of the row before the first
	firstHash   audit.Hash // of the first row; zero if it was dropped by the retention
	hash        audit.Hash // of the last row

	start, end           audit.Position // of the first and the last row
	startKnown, endKnown bool           // false if the retention has dropped the row
	read                 bool           // it has rows that were read
	dropped              string         // the day, if all of it was dropped by the retention
}

// link is the point where one row ends and the next begins: the number and the hash of the row
// before.
type link struct {
	seq  int64
	hash audit.Hash
}

// chainCheck is what is known about a chain while rows arrive.
type chainCheck struct {
	at      audit.TopicPartition
	end     audit.ChainEnd // as audit_chains has it
	updated time.Time

	cur     *segment // the last row went to it; not in byEnd
	byEnd   map[link]*segment
	byStart map[link]*segment
	forks   []*segment // segments that begin or end exactly where another does

	tree       *trees.Tree
	points     map[int64]*point          // what checkpoints say about rows, by their numbers
	breaks     []*statedBreak            // where its recorder could not simply continue
	places     map[int64]*audit.Position // of the rows around them, by their numbers; nil: not read
	statements map[int64]audit.Hash      // of the whole log
	restores   []restore                 // that an operator accepted
	edges      map[int64]int64           // when the rows before dropped ones were written, by their numbers, in Postgres' microseconds
	from       int64
	read       int64
	signed     int64
	proven     [levels]level // by attacker
	// wrongFrom is the first row that checkpoints contradict; 0: none.
	wrongFrom int64
	signedAt  time.Time
	quiet     bool  // nothing of it was recorded in the period that is verified
	low       int64 // with Since: the row before the first one that was read; it has to be found
	lowKnown  bool

	findings []Finding
	count    int64

	holes     []Finding // rows that say what was never recorded; they explain nothing about other rows
	holeCount int64

	again int64 // rows that say that Postgres had lost what it had confirmed
}

// errTooManySegments says that the rows' order on disk has nothing to do with the chains.
var errTooManySegments = fmt.Errorf("the rows are so scattered on disk that the chains are in too many segments while they are read: "+
	"verify fewer days at a time with --since, or raise --max-segments (%d bytes of memory each)", 400)

// all returns the segments of a chain by their first rows, the longest first.
func (c *chainCheck) all() []*segment {
	out := slices.Clone(c.forks)
	for _, s := range c.byStart {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *segment) int {
		switch {
		case a.first != b.first:
			return int(max(-1, min(1, a.first-b.first)))
		default:
			return int(max(-1, min(1, b.last-a.last)))
		}
	})
	return out
}

// shelve puts the current segment back among the others.
func (c *chainCheck) shelve() {
	s := c.cur
	if s == nil {
		return
	}
	c.cur = nil
	k := link{s.last, s.hash}
	if c.byEnd[k] != nil {
		c.fork(s)
		return
	}
	c.byEnd[k] = s
}

// fork sets aside a segment that ends, or begins, where another does.
func (c *chainCheck) fork(s *segment) {
	if k := (link{s.first - 1, s.prev}); c.byStart[k] == s {
		delete(c.byStart, k)
	}
	c.forks = append(c.forks, s)
}

// append appends b to a.
func (c *chainCheck) append(a, b *segment) {
	if a.endKnown && b.startKnown && !a.end.Before(b.start) && !c.replacedAt(b.first) {
		c.found(Finding{Reason: Moved, Seq: b.first, Row: &RowRef{Position: c.at.At(b.start).String(), Seq: b.first},
			Detail: fmt.Sprintf("the row before it in the chain is %s: rows are not in the order of their records; the chain was rewritten, unless the topic was recreated before that was noticed", c.at.At(a.end))})
	}
	a.last, a.hash, a.end, a.endKnown = b.last, b.hash, b.end, b.endKnown
	a.read = a.read || b.read
	if b.dropped == "" {
		a.dropped = ""
	}
}

// join adds a segment to the chain. The segment that it becomes part of is the current one then.
func (v *verifier) join(c *chainCheck, s segment) error {
	if cur := c.cur; cur == nil || cur.last+1 != s.first || cur.hash != s.prev {
		c.shelve()
		if c.cur = c.byEnd[link{s.first - 1, s.prev}]; c.cur != nil {
			delete(c.byEnd, link{s.first - 1, s.prev})
		}
	}
	if c.cur == nil {
		if v.segments++; v.segments > v.o.MaxSegments {
			return errTooManySegments
		}
		own := s
		if k := (link{s.first - 1, s.prev}); c.byStart[k] == nil {
			c.byStart[k] = &own
			c.cur = &own
		} else {
			c.forks = append(c.forks, &own)
			return nil
		}
	} else {
		c.append(c.cur, &s)
	}
	// Does it reach the next segment?
	if len(c.byStart) < 2 {
		return nil
	}
	k := link{c.cur.last, c.cur.hash}
	if next := c.byStart[k]; next != nil && next != c.cur {
		delete(c.byStart, k)
		delete(c.byEnd, link{next.last, next.hash})
		c.append(c.cur, next)
		v.segments--
	}
	return nil
}

// chainOfRow returns the chain of a row; nil if audit_chains does not have it.
func (v *verifier) chainOfRow(r *rawRow) *chainCheck {
	topic, partition := r.Field(audit.ColTopic), r.Int4(audit.ColPartition)
	if c := v.lastOf; c != nil && c.at.Partition == partition && c.at.Topic == string(topic) {
		return c
	}
	c := v.chains[audit.TopicPartition{Topic: string(topic), Partition: partition}]
	if c != nil {
		v.lastOf = c
	}
	return c
}

// progressEvery is the number of rows between two reports of progress.
const progressEvery = 1 << 15

// take checks one row. own is its hash, as it was computed from its content.
func (v *verifier) take(r *rawRow, own audit.Hash) error {
	if v.report.Rows++; v.report.Rows%progressEvery == 0 {
		v.progress(Progress{v.report.Rows, v.about})
	}
	c := v.chainOfRow(r)
	if r.Null(audit.ColSeq) && r.Null(audit.ColPrev) && r.Null(audit.ColHash) {
		v.unchained(c, r)
		return nil
	}
	if c == nil {
		v.unknownChain(r, "audit_chains has no chain of this partition: no recorder wrote the row, or the entry of the chain was deleted")
		v.addSuspect(nil, r)
		return nil
	}
	c.read++
	prev, ok := r.hash(audit.ColPrev)
	sum, ok2 := r.hash(audit.ColHash)
	if !ok || !ok2 || r.Null(audit.ColSeq) {
		c.found(Finding{Reason: Changed, Seq: r.Int8(audit.ColSeq), Row: r.ref(), Detail: "its number in the chain or one of its hashes is missing or malformed"})
		v.addSuspect(c, r)
		return nil
	}
	seq, at := r.Int8(audit.ColSeq), r.position()
	if own != sum {
		c.found(Finding{Reason: Changed, Seq: seq, Row: r.ref(), Detail: "its hash does not match its content"})
		v.addSuspect(c, r)
	}
	if len(c.points) > 0 {
		c.compare(seq, sum, r.ref)
	}
	if _, ok := c.edges[seq]; ok {
		c.edges[seq] = r.Int8(audit.ColIngested)
	}
	c.tree.Row(seq, sum)
	if _, ok := c.places[seq]; ok {
		place := at
		c.places[seq] = &place
	}
	c.takeHole(seq, r)
	v.advances.Take(r.Field(audit.ColDigests), r.Int8(audit.ColIngested))
	if v.tables != nil {
		if err := v.tables.Take(r.Row); err != nil {
			return err
		}
	}
	return v.join(c, segment{first: seq, last: seq, prev: prev, firstHash: sum, hash: sum, start: at, end: at, startKnown: true, endKnown: true, read: true})
}

// unchained reports a row without a hash: every recorder has always written them.
func (v *verifier) unchained(c *chainCheck, r *rawRow) {
	const why = "it has no hash: no recorder wrote it, or its hash was removed"
	if c == nil {
		v.unknownChain(r, why)
		return
	}
	c.found(Finding{Reason: Inserted, Row: r.ref(), Detail: why})
}

// unknownChain reports a row of a chain that audit_chains does not have.
func (v *verifier) unknownChain(r *rawRow, why string) {
	v.unknownCount++
	if len(v.unknown) < maxFindings {
		v.unknown = append(v.unknown, Finding{Reason: Inserted, Topic: string(r.Field(audit.ColTopic)), Partition: r.Int4(audit.ColPartition),
			Seq: r.Int8(audit.ColSeq), Row: r.ref(), Detail: why})
	}
}
