package verify

import (
	"fmt"

	"github.com/batchyard/batchyard/audit"
)

// walk follows a chain that is in several segments from its beginning to its end, and decides at
// each break which row is at fault. What hashes prove: a row vouches for all rows before it. So if
// two rows that match their own hashes do not fit together, the earlier one was rewritten.
type walk struct {
	v        *verifier
	c        *chainCheck
	names    map[numbered][]known
	segments []*segment // by their first rows
	used     map[*segment]bool

	next    int64      // number of the next row
	want    audit.Hash // its prev_hash
	lastRef *segment   // the segment that ends with the row before it
}

func (w *walk) run(sc scope) {
	w.used = map[*segment]bool{}
	w.next, w.want = 1, audit.Genesis(w.c.at)
	if sc == recentDays && len(w.segments) > 0 && w.segments[0].first > 1 {
		first := w.segments[0]
		if w.c.low > 0 && first.first == w.c.low+1 {
			w.c.found(Finding{Reason: Missing, Seq: w.c.low, Detail: "no partition holds it; " + w.name("the next is ", first.first, first.firstHash)})
		}
		w.next, w.want = first.first, first.prev
	}
	for w.step() {
		if w.c.count > 4*maxFindings { // the first findings are what was asked for
			return
		}
	}
	w.unreached()
	w.tail()
}

// step takes one segment; false if none leads on.
func (w *walk) step() bool {
	var exact, broken, over, gap *segment
	for _, s := range w.segments {
		if w.used[s] || s.first > w.c.end.Rows || s.first < 1 {
			continue
		}
		if s.first > w.next {
			gap = s
			break
		}
		reaches := s.last >= w.next || (s.last == w.c.end.Rows && s.hash == w.c.end.Hash && w.want != w.c.end.Hash)
		switch {
		case s.first == w.next && s.prev == w.want:
			if exact == nil || s.last > exact.last {
				exact = s
			}
		case s.first == w.next:
			if broken == nil || s.last > broken.last {
				broken = s
			}
		case reaches && (over == nil || s.last > over.last):
			over = s
		}
	}
	switch {
	case exact != nil:
		w.advance(exact)
	case over != nil && (broken == nil || over.last >= broken.last):
		w.overlap(over)
		w.advance(over)
	case broken != nil:
		w.broken(broken)
		w.advance(broken)
	case gap != nil:
		w.gap(w.next, gap.first-1, gap)
		w.advance(gap)
	default:
		return false
	}
	return true
}

func (w *walk) advance(s *segment) {
	w.used[s] = true
	w.next, w.want, w.lastRef = s.last+1, s.hash, s
}

// ref returns the row with a number and a hash; nil if there is none.
func (w *walk) ref(seq int64, sum audit.Hash) *RowRef {
	all := w.names[numbered{w.c.at, seq}]
	for _, k := range all {
		if k.hash == sum {
			return k.ref
		}
	}
	return nil
}

// other returns a row with the number that has another hash.
func (w *walk) other(seq int64, sum audit.Hash) *RowRef {
	for _, k := range w.names[numbered{w.c.at, seq}] {
		if k.hash != sum {
			return k.ref
		}
	}
	return nil
}

// name is how a sentence refers to a row.
func (w *walk) name(what string, seq int64, sum audit.Hash) string {
	if r := w.ref(seq, sum); r != nil {
		return fmt.Sprintf("%s%d, %s", what, seq, r)
	}
	return fmt.Sprintf("%s%d", what, seq)
}

// broken reports two rows that follow each other by number but not by hash.
func (w *walk) broken(s *segment) {
	before := w.next - 1
	if w.c.explains(before, w.next) {
		return // one of the rows was changed, and that is reported already
	}
	if before == 0 {
		w.c.found(Finding{Reason: Changed, Seq: s.first, Row: w.ref(s.first, s.firstHash),
			Detail: "its hash matches its content, but it does not begin the chain: its prev_hash is not that of a first row"})
		return
	}
	if w.lastRef != nil && !w.lastRef.endKnown {
		w.c.found(Finding{Reason: Changed, Seq: s.first, Row: w.ref(s.first, s.firstHash),
			Detail: fmt.Sprintf("it does not follow row %d, which the retention has dropped according to audit_dropped", before)})
		return
	}
	w.c.found(Finding{Reason: Changed, Seq: before, Row: w.ref(before, w.want),
		Detail: "its hash was recomputed with it: " + w.name("row ", s.first, s.firstHash) + " follows one with another hash. Rows before it may have been changed in the same way"})
}

