package policy

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What distinguishes each policy; policy_test.go checks what all of them have in common.

// serve picks n times and counts the picks of each device. The tasks stay in flight.
func serve(p Policy, snap *Snapshot, n int) map[string]int {
	return serveUntil(p, snap, n, func(int) {})
}

// serveDone is serve with tasks that finish at once.
func serveDone(p Policy, snap *Snapshot, n int) map[string]int {
	return serveUntil(p, snap, n, func(i int) { snap.Candidates[i].Used-- })
}

func serveUntil(p Policy, snap *Snapshot, n int, picked func(index int)) map[string]int {
	got := map[string]int{}
	for i := range n {
		c := p.Pick(&Request{ID: fmt.Sprint("t", i)}, snap)
		if c.Index == Wait {
			got["wait"]++
			continue
		}
		got[snap.Candidates[c.Index].Device]++
		snap.take(c.Index)
		picked(c.Index)
	}
	return got
}

func cand(id string, slots, limit, used int) Candidate {
	return Candidate{Device: id, Load: &Load{Slots: slots, Limit: limit, Used: used}, Queue: -1, Weight: 1}
}

func TestFirstFreeTakesTheLeastBusyWhateverItsSpeed(t *testing.T) {
	for _, name := range []string{"fifo", "priority"} {
		snap := snapshotOf(1, cand("busy", 4, 6, 3), cand("slow", 2, 3, 1), cand("full", 1, 1, 1))
		snap.Candidates[1].Service = time.Hour
		p := policyOf(t, name)
		require.Equal(t, "slow", snap.Candidates[p.Pick(&Request{}, snap).Index].Device)
		require.Equal(t, map[string]int{"slow": 2, "busy": 3, "wait": 1}, serve(p, snap, 6))
		snap = snapshotOf(1, cand("a", 1, 2, 0), cand("b", 1, 2, 0), cand("c", 1, 2, 0))
		require.Equal(t, map[string]int{"a": 3, "b": 3, "c": 3}, serveDone(p, snap, 9), "equal devices take turns")
		snap = snapshotOf(1, cand("small", 2, 4, 1), cand("large", 8, 10, 3))
		require.Equal(t, "large", snap.Candidates[p.Pick(&Request{}, snap).Index].Device, "three tasks on eight slots are less than one on two")
	}
	_, ok := policyOf(t, "priority").(Ordered)
	require.False(t, ok)
	require.True(t, policyOf(t, "fifo").(Ordered).ByArrival())
}

func TestRoundRobinCycles(t *testing.T) {
	snap := snapshotOf(1, cand("a", 1, 9, 0), cand("b", 1, 9, 0), cand("full", 1, 1, 1), cand("c", 1, 9, 0))
	snap.Candidates[3].Service = time.Hour
	var order string
	p := policyOf(t, "round_robin")
	for range 7 {
		got := p.Pick(&Request{}, snap)
		order += snap.Candidates[got.Index].Device
		snap.take(got.Index)
	}
	require.Equal(t, "abcabca", order)
}

func weighted() *Snapshot {
	snap := snapshotOf(7, cand("a", 4, 999, 0), cand("b", 1, 999, 0), cand("c", 2, 999, 0), cand("full", 8, 8, 8))
	snap.Candidates[2].Weight = 2.5
	return snap
}

func TestWeightedRoundRobinKeepsProportionAndIsSmooth(t *testing.T) {
	snap, p := weighted(), policyOf(t, "weighted_round_robin")
	since, seen := map[string]int{}, map[string]int{}
	for i := range 1000 {
		if i%97 == 96 { // the fleet is read again in between
			snap = nextGeneration(snap)
		}
		c := p.Pick(&Request{}, snap)
		d := snap.Candidates[c.Index].Device
		snap.take(c.Index)
		snap.Candidates[c.Index].Used--
		require.Less(t, i-since[d], map[string]int{"a": 6, "b": 14, "c": 5}[d], "%s waited too long for its turn", d)
		since[d] = i
		seen[d]++
	}
	for d, share := range map[string]float64{"a": 0.4, "b": 0.1, "c": 0.5} {
		require.InDelta(t, 1000*share, seen[d], 3, d)
	}
}

