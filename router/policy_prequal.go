package router

import (
	"cmp"
	"math"
)

// prequal is the hot-cold rule of Prequal (Wydrowski, Kleinberg, Rumble and
// Archer, "Load is not what you should balance", NSDI 2024). Of a pool of up to
// 16 probed devices, those with more requests in flight than the 0.84 quantile
// are hot; the cold one with the least estimated latency is taken, or if none is
// cold, the one with the fewest in flight. Each pick probes three more at random
// and lets one go, in turn the oldest and the worst.
//
// What differs here, all in its favour: a probe costs nothing and is never
// stale, because in flight are the credits that all routers know exactly, so that
// its bounds on age and reuse are not needed (the pool is forgotten when the fleet
// is read anew, each second, which is the published age). Latency is not the
// median of late answers at this number in flight but what that would be: the
// learned service time, times the tasks a slot when all slots are taken, plus the
// network. Requests in flight are counted for each slot: published for servers of
// one size, plain counts would call the large ones hot (p99 a fifth higher on
// mixed12).
type prequal struct{}

const (
	probesMost    = 16   // in the pool
	probesPerPick = 3    // taken in
	hotQuantile   = 0.84 // 2 to the −1/4
)

func (*prequal) Name() string { return "prequal" }
func (*prequal) Late() bool   { return false }
func (*prequal) Unit() string { return "ms" }

// probes is the pool, oldest first.
type probes struct {
	at    [probesMost]int32
	n     int
	worst bool // goes next, not the oldest
}

func probesOf(f *Field) *probes {
	p, ok := f.Memo.(*probes)
	if !ok {
		p = &probes{}
		f.Memo = p
	}
	return p
}

// take puts a device last; one that is in the pool is probed anew.
func (p *probes) take(i int32) {
	for k := range p.n {
		if p.at[k] == i {
			p.drop(k)
			break
		}
	}
	if p.n == len(p.at) {
		p.drop(0)
	}
	p.at[p.n] = i
	p.n++
}

func (p *probes) drop(k int) {
	copy(p.at[k:p.n-1], p.at[k+1:p.n])
	p.n--
}

// hot is the number of tasks in flight, for each slot, above which a device of the
// pool is hot.
func (p *probes) hot(f *Field) float64 {
	var sorted [probesMost]float64
	for k := range p.n {
		used, at := f.Cands[p.at[k]].inFlight(), k
		for ; at > 0 && sorted[at-1] > used; at-- {
			sorted[at] = sorted[at-1]
		}
		sorted[at] = used
	}
	return sorted[int(math.Ceil(hotQuantile*float64(p.n)))-1]
}

func (*prequal) Pick(_ *Request, f *Field) Choice {
	if len(f.Cands) == 0 {
		return Choice{Index: Wait}
	}
	pool := probesOf(f)
	for range min(probesPerPick, len(f.Cands)) {
		pool.take(int32(f.Rand.IntN(len(f.Cands)))) //nolint:gosec // devices.max_devices bounds it
	}
	hot := pool.hot(f)
	choice := Choice{Index: Wait, Note: "least latency of those that are not hot"}
	cool := Wait // with the fewest in flight
	for _, i := range pool.at[:pool.n] {
		c := &f.Cands[i]
		if c.Used >= c.Limit {
			continue
		}
		if c.inFlight() <= hot {
			choice.note(int(i), c.latency())
		}
		if cool == Wait || c.inFlight() < f.Cands[cool].inFlight() {
			cool = int(i)
		}
	}
	switch {
	case choice.Tops > 0:
		choice.Index = choice.Top[0].Index
	case cool != Wait:
		choice.Index, choice.Note = cool, "all that have a credit are hot: fewest in flight"
		choice.note(cool, f.Cands[cool].latency())
	default:
		if choice.Index = anyFree(f); choice.Index == Wait {
			choice.Note = noneFree
			return choice
		}
		choice.Note = "none of the probed devices has a credit: drawn at random"
		choice.note(choice.Index, f.Cands[choice.Index].latency())
	}
	pool.forget(f, hot)
	return choice
}

// forget lets one probe go: the oldest, and the next time the worst, which is the
// hottest, or without a hot one the slowest.
func (p *probes) forget(f *Field, hot float64) {
	if p.n <= 2 { // too few to choose among
		return
	}
	worst := 0
	if p.worst {
		key := func(k int) (float64, float64) {
			c := &f.Cands[p.at[k]]
			if c.inFlight() > hot {
				return c.inFlight(), 0
			}
			return -1, c.latency()
		}
		for k := 1; k < p.n; k++ {
			a, b := key(k)
			c, d := key(worst)
			if cmp.Or(cmp.Compare(a, c), cmp.Compare(b, d)) > 0 {
				worst = k
			}
		}
	}
	p.worst = !p.worst
	p.drop(worst)
}

// latency is how long a task that comes now would take, in ms.
func (c *Candidate) latency() float64 {
	s := ms(cmp.Or(c.Service, unknownService))
	return s*max(1, float64(c.Used+1)/float64(max(1, c.Slots))) + ms(c.Latency)
}

// inFlight is the tasks that it has for each slot.
func (c *Candidate) inFlight() float64 { return float64(c.Used) / float64(max(1, c.Slots)) }
