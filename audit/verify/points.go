package verify

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/batchyard/batchyard/audit"
)

// point is what a checkpoint says about a row.
type point struct {
	hash    audit.Hash
	root    audit.Hash // of the tree over the rows up to this one; zero: it says none
	time    time.Time
	stated  audit.ChainEnd // where the chain of statements ended then
	name    string         // of the checkpoint
	from    []*origins     // of the checkpoints that say so, at most maxOrigins
	matched bool
	differs *RowRef // a row with that number and another hash
	other   *point  // a checkpoint with another hash of the row; nil: none
}

const sha256Size = len(audit.Hash{})

// maxOrigins bounds the checkpoints that are remembered for a row: many say the same while nothing is
// recorded.
const maxOrigins = 64

// point keeps what a checkpoint says about a row.
func (c *Checkpoints) point(at audit.TopicPartition, seq int64, p *point) {
	of := c.points[at]
	if of == nil {
		of = map[int64]*point{}
		c.points[at] = of
	}
	for have := of[seq]; have != nil; have = have.other {
		if have.hash == p.hash {
			if p.time.After(have.time) {
				have.time, have.name, have.stated = p.time, p.name, p.stated
			}
			if have.root == (audit.Hash{}) {
				have.root = p.root
			} else if p.root != have.root && p.root != (audit.Hash{}) {
				c.found(Finding{Reason: Checkpoint, Topic: at.Topic, Partition: at.Partition, Seq: seq, Detail: fmt.Sprintf("%s and %s have different roots of the tree over the first %d rows", have.name, p.name, seq)})
			}
			if len(have.from) >= maxOrigins {
				have.from = have.from[:maxOrigins-1]
			}
			have.from = append(have.from, p.from...)
			return
		}
		if have.other == nil {
			have.other = p
			return
		}
	}
	of[seq] = p
	if len(of) > 2*maxPoints {
		seqs := slices.Sorted(maps.Keys(of))
		for _, old := range seqs[:len(seqs)-maxPoints] {
			delete(of, old)
		}
	}
}

// compare notes whether a row is as the checkpoints say.
func (c *chainCheck) compare(seq int64, sum audit.Hash, ref func() *RowRef) {
	for p := c.points[seq]; p != nil; p = p.other {
		switch {
		case p.hash == sum:
			p.matched = true
		case p.differs == nil:
			p.differs = ref()
		}
	}
}

// signedRow is what a checkpoint says about the row with a number.
type signedRow struct {
	*point
	seq int64
}

// judgePoints compares a chain with what was signed: each checkpoint on its own, because after a
// rollback the later ones still guard what follows. Differences that findings about the chain itself
// explain are not reported; what remains was rewritten.
func (c *chainCheck) judgePoints(from *Checkpoints, standby bool) {
	for _, s := range c.all() { // the ends of what the retention dropped
		for _, k := range []link{{s.first - 1, s.prev}, {s.last, s.hash}} {
			for p := c.points[k.seq]; p != nil; p = p.other {
				p.matched = p.matched || p.hash == k.hash
			}
		}
	}
	if c.from == 0 && c.end.Rows > 0 { // no row of it was read
		c.compare(c.end.Rows, c.end.Hash, func() *RowRef { return &RowRef{Position: "audit_chains", Seq: c.end.Rows} })
	}
	c.settle(from)
	all := make([]signedRow, 0, len(c.points))
	for seq, p := range c.points {
		all = append(all, signedRow{p, seq})
	}
	slices.SortFunc(all, func(a, b signedRow) int { return cmp.Or(a.time.Compare(b.time), cmp.Compare(a.seq, b.seq)) })
	var bad []signedRow // consecutive ones that contradict the chain
	for _, s := range all {
		wrong := !s.matched && (s.seq > c.end.Rows && !standby || s.seq <= c.end.Rows && s.differs != nil)
		if len(bad) > 0 && (s.matched || wrong && s.seq < bad[len(bad)-1].seq) {
			c.contradicted(bad)
			bad = nil
		}
		switch {
		case wrong:
			bad = append(bad, s)
		case s.matched:
			c.take(s)
		}
	}
	if len(bad) > 0 {
		c.contradicted(bad)
	}
}

// take notes that a row is as a checkpoint says, and with it all rows before.
func (c *chainCheck) take(s signedRow) {
	if s.seq >= c.signed {
		c.signed, c.signedAt = s.seq, s.time
	}
	var from Origin
	for _, o := range s.from {
		from |= o.Origin
	}
	for i, a := range attackers {
		if from&a.trusted != 0 && s.seq >= c.proven[i].rows {
			c.proven[i] = level{s.seq, s.time}
		}
	}
}

// contradicted reports checkpoints that contradict the chain, one after the other.
func (c *chainCheck) contradicted(bad []signedRow) {
	first, last, good := bad[0], bad[len(bad)-1], int64(0)
	for seq, p := range c.points {
		if p.matched && seq < first.seq {
			good = max(good, seq)
		}
	}
	from := min(good, c.end.Rows) + 1
	if c.wrongFrom == 0 || from < c.wrongFrom {
		c.wrongFrom = from
	}
	many := ""
	if len(bad) > 1 {
		many = fmt.Sprintf("; %d checkpoints contradict it, the last is %s", len(bad), last.name)
	}
	if first.seq > c.end.Rows {
		if top := last.seq; !c.explains(c.end.Rows+1, top) {
			c.found(Finding{Reason: Rewritten, Seq: c.end.Rows + 1, To: top,
				Detail: fmt.Sprintf("%s says that the chain has %d rows, but it ends at row %d", last.name, top, c.end.Rows) + many})
		}
		return
	}
	if c.explains(good+1, first.seq) {
		return
	}
	f := Finding{Reason: Rewritten, Seq: good + 1, Row: first.differs,
		Detail: fmt.Sprintf("the chain is consistent in itself, but %s has another hash of row %d: it was rewritten, starting at one of these rows", first.name, first.seq)}
	if good > 0 {
		f.Detail += fmt.Sprintf("; row %d is as signed", good)
	}
	if f.Detail += many; first.seq > good+1 {
		f.To = first.seq
	}
	c.found(f)
}