func TestWeightedRoundRobinSavesUpNoTurns(t *testing.T) {
	snap, p := snapshotOf(3, cand("a", 1, 1e6, 0), cand("b", 1, 1e6, 0), cand("c", 1, 1, 1)), policyOf(t, "weighted_round_robin")
	require.Equal(t, map[string]int{"a": 500, "b": 500}, serveDone(p, snap, 1000))
	snap.Candidates[2].Limit = 1e6
	got := serveDone(p, snap, 300)
	require.InDelta(t, 100, got["c"], 1, "a device that was full gets its share from now on")
	snap = nextGeneration(snap)
	snap.Candidates = append(snap.Candidates, cand("new", 1, 1e6, 0))
	got = serveDone(p, snap, 400)
	require.InDelta(t, 100, got["new"], 1, "a new device gets its share from now on")
	snap.Candidates[0].Limit = 0
	serveDone(p, snap, 600)
	snap.Candidates[0].Limit = 1e6
	snap = nextGeneration(snap)
	got = serveDone(p, snap, 400)
	require.InDelta(t, 100, got["a"], 1, "a device that was away gets its share from now on")
}

func TestWeightedRoundRobinSharesDevicesWithOtherModels(t *testing.T) {
	// Before each pick, tasks of another model move the shared device far ahead on the line. The other
	// devices still get turns by weight.
	snap, p := snapshotOf(3, cand("a", 4, 1e6, 0), cand("b", 1, 1e6, 0), cand("shared", 1, 1e6, 0)), policyOf(t, "weighted_round_robin")
	got := map[string]int{}
	for range 1000 {
		for d, n := range serveDone(p, snap, 1) {
			got[d] += n
		}
		snap.Candidates[2].PolicyState += 100
		snap = nextGeneration(snap)
	}
	require.Greater(t, got["a"], 4*got["b"], "%v", got)
	require.Greater(t, got["b"], 50, "%v", got)
}

func TestWeightedRoundRobinsOfSeveralRoutersAreNotInStep(t *testing.T) {
	first := map[string]bool{}
	for seed := range uint64(20) {
		snap, p := snapshotOf(seed, fleetOf(12)...), policyOf(t, "weighted_round_robin")
		order := ""
		for range 6 {
			c := p.Pick(&Request{}, snap)
			order += snap.Candidates[c.Index].Device
			snap.take(c.Index)
		}
		first[order] = true
	}
	require.Greater(t, len(first), 10)
}

func TestWeightedRandomKeepsProportion(t *testing.T) {
	const n = 20_000
	got := serveDone(policyOf(t, "weighted_random"), weighted(), n)
	for d, share := range map[string]float64{"a": 0.4, "b": 0.1, "c": 0.5} {
		require.InDelta(t, n*share, got[d], 4*math.Sqrt(n*share*(1-share)), d)
	}
	require.Zero(t, got["full"])
	// When nearly all are full, the draws miss, but the probabilities stay the same.
	snap := weighted()
	for i := range 200 {
		snap.Candidates = append(snap.Candidates, cand(fmt.Sprint("full", i), 8, 8, 8))
	}
	got = serveDone(policyOf(t, "weighted_random"), snap, n)
	for d, share := range map[string]float64{"a": 0.4, "b": 0.1, "c": 0.5} {
		require.InDelta(t, n*share, got[d], 4*math.Sqrt(n*share*(1-share)), d)
	}
}

// A device may report any weight above 0. Scores stay finite, because they go into JSON.
func TestTheSmallestWeightHasAFiniteScore(t *testing.T) {
	for _, name := range []string{"least_connections", "weighted_round_robin", "weighted_random"} {
		snap := snapshotOf(1, cand("a", 1, 4, 2), cand("b", 1, 4, 1))
		snap.Candidates[0].Weight, snap.Candidates[1].Weight = math.SmallestNonzeroFloat64, math.SmallestNonzeroFloat64
		choice := policyOf(t, name).Pick(&Request{ID: "t"}, snap)
		for _, scored := range choice.Top {
			require.False(t, math.IsInf(scored.Score, 0) || math.IsNaN(scored.Score), "%s: %v", name, scored.Score)
		}
	}
}

func TestLeastConnectionsCountsBySlotsAndWeight(t *testing.T) {
	snap := weighted()
	require.Equal(t, map[string]int{"a": 40, "b": 10, "c": 50}, serve(policyOf(t, "least_connections"), snap, 100))
	snap = snapshotOf(1, cand("a", 4, 99, 3), cand("b", 1, 99, 1))
	require.Equal(t, 0, policyOf(t, "least_connections").Pick(&Request{}, snap).Index, "three tasks on four slots are less than one on one")
}

func homesAt(p Policy, snap *Snapshot, keys int) map[string]string {
	got := map[string]string{}
	for i := range keys {
		r := &Request{ID: "other", Session: fmt.Sprint("s", i)}
		if c := p.Pick(r, snap); c.Index != Wait {
			got[r.Session] = snap.Candidates[c.Index].Device
		}
	}
	return got
}

