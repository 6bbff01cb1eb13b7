package policy

import "math"

// weightedRoundRobin gives each device turns in proportion to its weight, which is the operator's
// times its slots. With weights set to the true speeds, it is the best a policy without feedback can
// do. It is stride scheduling (Waldspurger and Weihl 1995): a device's next turn is a position on a
// line, kept in Load.PolicyState. The first device on the line goes next and moves on by 1/weight, so
// turns are evenly spread and do not come in bursts.
//
// A device that is new, or was away or full for more than a stride, starts at a random place within a
// stride of the others. So no device catches up on turns it missed, and several routers do not move in
// step.
type weightedRoundRobin struct{}

func (*weightedRoundRobin) Name() string    { return "weighted_round_robin" }
func (*weightedRoundRobin) BindsLate() bool { return false }
func (*weightedRoundRobin) Unit() string    { return "" }

// turns is the line, for one generation.
type turns struct {
	clock  float64 // position of the last turn
	stride []float64
	loads  []*Load
}

func turnsOf(s *Snapshot) *turns {
	if t, ok := s.Cache.(*turns); ok {
		return t
	}
	t := &turns{stride: make([]float64, len(s.Candidates)), loads: make([]*Load, len(s.Candidates))}
	s.Cache = t
	for i := range s.Candidates {
		c := &s.Candidates[i]
		t.stride[i], t.loads[i] = 1/c.weight(), c.Load
		if c.PolicyState > 0 {
			t.clock = max(t.clock, c.PolicyState-t.stride[i])
		}
	}
	for i := range s.Candidates {
		if c := &s.Candidates[i]; c.PolicyState <= 0 || c.PolicyState+t.stride[i] < t.clock {
			c.PolicyState = t.clock + (1-s.Rand.Float64())*t.stride[i]
		}
	}
	return t
}

func (*weightedRoundRobin) Pick(_ *Request, s *Snapshot) Choice {
	t := turnsOf(s)
	choice := Choice{Index: Wait}
	third := math.Inf(1) // best so far
	for i, d := range t.loads {
		at := d.PolicyState
		if at < t.clock {
			at = t.clock
		}
		if at > third || d.Used >= d.Limit {
			continue
		}
		choice.considerInTurn(s, i, at)
		if choice.Tops == len(choice.Top) {
			third = choice.Top[len(choice.Top)-1].Score
		}
	}
	choice = choice.best("it is its turn, by weight and slots")
	if i := choice.Index; i != Wait {
		t.clock = choice.Top[0].Score
		s.Candidates[i].PolicyState = t.clock + t.stride[i]
	}
	return choice
}
