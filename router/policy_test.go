package router

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
	cfg := testConfig()
	cfg.HashBy = "session"
	p, err := NewPolicy(name, cfg)
	require.NoError(t, err)
	return p
}

func fieldOf(seed uint64, cands ...Candidate) *Field {
	return &Field{Now: time.Unix(1000, 0), Hop: 2 * time.Millisecond, Routers: 1, Gen: 1, Cands: cands, Rand: rand.New(rand.NewPCG(seed, 1))}
}

// give does what the decider does when a pick gets its credit.
func (f *Field) give(i int) {
	f.Picks++
	f.Cands[i].Used++
	f.Cands[i].Last = f.Picks
}

// same is the field as somebody else would have it.
func (f *Field) same(seed uint64) *Field {
	g := *f
	g.Rand, g.Memo = rand.New(rand.NewPCG(seed, 1)), nil
	g.Cands = slices.Clone(f.Cands)
	for i := range g.Cands {
		l := *f.Cands[i].Load
		g.Cands[i].Load = &l
	}
	return &g
}

// known is what a policy may not change.
func (f *Field) known() []Candidate {
	g := f.same(0)
	for i := range g.Cands {
		g.Cands[i].Note = 0
	}
	return g.Cands
}

func drawField(t *rapid.T) *Field {
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
			Load:    &Load{Slots: slots, Limit: limit, Used: used, Last: rapid.Uint64Range(0, 100).Draw(t, "last"), Note: rapid.Float64Range(0, 9).Draw(t, "note")},
			Service: time.Duration(rapid.IntRange(0, 5000).Draw(t, "service")) * time.Millisecond,
			CPU:     rapid.Float64Range(0, 1).Draw(t, "cpu"), Mem: rapid.Float64Range(0, 1).Draw(t, "mem"), IO: rapid.Float64Range(0, 1).Draw(t, "io"),
			Latency: time.Duration(rapid.IntRange(0, 50).Draw(t, "latency")) * time.Millisecond, Queue: rapid.IntRange(-1, 9).Draw(t, "queue"),
			Weight: rapid.Float64Range(0, 10).Draw(t, "weight"), Explore: rapid.Bool().Draw(t, "explore"),
		}
	}
	f := fieldOf(0, cs...)
	f.Picks, f.Routers = 100, rapid.IntRange(1, 4).Draw(t, "routers")
	return f
}

func drawRequest(t *rapid.T) *Request {
	name := rapid.StringMatching(`[a-z]{0,3}`)
	return &Request{
		ID: "t" + name.Draw(t, "id"), Tenant: name.Draw(t, "tenant"), Session: name.Draw(t, "session"), Client: name.Draw(t, "client"),
		Band: rapid.IntRange(0, 2).Draw(t, "band"), Level: rapid.IntRange(0, 9).Draw(t, "level"), Ahead: rapid.IntRange(0, 50).Draw(t, "ahead"),
	}
}

// What every policy owes the decider, whatever it prefers.
func TestPoliciesConform(t *testing.T) {
	for _, name := range PolicyNames() {
		t.Run(name, func(t *testing.T) {
			p := policyOf(t, name)
			require.Equal(t, name, p.Name())
			require.Contains(t, []string{"", "ms", "tasks", "share", "load"}, p.Unit())
			require.Equal(t, Wait, p.Pick(&Request{ID: "t"}, fieldOf(1)).Index, "nobody is there")
			require.False(t, p.Pick(&Request{ID: "t"}, fieldOf(1)).Held)
			rapid.Check(t, func(t *rapid.T) { conforms(t, name) })
		})
	}
}

func conforms(t *rapid.T, name string) {
	start, seed := drawField(t), rapid.Uint64().Draw(t, "seed")
	a, b := policyOf(t, name), policyOf(t, name)
	f, g := start.same(seed), start.same(seed)
	for range rapid.IntRange(1, 20).Draw(t, "picks") {
		r := drawRequest(t)
		before := f.known()
		got := a.Pick(r, f)
		require.Equal(t, before, f.known(), "candidates are only read")
		require.Equal(t, got, b.Pick(r, g), "the same question has the same answer")
		checkChoice(t, f, got)
		if got.Index == Wait {
			continue
		}
		f.give(got.Index)
		g.give(got.Index)
		if rapid.Bool().Draw(t, "fleet read") { // the next field is another slice
			f, g = renewed(f), renewed(g)
		}
	}
	// It keeps nothing: with another fleet, it answers as one that has seen none.
	other := drawField(t)
	checkChoice(t, other, a.Pick(drawRequest(t), other))
	for i := range f.Cands {
		f.Cands[i].Used = f.Cands[i].Limit
	}
	got := a.Pick(drawRequest(t), f)
	require.Equal(t, Wait, got.Index, "no credit is free: wait")
	require.False(t, got.Held, "nothing is held back when nothing is free")
}

// renewed is the field after the fleet was read anew.
func renewed(f *Field) *Field {
	g := *f
	g.Cands, g.Memo = slices.Clone(f.Cands), nil
	g.Gen++
	for i := range f.Cands { // who kept the old one reads nonsense
		f.Cands[i] = Candidate{Load: &Load{Limit: 1 << 20}}
	}
	return &g
}

func checkChoice(t *rapid.T, f *Field, c Choice) {
	free := slices.ContainsFunc(f.Cands, func(c Candidate) bool { return c.Free() > 0 })
	switch {
	case c.Index == Wait:
		require.True(t, free || !c.Held, "held, but no credit is free")
	default:
		require.GreaterOrEqual(t, c.Index, 0)
		require.Less(t, c.Index, len(f.Cands))
		require.Positive(t, f.Cands[c.Index].Free(), "picked a device without a free credit")
		require.False(t, c.Held)
		require.NotEmpty(t, c.Note)
	}
	require.NotContains(t, c.Note, `"`)
	require.NotContains(t, c.Note, `\`)
	require.LessOrEqual(t, c.Tops, len(c.Top))
	seen := map[int]bool{}
	for i, s := range c.Top[:c.Tops] {
		require.GreaterOrEqual(t, s.Index, 0)
		require.Less(t, s.Index, len(f.Cands))
		require.False(t, seen[s.Index], "a candidate is told twice")
		require.False(t, math.IsNaN(s.Score) || math.IsInf(s.Score, 0), "a score that JSON has no word for")
		require.True(t, i == 0 || c.Top[i-1].Score <= s.Score, "the best come first")
		seen[s.Index] = true
	}
}

func TestThePoliciesAreThoseThatCanBeChosen(t *testing.T) {
	require.Equal(t, device.PolicyNames(), PolicyNames())
	_, err := NewPolicy("best", testConfig())
	require.ErrorContains(t, err, "use one of expected_finish, fifo")
	late := slices.DeleteFunc(PolicyNames(), func(n string) bool { return !policyOf(t, n).Late() })
	require.Equal(t, []string{"expected_finish", "fifo", "priority"}, late)
}