func fleetOf(n int) []Candidate {
	cs := make([]Candidate, n)
	for i := range cs {
		cs[i] = cand(fmt.Sprintf("d%04d", i), 1+i%4, 1+i%4+1024, 0)
		cs[i].Service = time.Duration(40*(1+i%5)) * time.Millisecond
	}
	return cs
}

func TestHashMovesOnlyTheKeysOfADeviceThatLeaves(t *testing.T) {
	const keys = 4000
	p, cs := policyOf(t, "hash"), fleetOf(12)
	before := homesAt(p, snapshotOf(1, cs...), keys)
	require.Equal(t, before, homesAt(policyOf(t, "hash"), snapshotOf(2, cs...), keys), "every router computes the same homes")
	byDevice := map[string]int{}
	for _, d := range before {
		byDevice[d]++
	}
	for i, c := range cs { // 30 slots in all
		want := keys * float64(1+i%4) / 30
		require.InDelta(t, want, byDevice[c.Device], 5*math.Sqrt(want), c.Device)
	}
	gone := cs[7].Device
	left := slices.DeleteFunc(slices.Clone(cs), func(c Candidate) bool { return c.Device == gone })
	for k, d := range homesAt(p, snapshotOf(1, left...), keys) {
		if before[k] != gone {
			require.Equal(t, before[k], d, k)
		}
	}
	cs[3].Limit = 0 // full, but still a candidate
	moved := homesAt(p, snapshotOf(1, cs...), keys)
	for k, d := range moved {
		require.NotEqual(t, cs[3].Device, d)
		if before[k] != cs[3].Device {
			require.Equal(t, before[k], d, k)
		}
	}
	more := snapshotOf(1, cs...).copied(1)
	more.Candidates[3].Limit, more.Candidates[0].Slots = 1e6, 4
	for k, d := range homesAt(p, more, keys) {
		if d != before[k] {
			require.Equal(t, cs[0].Device, d, "keys move only to the device that got slots")
		}
	}
}

func TestHashUsesTheConfiguredKey(t *testing.T) {
	one := &Request{ID: "1", Tenant: "t", Session: "s", Client: "c"}
	for by, other := range map[string]*Request{
		"session": {ID: "2", Tenant: "u", Session: "s", Client: "d"},
		"tenant":  {ID: "2", Tenant: "t", Session: "r", Client: "d"},
		"client":  {ID: "2", Tenant: "u", Session: "r", Client: "c"},
	} {
		p, err := New("hash", Config{HashBy: by})
		require.NoError(t, err)
		snap := snapshotOf(1, fleetOf(1000)...)
		require.Equal(t, p.Pick(one, snap).Index, p.Pick(other, snap).Index, by)
		for with, r := range map[string]*Request{"session": {Session: "s", Tenant: "x", Client: "x"}, "tenant": {Tenant: "t", Session: "x", Client: "x"}, "client": {Client: "c", Session: "x", Tenant: "x"}} {
			require.Equal(t, with == by, p.Pick(one, snap).Index == p.Pick(r, snap).Index, "%s by %s", with, by)
		}
		homes := map[int]bool{}
		for i := range 50 {
			homes[p.Pick(&Request{ID: fmt.Sprint(i)}, snap).Index] = true
		}
		require.Greater(t, len(homes), 40, "without a %s, the id is the key", by)
	}
}

func TestPowerOfTwoTakesTheLessBusyOfTwo(t *testing.T) {
	p, snap := policyOf(t, "power_of_two"), snapshotOf(5, cand("a", 4, 99, 3), cand("b", 1, 99, 1), cand("full", 9, 9, 9))
	for range 50 {
		c := p.Pick(&Request{}, snap)
		require.Equal(t, "a", snap.Candidates[c.Index].Device, "three tasks on four slots are less than one on one")
		require.Equal(t, 2, c.Tops)
	}
	// Of ten equal devices, the busiest is never taken, and the least busy whenever it is one of the
	// two draws: with probability 1 − 9/10·8/9.
	var cs []Candidate
	for i := range 10 {
		cs = append(cs, cand(fmt.Sprint("d", i), 1, 999, i))
	}
	snap, n := snapshotOf(6, cs...), 5000
	got := map[int]int{}
	for range n {
		got[p.Pick(&Request{}, snap).Index]++
	}
	require.Zero(t, got[9])
	require.InDelta(t, float64(n)/5, got[0], 120)
	require.Less(t, got[5], got[2])
	// Draws are in proportion to slots; with nothing in flight, the first draw wins.
	snap = snapshotOf(8, cand("large", 8, 999, 0), cand("small", 1, 999, 0), cand("other", 1, 999, 0))
	got = map[int]int{}
	for range n {
		got[p.Pick(&Request{}, snap).Index]++
	}
	require.InDelta(t, float64(n)*0.8, got[0], 120)
}

