package decide

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
)

func TestRanks(t *testing.T) {
	w := newWindow(testConfig())
	now := time.Unix(1_000_000, 0)
	rank := func(p task.Priority, level int, ago time.Duration) int64 {
		return w.rank(&task.Task{Priority: p, Level: level, SubmittedAt: now.Add(-ago)}, now)
	}
	require.Less(t, rank(task.Normal, 9, 0), rank(task.Normal, 0, 0), "a higher level goes first")
	require.Less(t, rank(task.Normal, 0, time.Second), rank(task.Normal, 0, 0), "first come, first served")
	require.Less(t, rank(task.Low, 0, 19*time.Second), rank(task.Low, 9, 0), "the lowest level must not starve")
	require.Less(t, rank(task.Low, 9, 0), rank(task.Low, 0, 17*time.Second))
	require.Equal(t, rank(task.High, 0, 0), rank(task.High, 0, -time.Hour), "a fast clock neither helps nor hurts")
	require.Equal(t, rank(task.High, 0, 0), w.rank(&task.Task{Priority: task.High}, now), "without a time of submission, it is now")
}

func TestDemandIsWhatATaskNeedsOfADevice(t *testing.T) {
	w := newWindow(testConfig())
	a := w.demandOf(&task.Task{Model: "m", Endpoint: task.EndpointChat, Needs: []string{"x", "y"}})
	require.Same(t, a, w.demandOf(&task.Task{Model: "m", Endpoint: task.EndpointChat, Needs: []string{"y", "x"}, Input: task.Input(`{}`)}))
	for _, other := range []*task.Task{
		{Model: "n", Endpoint: task.EndpointChat, Needs: []string{"x", "y"}},
		{Model: "m", Endpoint: task.EndpointEmbeddings, Needs: []string{"x", "y"}},
		{Model: "m", Endpoint: task.EndpointChat, Needs: []string{"x"}},
		{Model: "m", Endpoint: task.EndpointChat, Needs: []string{"x", "y"}, Progress: &task.Progress{Exclude: []string{"d"}}},
		{Model: "m", Endpoint: task.EndpointChat},
		{Model: "m", Endpoint: task.EndpointResponses, Needs: []string{"x", "y"}},
		{Model: "m", Endpoint: task.EndpointChat, Needs: []string{"x", "y"}, Input: make(task.Input, 1024)},
		{Model: "m", Endpoint: task.EndpointChat, Needs: []string{"x", "y"}, Progress: &task.Progress{Attempts: []task.Attempt{{Model: "m", DeviceID: "d", Class: task.ClassDeclined}}}},
	} {
		require.NotSame(t, a, w.demandOf(other))
	}
}

// model is what the window should hold, in the simplest form.
type model struct {
	at    map[*Item]string // ready, waiting, out (dequeued)
	wakes map[*Item]time.Time
}

func (m *model) check(t *rapid.T, w *window) {
	require.Equal(t, len(m.at), w.len())
	src, bytes, ready := map[string]int{}, map[string]int64{}, 0
	for it, where := range m.at {
		src[it.Source]++
		bytes[it.Source] += it.Size
		require.Same(t, it, w.byKey[it.Task.Key()])
		require.Same(t, it.demand, w.demands[it.demand.key])
		require.Same(t, it.flow, w.flows[flowKey{it.Task.Tenant, priorityIndex(it.Task.Priority)}])
		if where == "ready" {
			ready++
			require.Same(t, it.queue, it.demand.queues[it.flow])
			require.Same(t, it, it.queue.ready.all[it.index])
		} else {
			require.Negative(t, it.index)
		}
		if at, ok := m.wakes[it]; ok {
			k := w.wakes.all[it.wakeAt]
			require.Same(t, it, k.item)
			require.True(t, at.Equal(k.when), "%s: %s is not %s", where, k.when, at)
		} else {
			require.Negative(t, it.wakeAt)
		}
	}
	require.Len(t, w.wakes.all, len(m.wakes))
	for _, s := range w.sources {
		require.Equal(t, src[s.name], s.tasks)
		require.Equal(t, bytes[s.name], s.bytes)
	}
	require.Equal(t, ready, w.ready)
	m.checkQueues(t, w)
	var first time.Time
	for _, at := range m.wakes {
		if first.IsZero() || at.Before(first) {
			first = at
		}
	}
	require.True(t, first.Equal(w.next()))
}