// gap reports missing rows.
func (w *walk) gap(from, to int64, next *segment) {
	f := Finding{Reason: Missing, Seq: from, Detail: "no partition holds it"}
	if to > from {
		f.To, f.Detail = to, "no partition holds them"
	}
	if w.next > 1 {
		f.Detail += w.name("; the last row before is ", from-1, w.want)
	}
	if next != nil {
		f.Detail += w.name("; the next is ", next.first, next.firstHash)
		if from == to {
			w.v.gaps = append(w.v.gaps, singleGap{w.c, from, w.want, next.prev})
		}
	}
	w.c.found(f)
}

// overlap reports a segment that begins before the end of what was walked and leads further: the
// walk left the chain where this segment begins.
func (w *walk) overlap(s *segment) {
	f := Finding{Reason: Inserted, Seq: s.first, Row: w.other(s.first, s.firstHash), Detail: "the chain does not continue from it: " + w.name("it continues from row ", s.first, s.firstHash)}
	if f.Row == nil { // the same row, twice
		f.Row, f.Detail = w.ref(s.first, s.firstHash), "the row exists twice"
	}
	if w.next-1 > s.first {
		f.To = w.next - 1
	}
	w.c.blame(f)
}

// unreached reports the segments that nothing leads to: other rows have their numbers.
func (w *walk) unreached() {
	for _, s := range w.segments {
		if w.used[s] {
			continue
		}
		f := Finding{Reason: Inserted, Seq: s.first, Row: w.ref(s.first, s.firstHash), Detail: "another row of the chain has its number, and the chain leads through that one"}
		switch {
		case s.first > w.c.end.Rows:
			f.Detail = fmt.Sprintf("the chain ends at row %d", w.c.end.Rows)
		case s.first < 1:
			f.Detail = "rows are numbered from 1"
		case !s.read:
			f.Detail = "audit_dropped says that the retention dropped it, but it exists, or was dropped before"
		}
		if s.last > s.first {
			f.To = s.last
		}
		w.c.blame(f)
	}
}

// blame reports a finding about a row, in place of one that says less. Of two rows with the same
// number the one that does not match its hash is the wrong one.
func (c *chainCheck) blame(f Finding) {
	for i := range c.findings {
		if g := &c.findings[i]; g.Reason == Changed && g.Seq == f.Seq && g.Row != nil && f.To == 0 {
			f.Row = g.Row
			f.Topic, f.Partition = g.Topic, g.Partition
			f.Detail += "; " + g.Detail
			*g = f
			return
		}
	}
	c.found(f)
}

// tail compares the end of the walk with audit_chains.
func (w *walk) tail() {
	last, end := w.next-1, w.c.end
	switch {
	case last < end.Rows:
		w.gap(w.next, end.Rows, nil)
	case last > end.Rows:
		f := Finding{Reason: Inserted, Seq: end.Rows + 1, To: last, Row: w.other(end.Rows+1, audit.Hash{}),
			Detail: fmt.Sprintf("audit_chains says that the chain ends at row %d: the rows after it were not recorded, or audit_chains was set back", end.Rows)}
		if f.To == f.Seq {
			f.To = 0
		}
		w.c.found(f)
	case w.want != end.Hash && !w.c.explains(last, last):
		w.c.found(Finding{Reason: Changed, Seq: last, Row: w.ref(last, w.want),
			Detail: "its hash was recomputed with it: audit_chains says that the chain ends with another hash (unless audit_chains was changed). Rows before it may have been changed in the same way"})
	}
}
