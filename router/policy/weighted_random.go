package policy

import "slices"

// weightedRandom draws a device with a probability in proportion to its weight, which is the operator's
// times its slots. It keeps no state and is right on average; by chance, some devices get several
// tasks in a row.
type weightedRandom struct{}

func (*weightedRandom) Name() string    { return "weighted_random" }
func (*weightedRandom) BindsLate() bool { return false }

// Unit of the score, which is the probability of the device that was drawn.
func (*weightedRandom) Unit() string { return "share" }

// cumulativeWeights holds the sum of the weights up to and including each candidate.
type cumulativeWeights struct{ upTo []float64 }

func cumulative(s *Snapshot) *cumulativeWeights {
	if c, ok := s.Cache.(*cumulativeWeights); ok {
		return c
	}
	c := &cumulativeWeights{upTo: make([]float64, len(s.Candidates))}
	sum := 0.0
	for i := range s.Candidates {
		sum += s.Candidates[i].weight()
		c.upTo[i] = sum
	}
	s.Cache = c
	return c
}

func (*weightedRandom) Pick(_ *Request, s *Snapshot) Choice {
	i := drawByWeight(s, Wait)
	if i == Wait {
		return Choice{Index: Wait, Why: noneFree}
	}
	upTo := cumulative(s).upTo
	share := s.Candidates[i].weight() / upTo[len(upTo)-1]
	return Choice{Index: i, Top: [3]Scored{{i, share}}, Tops: 1, Why: "it was drawn at random, by weight and slots"}
}

// drawByWeight draws a candidate with a free credit, in proportion to its weight and slots, but
// never the one at index except; Wait if no other device has one.
func drawByWeight(s *Snapshot, except int) int {
	n := len(s.Candidates)
	if n == 0 {
		return Wait
	}
	upTo := cumulative(s).upTo
	// Drawing again after hitting a full device is the same as drawing among the free ones.
	for range maxDraws(n) {
		i, _ := slices.BinarySearch(upTo, s.Rand.Float64()*upTo[n-1])
		if i = min(i, n-1); i != except && s.Candidates[i].Free() > 0 {
			return i
		}
	}
	free := 0.0
	for i := range s.Candidates {
		if c := &s.Candidates[i]; c.Used < c.Limit && i != except {
			free += c.weight()
		}
	}
	last, x := Wait, s.Rand.Float64()*free
	for i := range s.Candidates {
		if c := &s.Candidates[i]; c.Used < c.Limit && i != except {
			last = i
			if x -= c.weight(); x < 0 {
				break
			}
		}
	}
	return last
}