// checkQueues walks the heaps of classes, flows and queues: each ready task is in one of them, and each
// is in order.
func (m *model) checkQueues(t *rapid.T, w *window) {
	ready, scheduled := 0, 0
	perFlow := map[*flow]int{}
	for key, d := range w.demands {
		require.Equal(t, key, d.key)
		own := 0
		for f, q := range d.queues {
			ordered(t, &q.ready, func(it *Item) int { return it.index })
			ready += q.ready.len()
			own += q.ready.len()
			if q.ready.len() > 0 {
				perFlow[f]++
			}
			if q.at >= 0 {
				scheduled++
				require.False(t, q.suspended)
				require.Same(t, q, f.queues.all[q.at])
			} else {
				require.True(t, q.ready.len() == 0 || q.suspended, "a queue with tasks is neither scheduled nor suspended")
			}
		}
		require.Equal(t, own, d.ready)
	}
	require.Equal(t, ready, w.ready)
	backlogged := [priorities]int{}
	for key, f := range w.flows {
		require.Equal(t, perFlow[f], f.backlogged)
		backlogged[key.priority] += f.backlogged
		ordered(t, &f.queues, func(q *queue) int { return q.at })
		require.Equal(t, f.queues.len() > 0, f.at >= 0)
		scheduled -= f.queues.len()
	}
	require.Zero(t, scheduled)
	for i, c := range w.classes {
		require.Equal(t, backlogged[i], c.backlogged)
		ordered(t, &c.flows, func(f *flow) int { return f.at })
	}
}

func ordered[T any](t *rapid.T, h *heapOf[T], at func(T) int) {
	for i, x := range h.all {
		require.Equal(t, i, at(x))
		require.False(t, i > 0 && h.less(x, h.all[(i-1)/2]), "the heap is out of order")
	}
}

// wakeOf is when the item has to be looked at next.
func wakeOf(it *Item, now time.Time) (time.Time, bool) {
	at := it.Task.Deadline
	if it.ReadyAt.After(now) && (at.IsZero() || it.ReadyAt.Before(at)) {
		at = it.ReadyAt
	}
	return at, !at.IsZero()
}

func TestWindowAgainstAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, m := newWindow(testConfig()), &model{at: map[*Item]string{}, wakes: map[*Item]time.Time{}}
		now := time.Unix(1_000_000, 0)
		var ids int
		drop := func(it *Item) { delete(m.at, it); delete(m.wakes, it) }
		pick := func(t *rapid.T, where ...string) *Item {
			var all []*Item
			for it, at := range m.at {
				if len(where) == 0 || slices.Contains(where, at) {
					all = append(all, it)
				}
			}
			if len(all) == 0 {
				t.Skip("nothing to pick")
			}
			slices.SortFunc(all, func(a, b *Item) int { return offsetOf(a) - offsetOf(b) })
			return rapid.SampledFrom(all).Draw(t, "item")
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				ids++
				tk := &task.Task{ID: fmt.Sprint(ids), Model: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "model"), SubmittedAt: now,
					Priority: rapid.SampledFrom(task.Priorities).Draw(t, "priority"), Level: rapid.IntRange(0, 9).Draw(t, "level"), Tenant: rapid.SampledFrom([]string{"t", "u", "v"}).Draw(t, "tenant")}
				if s := rapid.IntRange(-2, 5).Draw(t, "deadline"); s != 0 {
					tk.Deadline = now.Add(time.Duration(s) * time.Second)
				}
				if s := rapid.IntRange(-2, 5).Draw(t, "not before"); s != 0 {
					tk.NotBefore = now.Add(time.Duration(s) * time.Second)
				}
				it := newItem(tk, rapid.SampledFrom([]string{topicOf(task.High), topicOf(task.Low)}).Draw(t, "topic"))
				require.True(t, w.add(it, now))
				m.at[it] = "ready"
				if it.ReadyAt.After(now) {
					m.at[it] = "waiting"
				}
				if at, ok := wakeOf(it, now); ok {
					m.wakes[it] = at
				}
			},
			"add again": func(t *rapid.T) {
				old := pick(t)
				require.False(t, w.add(newItem(&task.Task{ID: old.Task.ID, Tenant: old.Task.Tenant, Model: "z"}, topicOf(task.High)), now))
			},
			"remove": func(t *rapid.T) {
				it := pick(t)
				w.remove(it)
				w.remove(it) // the second call does nothing
				drop(it)
			},
			"pop": func(t *rapid.T) {
				q := pick(t, "ready").queue
				best := q.ready.first()
				for it, at := range m.at {
					if at == "ready" && it.queue == q {
						require.GreaterOrEqual(t, it.rank, best.rank)
					}
				}
				w.dequeue(best)
				m.at[best] = "out"
			},
			"suspend": func(t *rapid.T) {
				if q := pick(t, "ready").queue; q.at >= 0 {
					w.suspend(q)
				}
			},
			"resume": func(t *rapid.T) {
				if q := pick(t, "ready").queue; q.suspended {
					w.resume(q)
				}
			},
			"serve": func(t *rapid.T) {
				q, _ := w.nextQueue()
				if q == nil {
					t.Skip("no task waits")
				}
				w.charge(q, rapid.Float64Range(0, 1).Draw(t, "seconds"), byPriority)
			},
			"reprioritize": func(t *rapid.T) {
				it := pick(t)
				p, l := rapid.SampledFrom(task.Priorities).Draw(t, "priority"), rapid.IntRange(-1, 9).Draw(t, "level")
				require.True(t, w.reprioritize(device.PriorityChange{Key: it.Task.Key(), Priority: p, Level: l}, now))
				require.Equal(t, p, it.Task.Priority)
				require.False(t, w.reprioritize(device.PriorityChange{Key: task.Key{ID: "unknown"}}, now))
			},
			"sweep": func(*rapid.T) { w.sweep() },
			"enqueue": func(t *rapid.T) {
				it := pick(t, "out")
				w.enqueue(it)
				m.at[it] = "ready"
			},
			"due": func(t *rapid.T) {
				for it, at := range m.at { // no item is dequeued while time passes
					if at == "out" {
						w.enqueue(it)
						m.at[it] = "ready"
					}
				}
				now = now.Add(time.Duration(rapid.IntRange(0, 3).Draw(t, "seconds")) * time.Second)
				var gone []*Item
				w.due(now, func(it *Item) { gone = append(gone, it) })
				for it, at := range m.wakes {
					switch dl := it.Task.Deadline; {
					case at.After(now):
					case !dl.IsZero() && !dl.After(now):
						require.Contains(t, gone, it)
						drop(it)
					default:
						m.at[it] = "ready"
						delete(m.wakes, it)
						if !dl.IsZero() {
							m.wakes[it] = dl
						}
					}
				}
				for _, it := range gone {
					require.NotContains(t, m.at, it)
				}
			},
			"": func(t *rapid.T) { m.check(t, w) },
		})
		for it := range m.at {
			w.remove(it)
		}
		w.sweep()
		require.Empty(t, w.demands, "demands without tasks must be swept")
		require.Empty(t, w.byKey)
		require.Empty(t, w.wakes.all)
		require.Zero(t, w.ready)
	})
}

// served takes n tasks in the order of the window, 10 ms of work each, and counts them by name.
func served(w *window, n int, name func(*Item) string) map[string]int {
	got := map[string]int{}
	for range n {
		q, _ := w.nextQueue()
		if q == nil {
			break
		}
		it := q.ready.first()
		got[name(it)]++
		w.charge(q, 0.01, byPriority)
		w.remove(it)
	}
	return got
}

func fill(t *testing.T, w *window, n int, tenant string, p task.Priority) {
	t.Helper()
	for range n {
		require.True(t, w.add(newItem(&task.Task{Model: "m", Tenant: tenant, Priority: p, Endpoint: task.EndpointChat}, topicOf(p)), time.Now()))
	}
}

