package router

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// What makes each policy what it is. What all have in common: policy_test.go.

// serve picks n times, the tasks ending at once when they end, and counts.
func serve(p Policy, f *Field, n int, ends bool) map[string]int {
	got := map[string]int{}
	for i := range n {
		c := p.Pick(&Request{ID: fmt.Sprint("t", i)}, f)
		if c.Index == Wait {
			got["wait"]++
			continue
		}
		got[f.Cands[c.Index].Device]++
		f.give(c.Index)
		if ends {
			f.Cands[c.Index].Used--
		}
	}
	return got
}

func cand(id string, slots, limit, used int) Candidate {
	return Candidate{Device: id, Load: &Load{Slots: slots, Limit: limit, Used: used}, Queue: -1, Weight: 1}
}

func TestFirstFreeTakesTheLeastBusyWhateverItsSpeed(t *testing.T) {
	for _, name := range []string{"fifo", "priority"} {
		f := fieldOf(1, cand("busy", 4, 6, 3), cand("slow", 2, 3, 1), cand("full", 1, 1, 1))
		f.Cands[1].Service = time.Hour
		p := policyOf(t, name)
		require.Equal(t, "slow", f.Cands[p.Pick(&Request{}, f).Index].Device)
		require.Equal(t, map[string]int{"slow": 2, "busy": 3, "wait": 1}, serve(p, f, 6, false))
		f = fieldOf(1, cand("a", 1, 2, 0), cand("b", 1, 2, 0), cand("c", 1, 2, 0))
		require.Equal(t, map[string]int{"a": 3, "b": 3, "c": 3}, serve(p, f, 9, true), "equals take turns")
		f = fieldOf(1, cand("small", 2, 4, 1), cand("large", 8, 10, 3))
		require.Equal(t, "large", f.Cands[p.Pick(&Request{}, f).Index].Device, "three of eight slots are less than one of two")
	}
	_, ok := policyOf(t, "priority").(byArrival)
	require.False(t, ok)
	require.True(t, policyOf(t, "fifo").(byArrival).ByArrival())
}

func TestRoundRobinCycles(t *testing.T) {
	f := fieldOf(1, cand("a", 1, 9, 0), cand("b", 1, 9, 0), cand("full", 1, 1, 1), cand("c", 1, 9, 0))
	f.Cands[3].Service = time.Hour
	var order string
	p := policyOf(t, "round_robin")
	for range 7 {
		got := p.Pick(&Request{}, f)
		order += f.Cands[got.Index].Device
		f.give(got.Index)
	}
	require.Equal(t, "abcabca", order)
}

func weighted() *Field {
	f := fieldOf(7, cand("a", 4, 999, 0), cand("b", 1, 999, 0), cand("c", 2, 999, 0), cand("full", 8, 8, 8))
	f.Cands[2].Weight = 2.5
	return f
}

func TestWeightedRoundRobinKeepsProportionAndIsSmooth(t *testing.T) {
	f, p := weighted(), policyOf(t, "weighted_round_robin")
	since, seen := map[string]int{}, map[string]int{}
	for i := range 1000 {
		if i%97 == 96 { // the fleet is read anew in between
			f = renewed(f)
		}
		c := p.Pick(&Request{}, f)
		d := f.Cands[c.Index].Device
		f.give(c.Index)
		f.Cands[c.Index].Used--
		require.Less(t, i-since[d], map[string]int{"a": 6, "b": 14, "c": 5}[d], "%s had to wait too long", d)
		since[d] = i
		seen[d]++
	}
	for d, share := range map[string]float64{"a": 0.4, "b": 0.1, "c": 0.5} {
		require.InDelta(t, 1000*share, seen[d], 3, d)
	}
}

func TestWeightedRoundRobinLetsNobodyCatchUp(t *testing.T) {
	f, p := fieldOf(3, cand("a", 1, 1e6, 0), cand("b", 1, 1e6, 0), cand("c", 1, 1, 1)), policyOf(t, "weighted_round_robin")
	require.Equal(t, map[string]int{"a": 500, "b": 500}, serve(p, f, 1000, true))
	f.Cands[2].Limit = 1e6
	got := serve(p, f, 300, true)
	require.InDelta(t, 100, got["c"], 1, "a device that was full")
	f = renewed(f)
	f.Cands = append(f.Cands, cand("new", 1, 1e6, 0))
	got = serve(p, f, 400, true)
	require.InDelta(t, 100, got["new"], 1, "a device that is new")
	f.Cands[0].Limit = 0
	serve(p, f, 600, true)
	f.Cands[0].Limit = 1e6
	f = renewed(f)
	got = serve(p, f, 400, true)
	require.InDelta(t, 100, got["a"], 1, "a device that was away")
}

