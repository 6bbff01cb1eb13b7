package router

import "slices"

// weightedRandom draws a device, each with a chance in proportion to its weight,
// which is the operator's times its slots. It keeps no state and needs none to
// be right on average; by chance some get several in a row.
type weightedRandom struct{}

func (*weightedRandom) Name() string { return "weighted_random" }
func (*weightedRandom) Late() bool   { return false }

// Unit of the score, which is the chance that the one drawn had.
func (*weightedRandom) Unit() string { return "share" }

// chances is the sum of the weights up to each candidate.
type chances struct{ upTo []float64 }

func chancesOf(f *Field) *chances {
	if c, ok := f.Memo.(*chances); ok {
		return c
	}
	c := &chances{upTo: make([]float64, len(f.Cands))}
	sum := 0.0
	for i := range f.Cands {
		sum += f.Cands[i].weight()
		c.upTo[i] = sum
	}
	f.Memo = c
	return c
}

func (*weightedRandom) Pick(_ *Request, f *Field) Choice {
	i := drawByWeight(f, Wait)
	if i == Wait {
		return Choice{Index: Wait, Note: noneFree}
	}
	c := chancesOf(f)
	share := f.Cands[i].weight() / c.upTo[len(c.upTo)-1]
	return Choice{Index: i, Top: [3]Scored{{i, share}}, Tops: 1, Note: "drawn at random, by weight and slots"}
}

// drawByWeight draws a candidate with a free credit, in proportion to its weight
// and slots, but not the one called other; Wait when there is none.
func drawByWeight(f *Field, other int) int {
	n := len(f.Cands)
	if n == 0 {
		return Wait
	}
	upTo := chancesOf(f).upTo
	// To draw again when a full one came up is to draw among the free ones.
	for range triesAtRandom(n) {
		i, _ := slices.BinarySearch(upTo, f.Rand.Float64()*upTo[n-1])
		if i = min(i, n-1); i != other && f.Cands[i].Free() > 0 {
			return i
		}
	}
	free := 0.0
	for i := range f.Cands {
		if c := &f.Cands[i]; c.Used < c.Limit && i != other {
			free += c.weight()
		}
	}
	last, x := Wait, f.Rand.Float64()*free
	for i := range f.Cands {
		if c := &f.Cands[i]; c.Used < c.Limit && i != other {
			last = i
			if x -= c.weight(); x < 0 {
				break
			}
		}
	}
	return last
}