func TestLoadFormulaWeighsTheFiguresOfHeartbeats(t *testing.T) {
	of := func(weights map[string]string, cs ...Candidate) int {
		p, err := New("load_formula", Config{Weights: weights})
		require.NoError(t, err)
		for i := range cs {
			cs[i].Device, cs[i].Load = fmt.Sprint("d", i), &Load{Slots: 2, Limit: 1026}
		}
		return p.Pick(&Request{}, snapshotOf(1, cs...)).Index
	}
	for figure, low := range map[string]Candidate{
		"cpu":     {CPU: 0.1, Mem: 1, IO: 1, Latency: time.Second, Queue: 9},
		"mem":     {CPU: 1, Mem: 0.1, IO: 1, Latency: time.Second, Queue: 9},
		"io":      {CPU: 1, Mem: 1, IO: 0.1, Latency: time.Second, Queue: 9},
		"latency": {CPU: 1, Mem: 1, IO: 1, Latency: time.Millisecond, Queue: 9},
		"queue":   {CPU: 1, Mem: 1, IO: 1, Latency: time.Second, Queue: 1},
	} {
		high := Candidate{CPU: 0.2, Mem: 0.2, IO: 0.2, Latency: 2 * time.Millisecond, Queue: 2}
		require.Equal(t, 1, of(map[string]string{figure: "0.7"}, high, low), figure)
	}
	// Two devices that the presets rank differently: 0.6 cpu + 0.4 mem + 0.2 latency, and so on.
	a, b := Candidate{CPU: 0.5, Mem: 0.2, IO: 0.9}, Candidate{CPU: 0.4, Mem: 0.5, IO: 0.1}
	require.Equal(t, 0, of(map[string]string{"preset": "balanced"}, a, b)) // 0.38, 0.44
	require.Equal(t, 1, of(map[string]string{"preset": "compute"}, a, b))  // 0.49, 0.37
	require.Equal(t, 0, of(nil, a, b), "balanced is the default")
	a, b = Candidate{CPU: 0.5, Latency: 10 * time.Millisecond}, Candidate{CPU: 0.4, Latency: 100 * time.Millisecond}
	require.Equal(t, 1, of(map[string]string{"preset": "balanced"}, a, Candidate{CPU: 0.4, Latency: 43 * time.Millisecond})) // 0.318, 0.300
	require.Equal(t, 0, of(map[string]string{"preset": "edge"}, a, b))                                                       // 0.227, 0.31

	_, err := New("load_formula", Config{Weights: map[string]string{"gpu": "1"}})
	require.ErrorContains(t, err, "router.load_weights")
	require.ErrorContains(t, err, "gpu")
}

func TestLoadFormulaHerdsUntilTheNextHeartbeat(t *testing.T) {
	p, snap := policyOf(t, "load_formula"), snapshotOf(1, cand("a", 1, 999, 0), cand("b", 1, 999, 0), cand("c", 1, 999, 0))
	require.Equal(t, map[string]int{"a": 3, "b": 3, "c": 3}, serve(p, snap, 9), "equal devices take turns")
	snap = nextGeneration(snap)
	snap.Candidates[1].CPU = -0.1
	require.Equal(t, map[string]int{"b": 9}, serve(p, snap, 9), "it herds, as published")
	snap = nextGeneration(snap)
	snap.Candidates[1].CPU, snap.Candidates[0].Queue, snap.Candidates[2].Queue = 0, 9, 0 // b does not report a queue: 0.45
	w := &loadFormula{queue: 1}
	require.Equal(t, map[string]int{"c": 2}, serve(w, snap, 2))
	snap.Candidates[2].Limit = 0
	require.Equal(t, map[string]int{"b": 2}, serve(w, snap, 2), "an unknown queue counts as the mean")
}

