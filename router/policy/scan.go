package policy

import (
	"math"
	"time"
)

// Helpers that several policies share.

const noneFree = "no device has a free credit"

// UnknownService is assumed of a device that has not answered a task of this model yet: short, so
// that the device is tried soon, and measured.
const UnknownService = 10 * time.Millisecond

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// weight is the operator's weight times the slots.
func (c *Candidate) weight() float64 {
	w := c.Weight
	if !(w > 0) {
		w = 1
	}
	return max(w, leastWeight) * float64(max(1, c.Slots))
}

// leastWeight is the smallest weight that makes a difference. Devices may report far smaller ones, whose
// inverse is infinite, and a score that is infinite has no form in JSON.
const leastWeight = 1e-9

// lineup holds the loads of all candidates close together in memory, and what one task counts on
// each. A policy that looks at all of 5,000 devices is limited by memory access.
type lineup struct {
	loads []*Load
	per   []float64
}

// lineUp builds the lineup once per generation; per returns what one task counts on a candidate.
func lineUp(s *Snapshot, per func(*Candidate) float64) *lineup {
	if l, ok := s.Cache.(*lineup); ok {
		return l
	}
	l := &lineup{loads: make([]*Load, len(s.Candidates)), per: make([]float64, len(s.Candidates))}
	for i := range s.Candidates {
		l.loads[i], l.per[i] = s.Candidates[i].Load, per(&s.Candidates[i])
	}
	s.Cache = l
	return l
}

// least takes the candidate whose tasks count least; among equals, the one picked longest ago.
func (l *lineup) least(s *Snapshot, why string) Choice {
	choice := Choice{Index: Wait}
	third, last := math.Inf(1), uint64(math.MaxUint64) // of the third best so far
	for i, d := range l.loads {
		score := float64(d.Used) * l.per[i]
		if d.Used >= d.Limit || score > third || score == third && d.Last >= last {
			continue
		}
		choice.considerInTurn(s, i, score)
		if choice.Tops == len(choice.Top) {
			t := &choice.Top[len(choice.Top)-1]
			third, last = t.Score, s.Candidates[t.Index].Last
		}
	}
	return choice.best(why)
}

// leastBusy takes the device with the smallest part of its slots in use; among equals, the one
// picked longest ago.
func leastBusy(s *Snapshot, why string) Choice {
	line := lineUp(s, func(c *Candidate) float64 { return 1 / float64(max(1, c.Slots)) })
	return line.least(s, why)
}

// mayRank reports whether a score can be one of the best three.
func (c *Choice) mayRank(score float64) bool {
	return c.Tops < len(c.Top) || score <= c.Top[len(c.Top)-1].Score
}

// considerInTurn puts a candidate among the best three; of equal scores, the device picked longer
// ago goes first, so that equal devices take turns.
func (c *Choice) considerInTurn(s *Snapshot, index int, score float64) {
	if !c.mayRank(score) {
		return
	}
	at := c.Tops
	for ; at > 0; at-- {
		if t := &c.Top[at-1]; score > t.Score || score == t.Score && s.Candidates[index].Last >= s.Candidates[t.Index].Last {
			break
		}
	}
	c.insert(at, Scored{index, score})
}

// best takes the first of the ranked candidates; without any, the task waits.
func (c *Choice) best(why string) Choice {
	c.Index, c.Why = Wait, noneFree
	if c.Tops > 0 {
		c.Index, c.Why = c.Top[0].Index, why
	}
	return *c
}

// maxDraws bounds the random draws that may hit full devices before all of n are scanned. Drawing
// is cheaper as long as one device in a few dozen has a free credit.
func maxDraws(n int) int { return 8 + n/64 }

// drawFree draws a candidate with a free credit, each with the same probability; Wait if no
// device has one.
func drawFree(s *Snapshot) int {
	n := len(s.Candidates)
	if n == 0 {
		return Wait
	}
	for range maxDraws(n) {
		if i := s.Rand.IntN(n); s.Candidates[i].Free() > 0 {
			return i
		}
	}
	free := 0
	for i := range s.Candidates {
		if c := &s.Candidates[i]; c.Used < c.Limit {
			free++
		}
	}
	if free == 0 {
		return Wait
	}
	k := s.Rand.IntN(free)
	for i := range s.Candidates {
		if c := &s.Candidates[i]; c.Used < c.Limit {
			if k == 0 {
				return i
			}
			k--
		}
	}
	return Wait // not reached: only this goroutine changes the snapshot
}