func TestPrioritiesAreStrictButNoneStarves(t *testing.T) {
	w := newWindow(testConfig())
	fill(t, w, 3000, "t", task.Low)
	fill(t, w, 3000, "t", task.Normal)
	fill(t, w, 1000, "t", task.High)
	got := served(w, 1000, func(it *Item) string { return string(it.Task.Priority) })
	require.InDelta(t, 740, got["high"], 3)
	require.InDelta(t, 200, got["normal"], 3, "share_normal")
	require.InDelta(t, 60, got["low"], 3, "share_low")
}

// What a priority got while no higher one had tasks is not held against it, and a priority without tasks
// saves nothing up.
func TestSharesDoNotLookBack(t *testing.T) {
	w := newWindow(testConfig())
	fill(t, w, 5000, "t", task.Low)
	require.Equal(t, map[string]int{"low": 4000}, served(w, 4000, func(it *Item) string { return string(it.Task.Priority) }))
	fill(t, w, 1000, "t", task.High)
	got := served(w, 200, func(it *Item) string { return string(it.Task.Priority) })
	require.InDelta(t, 12, got["low"], 2)

	w = newWindow(testConfig())
	fill(t, w, 5000, "t", task.High)
	served(w, 4000, func(*Item) string { return "" })
	fill(t, w, 500, "t", task.Low)
	got = served(w, 200, func(it *Item) string { return string(it.Task.Priority) })
	require.InDelta(t, 12, got["low"], 2)
}

func TestTenantsShareByWeight(t *testing.T) {
	cfg := testConfig()
	cfg.TenantWeights = map[string]float64{"big": 3}
	w := newWindow(cfg)
	fill(t, w, 4000, "many", task.Normal)
	served(w, 1000, func(*Item) string { return "" })
	fill(t, w, 4000, "big", task.Normal)
	fill(t, w, 4000, "small", task.Normal)
	got := served(w, 1000, func(it *Item) string { return it.Task.Tenant })
	require.InDelta(t, 600, got["big"], 5)
	require.InDelta(t, 200, got["small"], 5, "a tenant that comes late gets its share and no more")
	require.InDelta(t, 200, got["many"], 5)
}

func first(w *window) *Item {
	q, _ := w.nextQueue()
	return q.ready.first()
}

func TestReprioritizeMovesAWaitingTask(t *testing.T) {
	w := newWindow(testConfig())
	fill(t, w, 100, "t", task.Normal)
	fill(t, w, 100, "u", task.Low)
	last := newItem(&task.Task{ID: "last", Model: "m", Tenant: "u", Priority: task.Low}, topicOf(task.Low))
	require.True(t, w.add(last, time.Now()))
	require.NotSame(t, last, first(w))
	require.True(t, w.reprioritize(device.PriorityChange{Key: last.Task.Key(), Priority: task.High, Level: -1}, time.Now()))
	require.Same(t, last, first(w))
}

// A task that was parked for want of a device becomes ready when one joins. A task that was parked for
// another reason, or has a not-before time, does not.

// An item whose events are not acknowledged keeps its record: if they are refused, the record is read again,
// and would otherwise be read twice.
func TestWhatIsNotSettledIsNotSetAside(t *testing.T) {
	d, _ := newTestDecider(t, testConfig())
	var open []*origin
	for i := range 10 {
		it := newItem(&task.Task{ID: fmt.Sprint(i), Model: "m", Priority: task.Low}, topicOf(task.Low))
		o := &origin{open: i%2 == 0}
		it.ReadyAt, it.Origin, it.Owner, it.Offset = t0.Add(time.Hour), o, &partition{}, int64(i)
		open = append(open, o)
		d.Add(it, t0)
	}
	require.Len(t, d.expendable(topicOf(task.Low), nil, t0), 5)
	for _, o := range open {
		o.open = false
	}
	require.Len(t, d.expendable(topicOf(task.Low), nil, t0), 10)
}
