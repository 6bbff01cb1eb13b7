package tracker

import (
	"math/bits"

	"github.com/batchyard/batchyard/stream/internal/offsets"
)

const (
	wordBits = 64
	words    = 64
	pageBits = words * wordBits // offsets of one page, which takes 520 bytes
)

// Set holds offsets. The zero value is empty. It takes one bit per offset between the lowest and the
// highest, so a backlog of a million records costs 128 KiB.
type Set struct {
	first int64   // number of the first page
	pages []*page // nil: no offset of it is in the set; the first one is never nil
	n     int
}

type page struct {
	words [words]uint64
	n     int
}

// Len is how many offsets are in the set.
func (s *Set) Len() int { return s.n }

// Add puts an offset into the set. Below the lowest one, it takes time in proportion to the distance.
func (s *Set) Add(offset int64) {
	no := offset / pageBits
	switch {
	case len(s.pages) == 0:
		s.first, s.pages = no, []*page{nil}
	case no < s.first:
		s.pages = append(make([]*page, s.first-no), s.pages...)
		s.first = no
	}
	for int64(len(s.pages)) <= no-s.first {
		s.pages = append(s.pages, nil)
	}
	p := s.pages[no-s.first]
	if p == nil {
		p = &page{}
		s.pages[no-s.first] = p
	}
	word, bit := &p.words[offset%pageBits/wordBits], uint64(1)<<(offset%wordBits)
	if *word&bit == 0 {
		*word |= bit
		p.n++
		s.n++
	}
}

// Remove takes an offset out; false if it is not there.
func (s *Set) Remove(offset int64) bool {
	if !s.Has(offset) {
		return false
	}
	i := offset/pageBits - s.first
	p := s.pages[i]
	p.words[offset%pageBits/wordBits] &^= 1 << (offset % wordBits)
	s.n--
	if p.n--; p.n == 0 {
		s.pages[i] = nil
		for len(s.pages) > 0 && s.pages[0] == nil {
			s.pages = s.pages[1:]
			s.first++
		}
	}
	return true
}

// Has reports whether an offset is in the set.
func (s *Set) Has(offset int64) bool {
	p := s.page(offset)
	return p != nil && p.words[offset%pageBits/wordBits]>>(offset%wordBits)&1 == 1
}

// page returns the page of an offset; nil if nothing of it is in the set.
func (s *Set) page(offset int64) *page {
	i := offset/pageBits - s.first
	if offset < 0 || i < 0 || i >= int64(len(s.pages)) {
		return nil
	}
	return s.pages[i]
}

// Next returns the lowest offset in the set at or after from; false without one.
func (s *Set) Next(from int64) (int64, bool) {
	for from = max(from, s.first*pageBits); from < (s.first+int64(len(s.pages)))*pageBits; {
		p := s.page(from)
		if p == nil {
			from = (from/pageBits + 1) * pageBits
			continue
		}
		if w := p.words[from%pageBits/wordBits] >> (from % wordBits); w != 0 {
			return from + int64(bits.TrailingZeros64(w)), true
		}
		from = (from/wordBits + 1) * wordBits
	}
	return 0, false
}

// nextAbsent returns the lowest offset from one on that is not in the set.
func (s *Set) nextAbsent(from int64) int64 {
	for {
		p := s.page(from)
		if p == nil {
			return from
		}
		if w := ^p.words[from%pageBits/wordBits] >> (from % wordBits); w != 0 {
			return from + int64(bits.TrailingZeros64(w))
		}
		from = (from/wordBits + 1) * wordBits
	}
}

// Gaps returns the spans of offsets that are not in the set, from one offset up to, but not including,
// another: the lowest ones, at most so many.
func (s *Set) Gaps(from, to int64, most int) []offsets.Span {
	var gaps []offsets.Span
	for len(gaps) < most {
		first := s.nextAbsent(from)
		if first >= to {
			break
		}
		end, ok := s.Next(first)
		if !ok || end > to {
			end = to
		}
		gaps = append(gaps, offsets.Span{First: first, End: end})
		from = end
	}
	return gaps
}
