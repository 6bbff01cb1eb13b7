package router

import (
	"fmt"
	"time"
)

// roundRobin takes the device with a free credit that was picked longest ago.
// It knows nothing of speed: the baseline to be measured against.
type roundRobin struct{}

func (*roundRobin) Name() string { return "round_robin" }

func (*roundRobin) Pick(_ time.Time, cs []Candidate) Choice {
	best := Wait
	for i := range cs {
		if cs[i].Free() == 0 {
			continue
		}
		if best == Wait || cs[i].LastPick < cs[best].LastPick {
			best = i
		}
	}
	if best == Wait {
		return Choice{Index: Wait, For: Wait}
	}
	return Choice{Index: best, Why: fmt.Sprintf("its turn among %d", len(cs))}
}
