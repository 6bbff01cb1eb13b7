package workers

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// busy returns a device with so many slots and tasks of one workload.
func busy(id string, slots, tasks int, service float64) *deviceLoad {
	return &deviceLoad{id: id, slots: float64(slots), load: float64(tasks) * service, service: service, takes: true, gives: max(0, tasks-slots)}
}

func total(moves []move) (n int) {
	for _, m := range moves {
		n += m.n
	}
	return n
}

func TestPlanMovesWaitingTasks(t *testing.T) {
	for name, c := range map[string]struct {
		all  []*deviceLoad
		want int
	}{
		"even":                    {[]*deviceLoad{busy("a", 1, 10, 100), busy("b", 1, 10, 100)}, 0},
		"about even":              {[]*deviceLoad{busy("a", 1, 12, 100), busy("b", 1, 9, 100)}, 0},
		"uneven":                  {[]*deviceLoad{busy("a", 1, 21, 1000), busy("b", 1, 1, 1000)}, 9},
		"more slots take more":    {[]*deviceLoad{busy("a", 1, 30, 1000), busy("b", 8, 0, 1000)}, 26},
		"nothing waits":           {[]*deviceLoad{busy("a", 8, 8, 1000), busy("b", 8, 0, 1000)}, 0},
		"slow devices don't help": {[]*deviceLoad{busy("a", 4, 20, 40), busy("b", 1, 0, 240)}, 0},
		"the cost is too high":    {[]*deviceLoad{busy("a", 1, 8, 10), busy("b", 1, 0, 10)}, 0},
		"even on the whole":       {append([]*deviceLoad{busy("a", 1, 14, 1000)}, evens(10, 10)...), 0},
		"one alone":               {[]*deviceLoad{busy("a", 1, 50, 1000)}, 0},
		"none":                    {nil, 0},
		"idle":                    {[]*deviceLoad{busy("a", 1, 0, 1000), busy("b", 1, 0, 1000)}, 0},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, c.want, total(plan(c.all, 0.2, moveCost, maxMoves))) })
	}
	a, b := busy("a", 1, 50, 1000), busy("b", 1, 0, 1000)
	b.takes = false
	require.Empty(t, plan([]*deviceLoad{a, b}, 0.2, moveCost, maxMoves))
	b.takes = true
	require.Equal(t, 3, total(plan([]*deviceLoad{a, b}, 0.2, moveCost, 3)), "it is bounded")
	moves := plan([]*deviceLoad{a, b}, 0.2, moveCost, maxMoves)
	require.Len(t, moves, 1)
	require.Equal(t, "a", moves[0].from)
	require.Equal(t, "b", moves[0].to)
	require.InDelta(t, 47_000, moves[0].here, 1)
	require.InDelta(t, 4_100, moves[0].there, 1)
}

func evens(n, tasks int) (out []*deviceLoad) {
	for i := range n {
		out = append(out, busy(fmt.Sprint("even", i), 1, tasks, 1000))
	}
	return out
}

// naive makes the plan by looking at all devices for each task.
func naive(all []*deviceLoad, spread float64, cost time.Duration, most int) map[string]int {
	out := map[string]int{}
	if spreadOf(all) <= spread {
		return out
	}
	for range most {
		var a, b *deviceLoad
		for _, s := range all {
			if s.gives > 0 && (a == nil || s.eta() > a.eta() || s.eta() == a.eta() && s.id < a.id) {
				a = s
			}
		}
		for _, s := range all {
			if s.takes && s != a && (b == nil || s.with() < b.with() || s.with() == b.with() && s.id < b.id) {
				b = s
			}
		}
		if a == nil || b == nil || b.with()+float64(cost.Milliseconds()) > (1-spread)*a.eta() {
			break
		}
		a.load, a.gives = max(0, a.load-a.service), a.gives-1
		b.load += b.service
		out[a.id+">"+b.id]++
	}
	return out
}

