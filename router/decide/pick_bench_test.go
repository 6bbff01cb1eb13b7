package decide

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/router/policy"
)

// BenchmarkPick measures one pick: at most 5 µs among 100 devices and 20 µs among 5,000, without an
// allocation. The snapshot is the decider's own, so that it has the same memory layout as in production.
// At light load most slots are free; at deep load all are taken and few credits are left.
func BenchmarkPick(b *testing.B) {
	for _, name := range policy.Names() {
		for _, n := range []int{100, 5000} {
			for at, use := range map[string]func(*policy.Candidate, *rand.Rand){"light": lightLoad, "deep": deepLoad} {
				b.Run(fmt.Sprintf("%s/%d/%s", name, n, at), func(b *testing.B) {
					benchmarkPick(b, policyNamed(b, name), n, use)
				})
			}
		}
	}
}

func lightLoad(c *policy.Candidate, rng *rand.Rand) { c.Used = rng.IntN(4) / 3 }

func deepLoad(c *policy.Candidate, rng *rand.Rand) {
	c.Used = c.Limit
	if rng.IntN(25) == 0 {
		c.Used--
	}
}

func benchmarkPick(b *testing.B, p policy.Policy, n int, use func(*policy.Candidate, *rand.Rand)) {
	v, rng, now := newView(testConfig()), rand.New(rand.NewPCG(1, 2)), time.Unix(1000, 0)
	v.late = p.BindsLate()
	fleet := Fleet{Rates: map[device.RateKey]device.Rate{}}
	for i := range n {
		d := dev(fmt.Sprintf("device-%04d", i), 1+i%4, "m")
		d.CPU, d.Mem, d.Queue = rng.Float64(), rng.Float64(), i%3
		fleet.Devices = append(fleet.Devices, d)
		fleet.Rates[device.RateKey{Device: d.ID, Model: "m"}] = device.Rate{ServiceMS: float64(40 * (1 + rng.IntN(6)))}
	}
	v.update(fleet, now)
	snap := &v.snapshotOf(&demand{Requirement: device.Requirement{Model: "m"}}, now, rng).Snapshot
	require.Len(b, snap.Candidates, n)
	for i := range snap.Candidates {
		c := &snap.Candidates[i]
		c.Last = uint64(rng.IntN(1000)) //nolint:gosec // small
		use(c, rng)
	}
	r := &policy.Request{ID: "t"}
	sessions := make([]string, 64)
	for i := range sessions {
		sessions[i] = fmt.Sprint("session-", i)
	}
	p.Pick(r, snap) // fills the cache of the generation
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		r.Session = sessions[i%len(sessions)]
		r.Ahead = i % 32
		i++
		if c := p.Pick(r, snap); c.Index != policy.Wait {
			snap.Picks++
			snap.Candidates[c.Index].Last = snap.Picks
		}
	}
}
