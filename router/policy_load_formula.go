package router

import (
	"cmp"
	"fmt"
	"time"

	"github.com/batchyard/batchyard/device"
)

// loadFormula takes the device with the least weighted sum of what its last
// heartbeat said: cpu, mem and io as shares of 1; latency as l/(l + 100 ms) and
// queue as q/(q + slots), so that they are shares too. The weights are the
// operator's or a preset's and are not made to sum to 1. Among equals the one
// that was picked longest ago goes first.
//
// The published formulas are kept as they are, with their weakness: a heartbeat
// is up to 5 s old, and until the next one the device that looked best gets every
// task (it herds). A device that does not tell its queue counts with the mean of
// those that do.
type loadFormula struct {
	cpu, mem, io, latency, queue float64
}

const (
	defaultPreset = "balanced"
	halfLatency   = 100 * time.Millisecond // counts as half of the worst
)

func newLoadFormula(cfg Config) (Policy, error) {
	set, err := device.NewPolicySetting("load_formula", cfg.Binding, cfg.Weights)
	if err != nil {
		return nil, fmt.Errorf("reading router.load_weights: %w", err)
	}
	w := set.Weights
	if len(w) == 0 {
		w = device.LoadPresets[cmp.Or(set.Preset, defaultPreset)]
	}
	return &loadFormula{cpu: w["cpu"], mem: w["mem"], io: w["io"], latency: w["latency"], queue: w["queue"]}, nil
}

func (*loadFormula) Name() string { return "load_formula" }
func (*loadFormula) Late() bool   { return false }
func (*loadFormula) Unit() string { return "load" }

// figures is the load of each candidate as its heartbeat says.
type figures struct{ load []float64 }

func (p *loadFormula) figures(f *Field) *figures {
	if m, ok := f.Memo.(*figures); ok {
		return m
	}
	m := &figures{load: make([]float64, len(f.Cands))}
	queue := func(c *Candidate) float64 { return float64(c.Queue) / float64(c.Queue+max(1, c.Slots)) }
	mean, known := 0.0, 0
	for i := range f.Cands {
		if c := &f.Cands[i]; c.Queue >= 0 {
			mean += queue(c)
			known++
		}
	}
	mean /= float64(max(1, known))
	for i := range f.Cands {
		c := &f.Cands[i]
		q := mean
		if c.Queue >= 0 {
			q = queue(c)
		}
		l := float64(c.Latency) / float64(c.Latency+halfLatency)
		m.load[i] = p.cpu*c.CPU + p.mem*c.Mem + p.io*c.IO + p.latency*l + p.queue*q
	}
	f.Memo = m
	return m
}

func (p *loadFormula) Pick(_ *Request, f *Field) Choice {
	choice := Choice{Index: Wait}
	for i, load := range p.figures(f).load {
		if choice.near(load) && f.Cands[i].Free() > 0 {
			choice.rank(f, i, load)
		}
	}
	return choice.best("least load by the formula, as of its last heartbeat")
}