func TestWeightedRoundRobinSharesDevicesWithOtherModels(t *testing.T) {
	// Another model's tasks move the shared device far ahead, before each pick here:
	// the others are still taken by weight.
	f, p := fieldOf(3, cand("a", 4, 1e6, 0), cand("b", 1, 1e6, 0), cand("shared", 1, 1e6, 0)), policyOf(t, "weighted_round_robin")
	got := map[string]int{}
	for range 1000 {
		for d, n := range serve(p, f, 1, true) {
			got[d] += n
		}
		f.Cands[2].Note += 100
		f = renewed(f)
	}
	require.Greater(t, got["a"], 4*got["b"], "%v", got)
	require.Greater(t, got["b"], 50, "%v", got)
}

func TestWeightedRoundRobinsDoNotMarchInStep(t *testing.T) {
	first := map[string]bool{}
	for seed := range uint64(20) {
		f, p := fieldOf(seed, fleetOf(12)...), policyOf(t, "weighted_round_robin")
		order := ""
		for range 6 {
			c := p.Pick(&Request{}, f)
			order += f.Cands[c.Index].Device
			f.give(c.Index)
		}
		first[order] = true
	}
	require.Greater(t, len(first), 10)
}

func TestWeightedRandomKeepsProportion(t *testing.T) {
	const n = 20_000
	got := serve(policyOf(t, "weighted_random"), weighted(), n, true)
	for d, share := range map[string]float64{"a": 0.4, "b": 0.1, "c": 0.5} {
		require.InDelta(t, n*share, got[d], 4*math.Sqrt(n*share*(1-share)), d)
	}
	require.Zero(t, got["full"])
	// Nearly all are full: the draws miss, and the chances stay.
	f := weighted()
	for i := range 200 {
		f.Cands = append(f.Cands, cand(fmt.Sprint("full", i), 8, 8, 8))
	}
	got = serve(policyOf(t, "weighted_random"), f, n, true)
	for d, share := range map[string]float64{"a": 0.4, "b": 0.1, "c": 0.5} {
		require.InDelta(t, n*share, got[d], 4*math.Sqrt(n*share*(1-share)), d)
	}
}

func TestLeastConnectionsCountsBySlotsAndWeight(t *testing.T) {
	f := weighted()
	require.Equal(t, map[string]int{"a": 40, "b": 10, "c": 50}, serve(policyOf(t, "least_connections"), f, 100, false))
	f = fieldOf(1, cand("a", 4, 99, 3), cand("b", 1, 99, 1))
	require.Equal(t, 0, policyOf(t, "least_connections").Pick(&Request{}, f).Index, "three on four slots are less than one on one")
}

