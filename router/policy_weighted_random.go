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
	n := len(f.Cands)
	if n == 0 {
		return Choice{Index: Wait}
	}
	chance := chancesOf(f)
	total := chance.upTo[n-1]
	drawn := func(i int) Choice {
		return Choice{Index: i, Top: [3]Scored{{i, f.Cands[i].weight() / total}}, Tops: 1, Note: "drawn at random, by weight and slots"}
	}
	// To draw again when a full one came up is to draw among the free ones.
	for range triesAtRandom(n) {
		i, _ := slices.BinarySearch(chance.upTo, f.Rand.Float64()*total)
		if i = min(i, n-1); f.Cands[i].Free() > 0 {
			return drawn(i)
		}
	}
	free := 0.0
	for i := range f.Cands {
		if c := &f.Cands[i]; c.Used < c.Limit {
			free += c.weight()
		}
	}
	last, x := Wait, f.Rand.Float64()*free
	for i := range f.Cands {
		if c := &f.Cands[i]; c.Used < c.Limit {
			last = i
			if x -= c.weight(); x < 0 {
				break
			}
		}
	}
	if last == Wait {
		return Choice{Index: Wait, Note: noneFree}
	}
	return drawn(last)
}
