package policy

import (
	"cmp"
	"fmt"
	"time"

	"github.com/batchyard/batchyard/device"
)

// loadFormula takes the device with the lowest weighted sum of the figures in its last heartbeat: cpu,
// mem and io as shares of 1; latency as l/(l + 100 ms) and queue as q/(q + slots), so that they are
// shares too. The weights are the operator's or a preset's, and need not sum to 1. Among equals, the
// device picked longest ago goes first.
//
// The published formulas are kept as they are, including their weakness: a heartbeat is up to 5 s old,
// and until the next one the device that looked best gets every task (it herds). A device that does
// not report its queue counts with the mean of those that do.
type loadFormula struct {
	cpu, mem, io, latency, queue float64
}

const (
	defaultPreset = "balanced"
	halfLatency   = 100 * time.Millisecond // counts as half of the worst
)

func newLoadFormula(cfg Config) (Policy, error) {
	set, err := device.NewPolicySetting("load_formula", "", cfg.Weights)
	if err != nil {
		return nil, fmt.Errorf("reading router.load_weights: %w", err)
	}
	w := set.Weights
	if len(w) == 0 {
		w = device.LoadPresets[cmp.Or(set.Preset, defaultPreset)]
	}
	return &loadFormula{cpu: w["cpu"], mem: w["mem"], io: w["io"], latency: w["latency"], queue: w["queue"]}, nil
}

func (*loadFormula) Name() string    { return "load_formula" }
func (*loadFormula) BindsLate() bool { return false }
func (*loadFormula) Unit() string    { return "load" }

// formulaLoads is the load of each candidate according to its heartbeat.
type formulaLoads struct{ load []float64 }

func (p *loadFormula) loads(s *Snapshot) *formulaLoads {
	if m, ok := s.Cache.(*formulaLoads); ok {
		return m
	}
	m := &formulaLoads{load: make([]float64, len(s.Candidates))}
	queue := func(c *Candidate) float64 { return float64(c.Queue) / float64(c.Queue+max(1, c.Slots)) }
	mean, known := 0.0, 0
	for i := range s.Candidates {
		if c := &s.Candidates[i]; c.Queue >= 0 {
			mean += queue(c)
			known++
		}
	}
	mean /= float64(max(1, known))
	for i := range s.Candidates {
		c := &s.Candidates[i]
		q := mean
		if c.Queue >= 0 {
			q = queue(c)
		}
		l := float64(c.Latency) / float64(c.Latency+halfLatency)
		m.load[i] = p.cpu*c.CPU + p.mem*c.Mem + p.io*c.IO + p.latency*l + p.queue*q
	}
	s.Cache = m
	return m
}

func (p *loadFormula) Pick(_ *Request, s *Snapshot) Choice {
	choice := Choice{Index: Wait}
	for i, load := range p.loads(s).load {
		if choice.mayRank(load) && s.Candidates[i].Free() > 0 {
			choice.considerInTurn(s, i, load)
		}
	}
	return choice.best("it had the lowest load by the formula, as of its last heartbeat")
}