func homesAt(p Policy, f *Field, keys int) map[string]string {
	got := map[string]string{}
	for i := range keys {
		r := &Request{ID: "other", Session: fmt.Sprint("s", i)}
		if c := p.Pick(r, f); c.Index != Wait {
			got[r.Session] = f.Cands[c.Index].Device
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

func TestHashMovesOnlyTheKeysOfADeviceThatGoes(t *testing.T) {
	const keys = 4000
	p, cs := policyOf(t, "hash"), fleetOf(12)
	before := homesAt(p, fieldOf(1, cs...), keys)
	require.Equal(t, before, homesAt(policyOf(t, "hash"), fieldOf(2, cs...), keys), "at every router alike")
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
	for k, d := range homesAt(p, fieldOf(1, left...), keys) {
		if before[k] != gone {
			require.Equal(t, before[k], d, k)
		}
	}
	cs[3].Limit = 0 // full, but there
	moved := homesAt(p, fieldOf(1, cs...), keys)
	for k, d := range moved {
		require.NotEqual(t, cs[3].Device, d)
		if before[k] != cs[3].Device {
			require.Equal(t, before[k], d, k)
		}
	}
	more := fieldOf(1, cs...).same(1)
	more.Cands[3].Limit, more.Cands[0].Slots = 1e6, 4
	for k, d := range homesAt(p, more, keys) {
		if d != before[k] {
			require.Equal(t, cs[0].Device, d, "keys move only to the device that got slots")
		}
	}
}

func TestHashGoesByWhatTheOperatorSays(t *testing.T) {
	one := &Request{ID: "1", Tenant: "t", Session: "s", Client: "c"}
	for by, other := range map[string]*Request{
		"session": {ID: "2", Tenant: "u", Session: "s", Client: "d"},
		"tenant":  {ID: "2", Tenant: "t", Session: "r", Client: "d"},
		"client":  {ID: "2", Tenant: "u", Session: "r", Client: "c"},
	} {
		cfg := testConfig()
		cfg.HashBy = by
		p, err := NewPolicy("hash", cfg)
		require.NoError(t, err)
		f := fieldOf(1, fleetOf(1000)...)
		require.Equal(t, p.Pick(one, f).Index, p.Pick(other, f).Index, by)
		for with, r := range map[string]*Request{"session": {Session: "s", Tenant: "x", Client: "x"}, "tenant": {Tenant: "t", Session: "x", Client: "x"}, "client": {Client: "c", Session: "x", Tenant: "x"}} {
			require.Equal(t, with == by, p.Pick(one, f).Index == p.Pick(r, f).Index, "%s by %s", with, by)
		}
		homes := map[int]bool{}
		for i := range 50 {
			homes[p.Pick(&Request{ID: fmt.Sprint(i)}, f).Index] = true
		}
		require.Greater(t, len(homes), 40, "without a %s the id decides", by)
	}
}

func TestPowerOfTwoTakesTheLessBusyOfTwo(t *testing.T) {
	p, f := policyOf(t, "power_of_two"), fieldOf(5, cand("a", 4, 99, 3), cand("b", 1, 99, 1), cand("full", 9, 9, 9))
	for range 50 {
		c := p.Pick(&Request{}, f)
		require.Equal(t, "a", f.Cands[c.Index].Device, "three on four slots are less than one on one")
		require.Equal(t, 2, c.Tops)
	}
	// Of ten alike the busiest is never taken; the least busy with the chance of
	// being one of the two: 1 − 9/10·8/9.
	var cs []Candidate
	for i := range 10 {
		cs = append(cs, cand(fmt.Sprint("d", i), 1, 999, i))
	}
	f, n := fieldOf(6, cs...), 5000
	got := map[int]int{}
	for range n {
		got[p.Pick(&Request{}, f).Index]++
	}
	require.Zero(t, got[9])
	require.InDelta(t, float64(n)/5, got[0], 120)
	require.Less(t, got[5], got[2])
	// Drawn by slots; with nothing in flight the first that is drawn is taken.
	f = fieldOf(8, cand("large", 8, 999, 0), cand("small", 1, 999, 0), cand("other", 1, 999, 0))
	got = map[int]int{}
	for range n {
		got[p.Pick(&Request{}, f).Index]++
	}
	require.InDelta(t, float64(n)*0.8, got[0], 120)
}

func TestLoadFormulaWeighsWhatHeartbeatsSay(t *testing.T) {
	of := func(weights map[string]string, cs ...Candidate) int {
		cfg := testConfig()
		cfg.Weights = weights
		p, err := NewPolicy("load_formula", cfg)
		require.NoError(t, err)
		for i := range cs {
			cs[i].Device, cs[i].Load = fmt.Sprint("d", i), &Load{Slots: 2, Limit: 1026}
		}
		return p.Pick(&Request{}, fieldOf(1, cs...)).Index
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
	// The presets, where they part: 0.6 cpu + 0.4 mem + 0.2 latency and so on.
	a, b := Candidate{CPU: 0.5, Mem: 0.2, IO: 0.9}, Candidate{CPU: 0.4, Mem: 0.5, IO: 0.1}
	require.Equal(t, 0, of(map[string]string{"preset": "balanced"}, a, b)) // 0.38, 0.44
	require.Equal(t, 1, of(map[string]string{"preset": "compute"}, a, b))  // 0.49, 0.37
	require.Equal(t, 0, of(nil, a, b), "balanced is the default")
	a, b = Candidate{CPU: 0.5, Latency: 10 * time.Millisecond}, Candidate{CPU: 0.4, Latency: 100 * time.Millisecond}
	require.Equal(t, 1, of(map[string]string{"preset": "balanced"}, a, Candidate{CPU: 0.4, Latency: 43 * time.Millisecond})) // 0.318, 0.300
	require.Equal(t, 0, of(map[string]string{"preset": "edge"}, a, b))                                                       // 0.227, 0.31

	cfg := testConfig()
	cfg.Weights = map[string]string{"gpu": "1"}
	_, err := NewPolicy("load_formula", cfg)
	require.ErrorContains(t, err, "router.load_weights")
	require.ErrorContains(t, err, "gpu")
}

func TestLoadFormulaHerdsUntilTheNextHeartbeat(t *testing.T) {
	p, f := policyOf(t, "load_formula"), fieldOf(1, cand("a", 1, 999, 0), cand("b", 1, 999, 0), cand("c", 1, 999, 0))
	require.Equal(t, map[string]int{"a": 3, "b": 3, "c": 3}, serve(p, f, 9, false), "equals take turns")
	f = renewed(f)
	f.Cands[1].CPU = -0.1
	require.Equal(t, map[string]int{"b": 9}, serve(p, f, 9, false), "as published")
	f = renewed(f)
	f.Cands[1].CPU, f.Cands[0].Queue, f.Cands[2].Queue = 0, 9, 0 // b does not tell: 0.45
	w := &loadFormula{queue: 1}
	require.Equal(t, map[string]int{"c": 2}, serve(w, f, 2, false))
	f.Cands[2].Limit = 0
	require.Equal(t, map[string]int{"b": 2}, serve(w, f, 2, false), "a queue that is not told counts as the mean")
}

func TestPrequalPrefersColdThenFast(t *testing.T) {
	// Sixteen devices: two hot and fast ones, one fast one, the others slow.
	var cs []Candidate
	for i := range 16 {
		cs = append(cs, cand(fmt.Sprintf("d%02d", i), 1, 99, 1))
		cs[i].Service = 100 * time.Millisecond
	}
	cs[3].Service, cs[5].Service, cs[9].Service = 5*time.Millisecond, 5*time.Millisecond, 20*time.Millisecond
	cs[3].Used, cs[5].Used = 3, 4
	p, f := policyOf(t, "prequal"), fieldOf(1, cs...)
	taken := map[int]int{}
	for i := range 400 {
		c := p.Pick(&Request{}, f)
		if i >= 40 { // the pool is warm: nearly all are in it
			taken[c.Index]++
		}
	}
	require.Greater(t, taken[9], 200, "fast and cold: %v", taken)
	require.Less(t, taken[3]+taken[5], 30, "faster, but hot: %v", taken)

	for i := range cs { // all that have a credit are hot
		cs[i].Limit, cs[i].Used = 1, 1
	}
	cs[3].Limit, cs[3].Used, cs[5].Limit, cs[5].Used = 9, 4, 9, 3
	cs[3].Service = time.Millisecond
	p, f = policyOf(t, "prequal"), fieldOf(1, cs...)
	both := 0
	for range 400 {
		c := p.Pick(&Request{}, f)
		require.Contains(t, []int{3, 5}, c.Index)
		if m, _ := f.Memo.(*probes); c.Index == 3 && slices.Contains(m.at[:m.n], 5) && slices.Contains(m.at[:m.n], 3) {
			both++
		}
	}
	require.Zero(t, both, "the fewest in flight, not the fastest")
}

func TestPrequalCountsBySlots(t *testing.T) {
	var cs []Candidate
	for i := range 12 {
		cs = append(cs, cand(fmt.Sprintf("d%02d", i), 1, 99, 1))
		cs[i].Service = 100 * time.Millisecond
	}
	cs[4] = cand("large", 8, 99, 5)
	cs[4].Service = 40 * time.Millisecond
	p, f := policyOf(t, "prequal"), fieldOf(1, cs...)
	large := 0
	for range 400 {
		if p.Pick(&Request{}, f).Index == 4 {
			large++
		}
	}
	require.Greater(t, large, 200, "five on eight slots are not hot")
}

func TestPrequalKeepsABoundedPoolOfRecentProbes(t *testing.T) {
	p, f := policyOf(t, "prequal"), fieldOf(1, fleetOf(500)...)
	seen := map[int32]bool{}
	for range 2000 {
		c := p.Pick(&Request{}, f)
		m, _ := f.Memo.(*probes)
		require.LessOrEqual(t, m.n, probesMost)
		once := map[int32]bool{}
		for _, i := range m.at[:m.n] {
			require.False(t, once[i], "a device is in the pool twice")
			once[i], seen[i] = true, true
		}
		f.give(c.Index)
		f.Cands[c.Index].Used--
	}
	require.Len(t, seen, 500, "all are probed sooner or later")
}

func TestExpectedFinishLeavesSlowDevicesOutUntilTheQueueIsLong(t *testing.T) {
	p, f := policyOf(t, "expected_finish"), fieldOf(1, cand("slow", 1, 2, 0), cand("fast", 2, 3, 0))
	f.Cands[0].Service, f.Cands[1].Service = 2*time.Second, 100*time.Millisecond
	var order []string
	waiting := 0
	for !slices.Contains(order, "slow") && waiting < 100 {
		got := p.Pick(&Request{Ahead: waiting}, f)
		if got.Index == Wait {
			require.True(t, got.Held)
			require.Greater(t, got.Until, waiting)
			for ahead := waiting; ahead < got.Until; ahead++ {
				require.Equal(t, Wait, p.Pick(&Request{Ahead: ahead}, f).Index, "it said that it would wait, with %d ahead", ahead)
			}
			require.NotEqual(t, Wait, p.Pick(&Request{Ahead: got.Until}, f).Index)
			order = append(order, "wait")
			waiting++
			continue
		}
		order = append(order, f.Cands[got.Index].Device)
		f.give(got.Index)
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
	p, f := policyOf(t, "expected_finish"), fieldOf(1, cand("a", 1, 2, 0), cand("b", 1, 2, 0), cand("c", 1, 2, 0))
	f.Cands[2].Service = time.Second
	require.Equal(t, map[string]int{"a": 1, "b": 1}, serve(p, f, 2, false))
}

// With fifo the order is that of arrival, whatever the priority, level and
// tenant; with another policy they count again, for what waits already too.
func TestFIFOOrdersByArrivalAlone(t *testing.T) {
	d, err := newDecider(testConfig(), policyOf(t, "fifo"), 1, nil)
	require.NoError(t, err)
	now := time.Now()
	d.fleet(Fleet{Devices: []device.Device{dev("d", 12, "*")}}, now)
	for i, tk := range []*task.Task{
		{ID: "low", Priority: task.Low, Tenant: "a"}, {ID: "normal", Tenant: "b"}, {ID: "level", Level: 9, Tenant: "b"},
		{ID: "second", Tenant: "b"}, {ID: "high", Priority: task.High, Tenant: "a"},
	} {
		tk.Model, tk.SubmittedAt = "m", now.Add(time.Duration(i-10)*time.Millisecond)
		require.True(t, d.add(newItem(tk, stream.TasksTopic(tk.Priority)), now))
	}
	order := func() (ids []string) {
		picks, _ := d.plan(now)
		for i := range picks {
			ids = append(ids, picks[i].item.task.ID)
			picks[i].pool().Used--
			d.giveUp(&picks[i])
		}
		return ids
	}
	arrived := []string{"low", "normal", "level", "second", "high"}
	require.Equal(t, arrived, order())
	d.setPolicy(policyOf(t, "priority"), "auto", t0)
	require.Equal(t, []string{"high", "level", "normal", "second", "low"}, order())
	d.setPolicy(policyOf(t, "fifo"), "auto", t0)
	require.Equal(t, arrived, order())
	require.True(t, d.window.reprioritize(device.Repriority{Key: d.window.byKey[task.Key{Tenant: "a", ID: "low"}].task.Key(), Priority: task.High, Level: 9}, now))
	require.Equal(t, arrived, order(), "a priority that changes changes no place in the line")
	d.setPolicy(policyOf(t, "expected_finish"), "auto", t0)
	require.Equal(t, "low", order()[0], "but it counts from then on")
	require.Equal(t, 5, d.window.len())
}
