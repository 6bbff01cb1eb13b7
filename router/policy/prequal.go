package policy

import (
	"cmp"
	"math"
)

// prequal is the hot-cold rule of Prequal (Wydrowski, Kleinberg, Rumble and Archer, "Load is not what
// you should balance", NSDI 2024). Of a pool of up to 16 probed devices, those with more requests in
// flight than the 0.84 quantile are hot. It takes the cold device with the lowest estimated latency, or,
// if none is cold, the one with the fewest requests in flight. Each pick adds three random probes to the
// pool and removes one: in turn the oldest and the worst.
//
// The differences from the paper, all in its favour:
//   - A probe costs nothing and is never stale, because the requests in flight are credits, which all
//     routers know exactly. So the paper's bounds on age and reuse are not needed. (The pool is
//     dropped when the fleet is read again, every second, which is the published age.)
//   - Latency is not the median of recent answers at this number in flight, but the learned service
//     time, times the tasks per slot once all slots are taken, plus the network time.
//   - Requests in flight are counted per slot. The paper assumes servers of one size; plain counts
//     would call the large devices hot (p99 was a fifth higher on mixed12).
type prequal struct{}

const (
	maxProbes     = 16   // in the pool
	probesPerPick = 3    // added
	hotQuantile   = 0.84 // 2 to the −1/4
)

func (*prequal) Name() string    { return "prequal" }
func (*prequal) BindsLate() bool { return false }
func (*prequal) Unit() string    { return "ms" }

// probes is the pool, oldest first.
type probes struct {
	at        [maxProbes]int32
	n         int
	dropWorst bool // the next one to remove is the worst, not the oldest
}

func probesOf(s *Snapshot) *probes {
	p, ok := s.Cache.(*probes)
	if !ok {
		p = &probes{}
		s.Cache = p
	}
	return p
}

// add puts a device last; a device that is in the pool already moves to the end.
func (p *probes) add(i int32) {
	for k := range p.n {
		if p.at[k] == i {
			p.remove(k)
			break
		}
	}
	if p.n == len(p.at) {
		p.remove(0)
	}
	p.at[p.n] = i
	p.n++
}

func (p *probes) remove(k int) {
	copy(p.at[k:p.n-1], p.at[k+1:p.n])
	p.n--
}

// hotAbove is the number of tasks in flight per slot above which a device of the pool is hot.
func (p *probes) hotAbove(s *Snapshot) float64 {
	var sorted [maxProbes]float64
	for k := range p.n {
		used, at := s.Candidates[p.at[k]].perSlot(), k
		for ; at > 0 && sorted[at-1] > used; at-- {
			sorted[at] = sorted[at-1]
		}
		sorted[at] = used
	}
	return sorted[int(math.Ceil(hotQuantile*float64(p.n)))-1]
}

func (*prequal) Pick(_ *Request, s *Snapshot) Choice {
	if len(s.Candidates) == 0 {
		return Choice{Index: Wait}
	}
	pool := probesOf(s)
	for range min(probesPerPick, len(s.Candidates)) {
		pool.add(int32(s.Rand.IntN(len(s.Candidates)))) //nolint:gosec // devices.max_devices bounds it
	}
	hot := pool.hotAbove(s)
	choice := Choice{Index: Wait, Why: "it has the lowest latency of the probed devices that are not hot"}
	coolest := Wait // with the fewest in flight
	for _, i := range pool.at[:pool.n] {
		c := &s.Candidates[i]
		if c.Used >= c.Limit {
			continue
		}
		if c.perSlot() <= hot {
			choice.consider(int(i), c.estimate())
		}
		if coolest == Wait || c.perSlot() < s.Candidates[coolest].perSlot() {
			coolest = int(i)
		}
	}
	switch {
	case choice.Tops > 0:
		choice.Index = choice.Top[0].Index
	case coolest != Wait:
		choice.Index, choice.Why = coolest, "all probed devices with a free credit are hot, and it has the fewest tasks in flight"
		choice.consider(coolest, s.Candidates[coolest].estimate())
	default:
		if choice.Index = drawFree(s); choice.Index == Wait {
			choice.Why = noneFree
			return choice
		}
		choice.Why = "no probed device has a free credit, and it was drawn at random"
		choice.consider(choice.Index, s.Candidates[choice.Index].estimate())
	}
	pool.evict(s, hot)
	return choice
}

// evict removes one probe: the oldest, and the next time the worst, which is the hottest, or the
// slowest if none is hot.
func (p *probes) evict(s *Snapshot, hot float64) {
	if p.n <= 2 { // too few to choose from
		return
	}
	victim := 0
	if p.dropWorst {
		key := func(k int) (float64, float64) {
			c := &s.Candidates[p.at[k]]
			if c.perSlot() > hot {
				return c.perSlot(), 0
			}
			return -1, c.estimate()
		}
		for k := 1; k < p.n; k++ {
			a, b := key(k)
			c, d := key(victim)
			if cmp.Or(cmp.Compare(a, c), cmp.Compare(b, d)) > 0 {
				victim = k
			}
		}
	}
	p.dropWorst = !p.dropWorst
	p.remove(victim)
}

// estimate is how long a task that arrives now would take, in ms.
func (c *Candidate) estimate() float64 {
	service := millis(cmp.Or(c.Service, UnknownService))
	return service*max(1, float64(c.Used+1)/float64(max(1, c.Slots))) + millis(c.Latency)
}

// perSlot is the tasks in flight per slot.
func (c *Candidate) perSlot() float64 { return float64(c.Used) / float64(max(1, c.Slots)) }
