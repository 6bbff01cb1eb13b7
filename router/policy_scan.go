package router

import "math"

// What several policies need to look over a field.

const noneFree = "no device has a free credit"

// weight of a candidate is the operator's, for each slot.
func (c *Candidate) weight() float64 {
	w := c.Weight
	if !(w > 0) {
		w = 1
	}
	return w * float64(max(1, c.Slots))
}

// lineup is the loads of a field's candidates close together in memory, and what
// one task of each counts for: a policy that looks at all of 5,000 has to be
// sparing with memory.
type lineup struct {
	loads []*Load
	per   []float64
}

// lineUp makes the line-up once for each reading of the fleet; per tells what a
// task of a candidate counts for.
func lineUp(f *Field, per func(*Candidate) float64) *lineup {
	if l, ok := f.Memo.(*lineup); ok {
		return l
	}
	l := &lineup{loads: make([]*Load, len(f.Cands)), per: make([]float64, len(f.Cands))}
	for i := range f.Cands {
		l.loads[i], l.per[i] = f.Cands[i].Load, per(&f.Cands[i])
	}
	f.Memo = l
	return l
}

// least takes the candidate whose tasks count least, among equals the one that
// was picked longest ago.
func (l *lineup) least(f *Field, why string) Choice {
	choice := Choice{Index: Wait}
	most, last := math.Inf(1), uint64(math.MaxUint64) // of the third best so far
	for i, d := range l.loads {
		score := float64(d.Used) * l.per[i]
		if d.Used >= d.Limit || score > most || score == most && d.Last >= last {
			continue
		}
		choice.rank(f, i, score)
		if choice.Tops == len(choice.Top) {
			t := &choice.Top[len(choice.Top)-1]
			most, last = t.Score, f.Cands[t.Index].Last
		}
	}
	return choice.best(why)
}

// near says that a score may be one of the best three.
func (c *Choice) near(score float64) bool {
	return c.Tops < len(c.Top) || score <= c.Top[len(c.Top)-1].Score
}

// rank puts a candidate among the best three; of equal scores, the one that was
// picked longer ago goes first, so that equals take turns.
func (c *Choice) rank(f *Field, index int, score float64) {
	if !c.near(score) {
		return
	}
	at := c.Tops
	for ; at > 0; at-- {
		if t := &c.Top[at-1]; score > t.Score || score == t.Score && f.Cands[index].Last >= f.Cands[t.Index].Last {
			break
		}
	}
	if at == len(c.Top) {
		return
	}
	c.Tops = min(c.Tops+1, len(c.Top))
	copy(c.Top[at+1:c.Tops], c.Top[at:c.Tops-1])
	c.Top[at] = Scored{index, score}
}

// best takes the first of those that were ranked; without one, the task waits.
func (c *Choice) best(why string) Choice {
	c.Index, c.Note = Wait, noneFree
	if c.Tops > 0 {
		c.Index, c.Note = c.Top[0].Index, why
	}
	return *c
}

// triesAtRandom bounds the draws that hit a full device among n, before all are
// looked at: they are cheaper as long as one in a few dozens is free.
func triesAtRandom(n int) int { return 8 + n/64 }

// anyFree draws a candidate with a free credit, each with the same chance; Wait
// when there is none.
func anyFree(f *Field) int {
	n := len(f.Cands)
	if n == 0 {
		return Wait
	}
	for range triesAtRandom(n) {
		if i := f.Rand.IntN(n); f.Cands[i].Free() > 0 {
			return i
		}
	}
	free := 0
	for i := range f.Cands {
		if c := &f.Cands[i]; c.Used < c.Limit {
			free++
		}
	}
	if free == 0 {
		return Wait
	}
	k := f.Rand.IntN(free)
	for i := range f.Cands {
		if c := &f.Cands[i]; c.Used < c.Limit {
			if k == 0 {
				return i
			}
			k--
		}
	}
	return Wait // not reached: the field is one goroutine's
}