// For any fleet: only waiting tasks move, no work appears or vanishes, no device is later than the latest
// was before, a second plan moves nothing back, and plans from the same loads are the same.
func TestPlanInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var all, twin, slow []*deviceLoad
		before := map[string]*deviceLoad{}
		worst := 0.0
		for i := range rapid.IntRange(1, 20).Draw(t, "devices") {
			s := busy(fmt.Sprintf("d%02d", i), rapid.IntRange(1, 8).Draw(t, "slots"), rapid.IntRange(0, 200).Draw(t, "tasks"), rapid.Float64Range(0.1, 5000).Draw(t, "service"))
			s.takes = rapid.IntRange(0, 4).Draw(t, "takes") > 0
			s.gives = rapid.IntRange(0, s.gives).Draw(t, "gives")
			c, d := *s, *s
			slow = append(slow, &d)
			all, twin = append(all, s), append([]*deviceLoad{&c}, twin...)
			before[s.id] = &deviceLoad{id: c.id, slots: c.slots, load: c.load, service: c.service, takes: c.takes, gives: c.gives}
			worst = max(worst, s.eta())
		}
		spread := rapid.Float64Range(0.01, 1).Draw(t, "spread")
		cost := time.Duration(rapid.IntRange(0, 1000).Draw(t, "cost")) * time.Millisecond
		most := rapid.IntRange(0, 500).Draw(t, "most")
		uneven := spreadOf(all) > spread
		moves := plan(all, spread, cost, most)
		again := plan(twin, spread, cost, most)
		for _, ms := range [][]move{moves, again} {
			for i := range ms {
				ms[i].imbalance = 0 // a sum, whose last digit depends on the order
			}
		}
		require.ElementsMatch(t, moves, again)
		sums := map[string]int{}
		for _, m := range moves {
			sums[m.from+">"+m.to] = m.n
		}
		require.Equal(t, naive(slow, spread, cost, most), sums)
		if !uneven {
			require.Empty(t, moves)
		}
		require.LessOrEqual(t, total(moves), most)
		out, in, gave, took := map[string]int{}, map[string]int{}, map[string]bool{}, map[string]bool{}
		for _, m := range moves {
			require.NotEqual(t, m.from, m.to)
			require.Positive(t, m.n)
			require.LessOrEqual(t, m.there, (1-spread)*m.here)
			out[m.from] += m.n
			in[m.to] += m.n
			gave[m.from], took[m.to] = true, true
		}
		for _, s := range all {
			b := before[s.id]
			require.LessOrEqual(t, out[s.id], b.gives)
			if !b.takes {
				require.Zero(t, in[s.id])
			}
			require.False(t, gave[s.id] && took[s.id], "%s gives and takes", s.id)
			require.InDelta(t, b.load+float64(in[s.id]-out[s.id])*b.service, s.load, 1e-3)
			require.LessOrEqual(t, s.eta(), worst+1e-6)
			if took[s.id] { // its new tasks are done sooner than they would have been
				for _, m := range moves {
					if m.to == s.id {
						require.LessOrEqual(t, s.eta(), before[m.from].eta()+1e-6)
					}
				}
			}
		}
		if total(moves) == most {
			return // the plan was cut short
		}
		for _, s := range all { // moved tasks wait there now, and could move again
			s.gives = max(0, int(s.load/s.service)-int(s.slots))
		}
		for _, m := range plan(all, spread, cost, 1000) {
			require.False(t, took[m.from] && gave[m.to], "it moves back")
		}
	})
}

func BenchmarkPlan(b *testing.B) {
	for b.Loop() {
		all := make([]*deviceLoad, 0, 5000)
		for i := range cap(all) {
			all = append(all, busy(fmt.Sprint(i), 1+i%4, i%50, float64(20+i%200)))
		}
		plan(all, 0.2, moveCost, maxMoves)
	}
}
