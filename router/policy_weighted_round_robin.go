package router

import "math"

// weightedRoundRobin gives each device turns in proportion to its weight, which
// is the operator's times its slots; who sets the weights to the true speeds gets
// the best that a policy without feedback can do. It is stride scheduling
// (Waldspurger and Weihl 1995): a device's next turn is kept with it as a
// position on a line (Load.Note), the first on the line goes next and moves on by
// 1/weight, so that turns are spread evenly and not taken in bursts.
//
// Devices that are new, or were away or full for more than a stride, start at a
// random place within a stride of the others: nobody catches up on what it missed,
// and several routers do not march in step.
type weightedRoundRobin struct{}

func (*weightedRoundRobin) Name() string { return "weighted_round_robin" }
func (*weightedRoundRobin) Late() bool   { return false }
func (*weightedRoundRobin) Unit() string { return "" }

// turns is the line, for one reading of the fleet.
type turns struct {
	clock  float64 // where the last turn was
	stride []float64
	loads  []*Load
}

func turnsOf(f *Field) *turns {
	if t, ok := f.Memo.(*turns); ok {
		return t
	}
	t := &turns{stride: make([]float64, len(f.Cands)), loads: make([]*Load, len(f.Cands))}
	f.Memo = t
	for i := range f.Cands {
		c := &f.Cands[i]
		t.stride[i], t.loads[i] = 1/c.weight(), c.Load
		if c.Note > 0 {
			t.clock = max(t.clock, c.Note-t.stride[i])
		}
	}
	for i := range f.Cands {
		if c := &f.Cands[i]; c.Note <= 0 || c.Note+t.stride[i] < t.clock {
			c.Note = t.clock + (1-f.Rand.Float64())*t.stride[i]
		}
	}
	return t
}

func (*weightedRoundRobin) Pick(_ *Request, f *Field) Choice {
	t := turnsOf(f)
	choice := Choice{Index: Wait}
	third := math.Inf(1) // best so far
	for i, d := range t.loads {
		at := d.Note
		if at < t.clock {
			at = t.clock
		}
		if at > third || d.Used >= d.Limit {
			continue
		}
		choice.rank(f, i, at)
		if choice.Tops == len(choice.Top) {
			third = choice.Top[len(choice.Top)-1].Score
		}
	}
	choice = choice.best("its turn, by weight and slots")
	if i := choice.Index; i != Wait {
		t.clock = choice.Top[0].Score
		f.Cands[i].Note = t.clock + t.stride[i]
	}
	return choice
}
