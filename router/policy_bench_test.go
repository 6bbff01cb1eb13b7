package router

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// What a pick costs: at most 5 µs of 100 devices and 20 µs of 5,000, without an
// allocation. Loads lie apart in memory, as the decider's do. Of light load, most
// slots are free; of deep load, all are taken and few credits are left.
func BenchmarkPick(b *testing.B) {
	for _, name := range PolicyNames() {
		for _, n := range []int{100, 5000} {
			for _, deep := range []bool{false, true} {
				at := "light"
				if deep {
					at = "deep"
				}
				b.Run(fmt.Sprintf("%s/%d/%s", name, n, at), func(b *testing.B) { benchmarkPick(b, name, n, deep) })
			}
		}
	}
}

func benchmarkPick(b *testing.B, name string, n int, deep bool) {
	p := policyOf(b, name)
	cs := fleetOf(n)
	rng := rand.New(rand.NewPCG(1, 2))
	pools := make([]*state, n)
	for k, i := range rng.Perm(n) { // not in the order of the field
		pools[i] = &state{each: &pool{}, batch: &pool{}}
		l := &pools[i].each.Load
		*l = *cs[i].Load
		if p.Late() {
			l.Limit = l.Slots + 2
		}
		if deep {
			l.Used = l.Limit - k%50/48
		} else {
			l.Used = k % 4 / 3
		}
		l.Last = uint64(rng.IntN(1000)) //nolint:gosec // small
		cs[i].Load = l
		cs[i].CPU, cs[i].Mem, cs[i].Queue = rng.Float64(), rng.Float64(), k%3
	}
	f := fieldOf(1, cs...)
	f.Picks = 1000
	r := &Request{ID: "t"}
	sessions := make([]string, 64)
	for i := range sessions {
		sessions[i] = fmt.Sprint("session-", i)
	}
	p.Pick(r, f) // what is worked out once for each reading of the fleet
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		r.Session = sessions[i%len(sessions)]
		r.Ahead = i % 32
		i++
		if c := p.Pick(r, f); c.Index != Wait {
			f.give(c.Index)
			f.Cands[c.Index].Used--
		}
	}
}