func TestPrequalPrefersColdThenFast(t *testing.T) {
	// Sixteen devices: two are hot and fast, one is fast, the others are slow.
	var cs []Candidate
	for i := range 16 {
		cs = append(cs, cand(fmt.Sprintf("d%02d", i), 1, 99, 1))
		cs[i].Service = 100 * time.Millisecond
	}
	cs[3].Service, cs[5].Service, cs[9].Service = 5*time.Millisecond, 5*time.Millisecond, 20*time.Millisecond
	cs[3].Used, cs[5].Used = 3, 4
	p, snap := policyOf(t, "prequal"), snapshotOf(1, cs...)
	taken := map[int]int{}
	for i := range 400 {
		c := p.Pick(&Request{}, snap)
		if i >= 40 { // by now nearly all devices are in the pool
			taken[c.Index]++
		}
	}
	require.Greater(t, taken[9], 200, "fast and cold: %v", taken)
	require.Less(t, taken[3]+taken[5], 30, "faster, but hot: %v", taken)

	for i := range cs { // all devices with a free credit are hot
		cs[i].Limit, cs[i].Used = 1, 1
	}
	cs[3].Limit, cs[3].Used, cs[5].Limit, cs[5].Used = 9, 4, 9, 3
	cs[3].Service = time.Millisecond
	p, snap = policyOf(t, "prequal"), snapshotOf(1, cs...)
	both := 0
	for range 400 {
		c := p.Pick(&Request{}, snap)
		require.Contains(t, []int{3, 5}, c.Index)
		if m, _ := snap.Cache.(*probes); c.Index == 3 && slices.Contains(m.at[:m.n], 5) && slices.Contains(m.at[:m.n], 3) {
			both++
		}
	}
	require.Zero(t, both, "it must take the device with the fewest tasks in flight, not the fastest")
}

func TestPrequalCountsBySlots(t *testing.T) {
	var cs []Candidate
	for i := range 12 {
		cs = append(cs, cand(fmt.Sprintf("d%02d", i), 1, 99, 1))
		cs[i].Service = 100 * time.Millisecond
	}
	cs[4] = cand("large", 8, 99, 5)
	cs[4].Service = 40 * time.Millisecond
	p, snap := policyOf(t, "prequal"), snapshotOf(1, cs...)
	large := 0
	for range 400 {
		if p.Pick(&Request{}, snap).Index == 4 {
			large++
		}
	}
	require.Greater(t, large, 200, "five tasks on eight slots are not hot")
}

func TestPrequalKeepsABoundedPoolOfRecentProbes(t *testing.T) {
	p, snap := policyOf(t, "prequal"), snapshotOf(1, fleetOf(500)...)
	seen := map[int32]bool{}
	for range 2000 {
		c := p.Pick(&Request{}, snap)
		m, _ := snap.Cache.(*probes)
		require.LessOrEqual(t, m.n, maxProbes)
		once := map[int32]bool{}
		for _, i := range m.at[:m.n] {
			require.False(t, once[i], "a device is in the pool twice")
			once[i], seen[i] = true, true
		}
		snap.take(c.Index)
		snap.Candidates[c.Index].Used--
	}
	require.Len(t, seen, 500, "every device must be probed sooner or later")
}

func TestExpectedFinishLeavesSlowDevicesOutUntilTheQueueIsLong(t *testing.T) {
	p, snap := policyOf(t, "expected_finish"), snapshotOf(1, cand("slow", 1, 2, 0), cand("fast", 2, 3, 0))
	snap.Candidates[0].Service, snap.Candidates[1].Service = 2*time.Second, 100*time.Millisecond
	var order []string
	waiting := 0
	for !slices.Contains(order, "slow") && waiting < 100 {
		got := p.Pick(&Request{Ahead: waiting}, snap)
		if got.Index == Wait {
			require.True(t, got.Defer)
			require.Greater(t, got.DeferWhileAheadBelow, waiting)
			for ahead := waiting; ahead < got.DeferWhileAheadBelow; ahead++ {
				require.Equal(t, Wait, p.Pick(&Request{Ahead: ahead}, snap).Index, "it announced that it would wait with %d tasks ahead", ahead)
			}
			require.NotEqual(t, Wait, p.Pick(&Request{Ahead: got.DeferWhileAheadBelow}, snap).Index)
			order = append(order, "wait")
			waiting++
			continue
		}
		order = append(order, snap.Candidates[got.Index].Device)
		snap.take(got.Index)
		if got.Index == 0 {
			break
		}
	}
	require.Equal(t, []string{"fast", "fast", "fast"}, order[:3])
	at := slices.Index(order, "slow")
	require.Greater(t, at, 4, "%v", order)
	for _, o := range order[3:at] {
		require.Equal(t, "wait", o)
	}
}

func TestExpectedFinishTriesUnknownDevices(t *testing.T) {
	p, snap := policyOf(t, "expected_finish"), snapshotOf(1, cand("a", 1, 2, 0), cand("b", 1, 2, 0), cand("c", 1, 2, 0))
	snap.Candidates[2].Service = time.Second
	require.Equal(t, map[string]int{"a": 1, "b": 1}, serve(p, snap, 2))
}
