package router

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var policies = []string{"expected_finish", "round_robin"}

func newPolicy(t require.TestingT, name string) Policy {
	p, err := NewPolicy(name, testConfig())
	require.NoError(t, err)
	require.Equal(t, name, p.Name())
	return p
}

func candidates(t *rapid.T) []Candidate {
	cs := make([]Candidate, rapid.IntRange(0, 8).Draw(t, "devices"))
	for i := range cs {
		slots := rapid.IntRange(0, 8).Draw(t, "slots")
		limit := slots + rapid.IntRange(0, 4).Draw(t, "ahead")
		cs[i] = Candidate{
			Device: fmt.Sprint("d", i), Slots: slots, Limit: limit, Used: rapid.IntRange(0, limit+3).Draw(t, "used"),
			Waiting: rapid.IntRange(0, 20).Draw(t, "waiting"), Service: time.Duration(rapid.IntRange(0, 5000).Draw(t, "service")) * time.Millisecond,
			CPU: rapid.Float64Range(0, 1).Draw(t, "cpu"), Mem: rapid.Float64Range(0, 1).Draw(t, "mem"), IO: rapid.Float64Range(0, 1).Draw(t, "io"),
			Latency: time.Duration(rapid.IntRange(0, 50).Draw(t, "latency")) * time.Millisecond,
			Weight:  rapid.Float64Range(0, 10).Draw(t, "weight"), LastPick: rapid.Uint64Range(0, 100).Draw(t, "last pick"),
		}
	}
	return cs
}

// What every policy owes the scheduler, whatever it prefers.
func TestPoliciesConform(t *testing.T) {
	for _, name := range policies {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				cs := candidates(t)
				given := append([]Candidate{}, cs...)
				now := time.Unix(1000, 0)
				got := newPolicy(t, name).Pick(now, cs)
				require.Equal(t, given, cs, "candidates are only read")
				require.Equal(t, got, newPolicy(t, name).Pick(now, given), "the same question has the same answer")
				if got.Index == Wait {
					require.GreaterOrEqual(t, got.For, Wait)
					require.Less(t, got.For, len(cs))
				} else {
					require.Positive(t, cs[got.Index].Free(), "picked a device without a free credit")
					require.NotEmpty(t, got.Why)
				}
				for i := range cs { // it keeps nothing of the slice
					cs[i].Used = cs[i].Limit
				}
				full := newPolicy(t, name)
				full.Pick(now, given)
				require.Equal(t, Wait, full.Pick(now, cs).Index, "no credit is free: wait")
			})
			require.Equal(t, Choice{Index: Wait, For: Wait}, newPolicy(t, name).Pick(time.Now(), nil))
		})
	}
	_, err := NewPolicy("best", testConfig())
	require.ErrorContains(t, err, "use expected_finish or round_robin")
}

func TestExpectedFinishLeavesSlowDevicesOutUntilTheQueueIsLong(t *testing.T) {
	p := newPolicy(t, "expected_finish")
	cs := []Candidate{
		{Device: "slow", Slots: 1, Limit: 2, Service: 400 * time.Millisecond},
		{Device: "fast", Slots: 2, Limit: 3, Service: 100 * time.Millisecond},
	}
	var order []string
	for range 12 {
		got := p.Pick(time.Now(), cs)
		if got.Index == Wait {
			order = append(order, "wait for "+cs[got.For].Device)
			cs[got.For].Waiting++
			continue
		}
		order = append(order, cs[got.Index].Device)
		cs[got.Index].Used++
	}
	// Two start on the fast one at once and one waits there; of the next, each
	// ends 50 ms later, so the seventh would end after 400 ms there.
	require.Equal(t, []string{"fast", "fast", "fast", "wait for fast", "wait for fast", "wait for fast", "wait for fast", "slow"}, order[:8])
}

func TestExpectedFinishTriesUnknownDevicesInTurn(t *testing.T) {
	p := newPolicy(t, "expected_finish")
	cs := []Candidate{{Device: "a", Slots: 1, Limit: 2}, {Device: "b", Slots: 1, Limit: 2}, {Device: "c", Slots: 1, Limit: 2, Service: time.Second}}
	seen := map[string]int{}
	for i := range 2 {
		got := p.Pick(time.Now(), cs)
		require.NotEqual(t, Wait, got.Index)
		seen[cs[got.Index].Device]++
		cs[got.Index].LastPick, cs[got.Index].Used = uint64(i+1), 1
	}
	require.Equal(t, map[string]int{"a": 1, "b": 1}, seen)
}

func TestRoundRobinCycles(t *testing.T) {
	p := newPolicy(t, "round_robin")
	cs := []Candidate{{Device: "a", Limit: 9}, {Device: "b", Limit: 9}, {Device: "full", Limit: 1, Used: 1}, {Device: "c", Limit: 9, Service: time.Hour}}
	var order string
	for i := range 7 {
		got := p.Pick(time.Now(), cs)
		order += cs[got.Index].Device
		cs[got.Index].LastPick = uint64(i + 1)
	}
	require.Equal(t, "abcabca", order)
}
