package policy

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/device"
)

func policyOf(t require.TestingT, name string) Policy {
	p, err := New(name, Config{HashBy: "session"})
	require.NoError(t, err)
	return p
}

func snapshotOf(seed uint64, candidates ...Candidate) *Snapshot {
	return &Snapshot{Now: time.Unix(1000, 0), DispatchLatency: 2 * time.Millisecond, Routers: 1, Generation: 1, Candidates: candidates, Rand: rand.New(rand.NewPCG(seed, 1))}
}

// take does what the decider does when a pick gets its credit.
func (snap *Snapshot) take(i int) {
	snap.Picks++
	snap.Candidates[i].Used++
	snap.Candidates[i].Last = snap.Picks
}

// copied returns an independent copy with its own random numbers.
func (snap *Snapshot) copied(seed uint64) *Snapshot {
	g := *snap
	g.Rand, g.Cache = rand.New(rand.NewPCG(seed, 1)), nil
	g.Candidates = slices.Clone(snap.Candidates)
	for i := range g.Candidates {
		l := *snap.Candidates[i].Load
		g.Candidates[i].Load = &l
	}
	return &g
}

// readOnly returns what a policy must not change.
func (snap *Snapshot) readOnly() []Candidate {
	g := snap.copied(0)
	for i := range g.Candidates {
		g.Candidates[i].PolicyState = 0
	}
	return g.Candidates
}

func drawSnapshot(t *rapid.T) *Snapshot {
	cs := make([]Candidate, rapid.IntRange(0, 24).Draw(t, "devices"))
	full := rapid.Bool().Draw(t, "nearly full")
	for i := range cs {
		slots := rapid.IntRange(0, 8).Draw(t, "slots")
		limit := slots + rapid.IntRange(0, 4).Draw(t, "ahead")
		used := rapid.IntRange(0, limit+3).Draw(t, "used")
		if full && i > 0 {
			used = limit
		}
		cs[i] = Candidate{
			Device:  fmt.Sprintf("d%02d", i),
			Load:    &Load{Slots: slots, Limit: limit, Used: used, Last: rapid.Uint64Range(0, 100).Draw(t, "last"), PolicyState: rapid.Float64Range(0, 9).Draw(t, "policy state")},
			Service: time.Duration(rapid.IntRange(0, 5000).Draw(t, "service")) * time.Millisecond,
			CPU:     rapid.Float64Range(0, 1).Draw(t, "cpu"), Mem: rapid.Float64Range(0, 1).Draw(t, "mem"), IO: rapid.Float64Range(0, 1).Draw(t, "io"),
			Latency: time.Duration(rapid.IntRange(0, 50).Draw(t, "latency")) * time.Millisecond, Queue: rapid.IntRange(-1, 9).Draw(t, "queue"),
			Weight: rapid.Float64Range(0, 10).Draw(t, "weight"), ProbeDue: rapid.Bool().Draw(t, "probe due"),
		}
	}
	snap := snapshotOf(0, cs...)
	snap.Picks, snap.Routers = 100, rapid.IntRange(1, 4).Draw(t, "routers")
	return snap
}

func drawRequest(t *rapid.T) *Request {
	name := rapid.StringMatching(`[a-z]{0,3}`)
	return &Request{
		ID: "t" + name.Draw(t, "id"), Tenant: name.Draw(t, "tenant"), Session: name.Draw(t, "session"), Client: name.Draw(t, "client"),
		Priority: rapid.IntRange(0, 2).Draw(t, "priority"), Level: rapid.IntRange(0, 9).Draw(t, "level"), Ahead: rapid.IntRange(0, 50).Draw(t, "ahead"),
	}
}

