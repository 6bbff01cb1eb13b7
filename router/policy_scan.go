package router

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

// triesAtRandom bounds the draws that hit a full device, before all are looked at.
const triesAtRandom = 8

// anyFree draws a candidate with a free credit, each with the same chance, but
// not the one called other; Wait when there is none.
func anyFree(f *Field, other int) int {
	n := len(f.Cands)
	for range triesAtRandom {
		if n == 0 {
			return Wait
		}
		if i := f.Rand.IntN(n); i != other && f.Cands[i].Free() > 0 {
			return i
		}
	}
	free := 0
	for i := range f.Cands {
		if c := &f.Cands[i]; c.Used < c.Limit && i != other {
			free++
		}
	}
	if free == 0 {
		return Wait
	}
	k := f.Rand.IntN(free)
	for i := range f.Cands {
		if c := &f.Cands[i]; c.Used < c.Limit && i != other {
			if k == 0 {
				return i
			}
			k--
		}
	}
	return Wait // not reached: the field is one goroutine's
}
