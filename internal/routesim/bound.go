package routesim

import (
	"math"
	"slices"
)

// LowerBound returns the lowest mean response, in seconds, that any router can
// achieve. It assumes a single queue in which every task runs on the fastest free
// slot, moves to a faster slot at no cost as soon as one is free, and has no
// dispatch latency. The number of tasks is then a birth–death chain. With n tasks
// in the system, the n fastest slots are busy,
//
//	p(n) = p(n-1) × rate ÷ (µ(1) + … + µ(min(n, slots)))
//
// and the mean response is E[n] ÷ rate (Little's law). This is a bound for
// exponential work and Poisson arrivals. For others it is the same formula, useful
// as a yardstick only. It is +Inf if the fleet cannot keep up.
func LowerBound(f Fleet, rate float64) float64 {
	if rate <= 0 || rate >= f.Capacity() {
		return math.Inf(1)
	}
	var mus []float64
	for i := range f {
		for range f[i].Slots {
			mus = append(mus, 1/f[i].Service.Seconds())
		}
	}
	slices.SortFunc(mus, func(a, b float64) int {
		switch {
		case a > b:
			return -1
		case a < b:
			return 1
		}
		return 0
	})
	p, sum, held, mu := 1.0, 1.0, 0.0, 0.0
	for n, m := range mus {
		mu += m
		p *= rate / mu
		sum += p
		held += float64(n+1) * p
	}
	// From here on the chain is geometric: p × ρ^k with k more tasks than slots.
	rho, n := rate/mu, float64(len(mus))
	tail := p * rho / (1 - rho)
	sum += tail
	held += n*tail + p*rho/((1-rho)*(1-rho))
	return held / sum / rate
}
