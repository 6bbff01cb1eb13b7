package policy

// roundRobin takes the device picked longest ago. It ignores speed and slots: the baseline that
// other policies are measured against.
type roundRobin struct{}

func (*roundRobin) Name() string    { return "round_robin" }
func (*roundRobin) BindsLate() bool { return false }
func (*roundRobin) Unit() string    { return "" }

func (*roundRobin) Pick(_ *Request, s *Snapshot) Choice {
	best := Wait
	for i := range s.Candidates {
		c := &s.Candidates[i]
		if c.Free() > 0 && (best == Wait || c.Last < s.Candidates[best].Last) {
			best = i
		}
	}
	return Choice{Index: best, Why: "it is its turn"}
}
