package verify

import (
	"fmt"
	"slices"
	"time"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/task"
)

// segment is consecutive rows of a chain that follow each other by their hashes.
type segment struct {
	first, last int64
	prev        audit.Hash // of the row before the first
	firstHash   audit.Hash // of the first; zero when retention has dropped it
	hash        audit.Hash // of the last

	start, end           audit.Position // of the first and the last
	startKnown, endKnown bool           // not when retention has dropped the row
	read                 bool           // it holds rows that were read
	dropped              string         // day, while it is nothing but what retention dropped
}

// link is where one row ends and the next begins: the number and the hash of the
// one before.
type link struct {
	seq  int64
	hash audit.Hash
}

// chainCheck is what is known of a chain while rows come.
type chainCheck struct {
	at      audit.TopicPartition
	end     audit.ChainEnd // by audit_chains
	updated time.Time

	cur     *segment // that the last row went to; not in byEnd
	byEnd   map[link]*segment
	byStart map[link]*segment
	forks   []*segment // begin or end exactly where another one does

	points   map[int64]*point // what checkpoints say
	nulls    audit.Position   // the highest of the rows without a hash
	nullsAt  int64            // when the last of them was written, in Postgres' microseconds
	hashedAt int64            // and the first of the rows with one that were read
	from     int64
	read     int64
	before   int64
	signed   int64
	signedAt time.Time
	quiet    bool  // nothing of it was recorded in the time that is verified
	low      int64 // with since: the row before the first one that was read, which has to be found
	lowKnown bool

	findings []Finding
	count    int64
}

// errTooManySegments says that the order on the disk has nothing to do with the chains.
var errTooManySegments = fmt.Errorf("the rows lie on the disk in so little order that the chains are in too many pieces while they are read: "+
	"verify the days one after the other, the last ones first, with --since, or raise --max-segments (%d bytes of memory each)", 400)

// all are the segments of a chain, by their first rows; the longest first.
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

// fork sets a segment aside that ends, or begins, where another one does.
func (c *chainCheck) fork(s *segment) {
	if k := (link{s.first - 1, s.prev}); c.byStart[k] == s {
		delete(c.byStart, k)
	}
	c.forks = append(c.forks, s)
}

// append lets b follow a.
func (c *chainCheck) append(a, b *segment) {
	if a.endKnown && b.startKnown && !a.end.Before(b.start) {
		c.found(Finding{Reason: Moved, Seq: b.first, Row: &RowRef{Position: c.at.At(b.start).String(), Seq: b.first},
			Detail: fmt.Sprintf("the row before it in the chain is %s: rows are not in the order of their records; unless the topic was made anew between the two, the chain was rewritten", c.at.At(a.end))})
	}
	a.last, a.hash, a.end, a.endKnown = b.last, b.hash, b.end, b.endKnown
	a.read = a.read || b.read
	if b.dropped == "" {
		a.dropped = ""
	}
}

// join adds a segment to what there is of the chain. It becomes the current one.
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
	// Does it meet the one that follows?
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

// chainOfRow finds the chain of a row; nil for one that audit_chains does not know.
func (v *verifier) chainOfRow(r *rawRow) *chainCheck {
	topic, partition := r.field(audit.ColTopic), r.int4(audit.ColPartition)
	if c := v.lastOf; c != nil && c.at.Partition == partition && c.at.Topic == string(topic) {
		return c
	}
	c := v.chains[audit.TopicPartition{Topic: string(topic), Partition: partition}]
	if c != nil {
		v.lastOf = c
	}
	return c
}

// progressEvery is after how many rows progress is told.
const progressEvery = 1 << 15

// take looks at one row.
func (v *verifier) take(r *rawRow) error {
	if v.report.Rows++; v.report.Rows%progressEvery == 0 {
		v.progress(Progress{v.report.Rows, v.about})
	}
	if string(r.field(audit.ColAction)) == string(task.PartitionDropped) && len(v.announcedDrops) < maxClaims {
		v.announcedDrops[string(r.field(audit.ColResource))] = true
	}
	c := v.chainOfRow(r)
	if r.nul[audit.ColSeq] && r.nul[audit.ColPrev] && r.nul[audit.ColHash] {
		v.unchained(c, r)
		return nil
	}
	if c == nil {
		v.unknownChain(r, "audit_chains knows no chain of this partition: no recorder wrote the row, or the chain's entry was deleted")
		v.addSuspect(nil, r)
		return nil
	}
	if at := r.int8(audit.ColIngested); c.read == 0 || at < c.hashedAt {
		c.hashedAt = at
	}
	c.read++
	prev, ok := r.hash(audit.ColPrev)
	sum, ok2 := r.hash(audit.ColHash)
	if !ok || !ok2 || r.nul[audit.ColSeq] {
		c.found(Finding{Reason: Changed, Seq: r.int8(audit.ColSeq), Row: r.ref(), Detail: "its number in the chain or one of its hashes was emptied or is none"})
		v.addSuspect(c, r)
		return nil
	}
	seq, at := r.int8(audit.ColSeq), r.position()
	var own audit.Hash
	own, v.scratch = audit.RowHash(prev, r.covered(), v.scratch)
	if own != sum {
		c.found(Finding{Reason: Changed, Seq: seq, Row: r.ref(), Detail: "its hash is not that of its content"})
		v.addSuspect(c, r)
	}
	if len(c.points) > 0 {
		c.compare(seq, sum, r.ref)
	}
	return v.join(c, segment{first: seq, last: seq, prev: prev, firstHash: sum, hash: sum, start: at, end: at, startKnown: true, endKnown: true, read: true})
}

// unchained counts a row that has no hash: from before the chain began, or from
// somebody who was no recorder.
func (v *verifier) unchained(c *chainCheck, r *rawRow) {
	at := r.position()
	if c == nil {
		if v.report.Before++; at.Offset < 0 {
			v.unknownChain(r, "it has no hash, and no record has such an offset")
		} else if ingested := r.int8(audit.ColIngested); v.unchainedRow == nil || ingested > v.unchainedAt {
			v.unchainedRow, v.unchainedAt = r.ref(), ingested
		}
		return
	}
	if ingested := r.int8(audit.ColIngested); c.before == 0 || ingested > c.nullsAt {
		c.nullsAt = ingested
	}
	if c.before == 0 || c.nulls.Before(at) {
		c.nulls = at
	}
	c.before++
	if at.Offset < 0 {
		c.found(Finding{Reason: Inserted, Row: r.ref(), Detail: "it has no hash, and no record has such an offset"})
	}
}

// unknownChain notes a row that belongs to no chain.
func (v *verifier) unknownChain(r *rawRow, why string) {
	v.unknownCount++
	if len(v.unknown) < maxFindings {
		v.unknown = append(v.unknown, Finding{Reason: Inserted, Topic: string(r.field(audit.ColTopic)), Partition: r.int4(audit.ColPartition),
			Seq: r.int8(audit.ColSeq), Row: r.ref(), Detail: why})
	}
}
