package router

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
)

// What a pick costs: at most 5 µs of 100 devices and 20 µs of 5,000, without an
// allocation. The field is the
// decider's own, so that it lies in memory as it does at work. Of light load, most
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
	v, rng, now := newView(testConfig()), rand.New(rand.NewPCG(1, 2)), time.Unix(1000, 0)
	v.late = p.Late()
	fleet := Fleet{Rates: map[device.RateKey]device.Rate{}}
	for i := range n {
		d := dev(fmt.Sprintf("device-%04d", i), 1+i%4, "m")
		d.CPU, d.Mem, d.Queue = rng.Float64(), rng.Float64(), i%3
		fleet.Devices = append(fleet.Devices, d)
		fleet.Rates[device.RateKey{Device: d.ID, Model: "m"}] = device.Rate{ServiceMS: float64(40 * (1 + rng.IntN(6)))}
	}
	v.update(fleet, now)
	f := &v.look(&class{model: "m"}, now, rng).Field
	require.Len(b, f.Cands, n)
	for i := range f.Cands {
		c := &f.Cands[i]
		c.Last = uint64(rng.IntN(1000)) //nolint:gosec // small
		switch {
		case !deep:
			c.Used = rng.IntN(4) / 3
		case rng.IntN(25) > 0:
			c.Used = c.Limit
		default:
			c.Used = c.Limit - 1
		}
	}
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