// TestPoliciesConform checks what the decider relies on, whatever a policy prefers.
func TestPoliciesConform(t *testing.T) {
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			p := policyOf(t, name)
			require.Equal(t, name, p.Name())
			require.Contains(t, []string{"", "ms", "tasks", "share", "load"}, p.Unit())
			require.Equal(t, Wait, p.Pick(&Request{ID: "t"}, snapshotOf(1)).Index, "there is no candidate")
			require.False(t, p.Pick(&Request{ID: "t"}, snapshotOf(1)).Defer)
			rapid.Check(t, func(t *rapid.T) { conforms(t, name) })
		})
	}
}

func conforms(t *rapid.T, name string) {
	start, seed := drawSnapshot(t), rapid.Uint64().Draw(t, "seed")
	a, b := policyOf(t, name), policyOf(t, name)
	snap, g := start.copied(seed), start.copied(seed)
	for range rapid.IntRange(1, 20).Draw(t, "picks") {
		r := drawRequest(t)
		before := snap.readOnly()
		got := a.Pick(r, snap)
		require.Equal(t, before, snap.readOnly(), "a policy must not change the candidates")
		require.Equal(t, got, b.Pick(r, g), "the same question must get the same answer")
		checkChoice(t, snap, got)
		if got.Index == Wait {
			continue
		}
		snap.take(got.Index)
		g.take(got.Index)
		if rapid.Bool().Draw(t, "fleet read") { // the next snapshot is another slice
			snap, g = nextGeneration(snap), nextGeneration(g)
		}
	}
	// It keeps nothing of the old snapshot that would break it on another fleet.
	other := drawSnapshot(t)
	checkChoice(t, other, a.Pick(drawRequest(t), other))
	for i := range snap.Candidates {
		snap.Candidates[i].Used = snap.Candidates[i].Limit
	}
	got := a.Pick(drawRequest(t), snap)
	require.Equal(t, Wait, got.Index, "it must wait, no credit is free")
	require.False(t, got.Defer, "it must not defer when no credit is free")
}

// nextGeneration is the snapshot after the fleet was read again.
func nextGeneration(snap *Snapshot) *Snapshot {
	g := *snap
	g.Candidates, g.Cache = slices.Clone(snap.Candidates), nil
	g.Generation++
	for i := range snap.Candidates { // a policy that kept the old snapshot reads nonsense
		snap.Candidates[i] = Candidate{Load: &Load{Limit: 1 << 20}}
	}
	return &g
}

func checkChoice(t *rapid.T, snap *Snapshot, c Choice) {
	free := slices.ContainsFunc(snap.Candidates, func(c Candidate) bool { return c.Free() > 0 })
	switch {
	case c.Index == Wait:
		require.True(t, free || !c.Defer, "deferred, but no credit is free")
	default:
		require.GreaterOrEqual(t, c.Index, 0)
		require.Less(t, c.Index, len(snap.Candidates))
		require.Positive(t, snap.Candidates[c.Index].Free(), "picked a device without a free credit")
		require.False(t, c.Defer)
		require.NotEmpty(t, c.Why)
	}
	require.NotContains(t, c.Why, `"`)
	require.NotContains(t, c.Why, `\`)
	require.LessOrEqual(t, c.Tops, len(c.Top))
	seen := map[int]bool{}
	for i, s := range c.Top[:c.Tops] {
		require.GreaterOrEqual(t, s.Index, 0)
		require.Less(t, s.Index, len(snap.Candidates))
		require.False(t, seen[s.Index], "a candidate is ranked twice")
		require.False(t, math.IsNaN(s.Score) || math.IsInf(s.Score, 0), "JSON cannot represent the score")
		require.True(t, i == 0 || c.Top[i-1].Score <= s.Score, "the best must come first")
		seen[s.Index] = true
	}
}

func TestNamesAgreeWithPackageDevice(t *testing.T) {
	require.Equal(t, device.PolicyNames(), Names())
	_, err := New("best", Config{})
	require.ErrorContains(t, err, "use one of expected_finish, fifo")
	late := slices.DeleteFunc(Names(), func(n string) bool { return !policyOf(t, n).BindsLate() })
	require.Equal(t, []string{"expected_finish", "fifo", "priority"}, late)
}
