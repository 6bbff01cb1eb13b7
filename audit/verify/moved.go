package verify

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/batchyard/batchyard/audit"
)

// suspect is a row whose hash does not match its content, with everything that its hash may be
// over.
type suspect struct {
	chain   *chainCheck // nil: unknown
	ref     *RowRef
	content []byte // the columns before those of the source
	src     []byte // the columns of the source
	seq     []byte
	prev    audit.Hash
	sum     audit.Hash
}

const (
	maxSuspects     = 64
	maxSuspectBytes = 256 << 10
)

// singleGap is a single missing row, and the hashes around it.
type singleGap struct {
	chain     *chainCheck
	seq       int64
	prev, sum audit.Hash
}

func (v *verifier) addSuspect(c *chainCheck, r *rawRow) {
	if len(v.suspects) >= maxSuspects || len(r.covered()) > maxSuspectBytes {
		return
	}
	s := suspect{chain: c, ref: r.ref(), content: slices.Clone(r.Fields(0, audit.ColTopic)), src: slices.Clone(r.Fields(audit.ColTopic, audit.ColSeq)), seq: slices.Clone(r.Fields(audit.ColSeq, audit.ColPrev))}
	s.prev, _ = r.hash(audit.ColPrev)
	s.sum, _ = r.hash(audit.ColHash)
	v.suspects = append(v.suspects, s)
}

// hashOf returns the hash of a row that consists of the given parts.
func (v *verifier) hashOf(prev audit.Hash, parts ...[]byte) audit.Hash {
	v.parts = v.parts[:0]
	for _, p := range parts {
		v.parts = append(v.parts, p...)
	}
	var h audit.Hash
	h, v.scratch = audit.RowHash(prev, v.parts, v.scratch)
	return h
}

// findMoved looks for rows that do not match their places but match other places.
func (v *verifier) findMoved() {
	for i := range v.suspects {
		for j := range v.suspects {
			if i != j && v.swapped(&v.suspects[i], &v.suspects[j]) {
				break
			}
		}
	}
	for _, g := range v.gaps {
		for i := range v.suspects {
			if v.fills(g, &v.suspects[i]) {
				break
			}
		}
	}
}

// swapped tries all mixtures of the content of x, and the sources, numbers and previous hashes of x
// and y, against the hashes of both.
func (v *verifier) swapped(x, y *suspect) bool {
	for mix := range 8 {
		pick := func(bit int) *suspect {
			if mix&bit != 0 {
				return y
			}
			return x
		}
		got := v.hashOf(pick(1).prev, x.content, pick(2).src, pick(4).seq)
		switch {
		case got == y.sum:
			v.markMoved(x, "it has the content of "+y.ref.String())
		case got == x.sum && mix != 0:
			v.markMoved(x, "it has the place of "+y.ref.String())
		default:
			continue
		}
		return true
	}
	return false
}

// markMoved gives the finding about a row the more precise reason.
func (v *verifier) markMoved(s *suspect, detail string) {
	fs := v.unknown
	if s.chain != nil {
		fs = s.chain.findings
	}
	for i := range fs {
		if f := &fs[i]; f.Reason != Moved && f.Row != nil && *f.Row == *s.ref {
			f.Reason, f.Detail = Moved, detail
		}
	}
}

// fills reports whether a row is the one that is missing elsewhere: with the number and the
// partition of the gap, whatever the row itself says.
func (v *verifier) fills(g singleGap, s *suspect) bool {
	seq := binary.BigEndian.AppendUint64([]byte{0, 0, 0, 8}, uint64(g.seq))
	var src []byte
	src = binary.BigEndian.AppendUint32(src, uint32(len(g.chain.at.Topic)))
	src = append(src, g.chain.at.Topic...)
	src = append(src, 0, 0, 0, 4)
	src = binary.BigEndian.AppendUint32(src, uint32(g.chain.at.Partition))
	record := s.src[max(0, len(s.src)-20):] // offset and index, unchanged
	for _, from := range [][]byte{s.src, slices.Concat(src, record)} {
		if v.hashOf(g.prev, s.content, from, seq) != g.sum {
			continue
		}
		for i := range g.chain.findings {
			if f := &g.chain.findings[i]; f.Reason == Missing && f.Seq == g.seq {
				f.Reason, f.Row = Moved, s.ref
				f.Detail = fmt.Sprintf("it is there as row %d of %s", s.ref.Seq, s.ref.Position)
			}
		}
		v.markMoved(s, fmt.Sprintf("it is row %d of %s", g.seq, g.chain.at))
		return true
	}
	return false
}
