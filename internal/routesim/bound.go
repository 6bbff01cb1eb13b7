package routesim

import (
	"math"
	"slices"
)

// LowerBound is the mean response in seconds below which nobody gets: one queue
// for all, every task on the fastest free slot, moved without cost to a faster
// one as soon as that is free, no hop, everything known. The number of tasks is
// then a birth–death chain: with n of them in the system the n fastest slots
// work,
//
//	p(n) = p(n-1) × rate ÷ (µ(1) + … + µ(min(n, slots)))
//
// and the mean response is E[n] ÷ rate (Little). It is exact for exponential work
// and Poisson arrivals; for other work or arrivals it is the same formula, a
// yardstick and no bound. It is +Inf where the fleet cannot keep up.
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
