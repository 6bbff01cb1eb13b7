package router

// roundRobin takes the device that was picked longest ago. It knows nothing of
// speed: the baseline to be measured against.
type roundRobin struct{}

func (*roundRobin) Name() string { return "round_robin" }
func (*roundRobin) Late() bool   { return false }
func (*roundRobin) Unit() string { return "" }

func (*roundRobin) Pick(_ *Request, f *Field) Choice {
	best := Wait
	for i := range f.Cands {
		c := &f.Cands[i]
		if c.Free() > 0 && (best == Wait || c.Last < f.Cands[best].Last) {
			best = i
		}
	}
	return Choice{Index: best, Note: "its turn"}
}
