package router

import (
	"container/heap"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

func TestRanks(t *testing.T) {
	cfg := testConfig()
	now := time.Unix(1_000_000, 0)
	rank := func(p task.Priority, level int, ago time.Duration) int64 {
		return rankOf(cfg, &task.Task{Priority: p, Level: level, SubmittedAt: now.Add(-ago)}, now)
	}
	require.Less(t, rank(task.High, 0, 0), rank(task.Normal, 0, 0))
	require.Less(t, rank(task.Normal, 0, 0), rank(task.Low, 0, 0))
	require.Less(t, rank(task.Normal, 9, 0), rank(task.Normal, 0, 0), "a higher level goes first")
	require.Less(t, rank(task.High, 0, 0), rank(task.Normal, 9, 0), "a level is no priority")
	require.Less(t, rank(task.Normal, 0, time.Second), rank(task.Normal, 0, 0), "first come, first served")
	require.Less(t, rank(task.Normal, 0, 31*time.Second), rank(task.High, 0, 0), "a normal task does not starve")
	require.Less(t, rank(task.High, 0, 0), rank(task.Normal, 0, 29*time.Second))
	require.Less(t, rank(task.Low, 0, 121*time.Second), rank(task.High, 0, 0), "a low task does not starve")
	require.Equal(t, rank(task.High, 0, 0), rank(task.High, 0, -time.Hour), "a clock ahead neither helps nor hurts")
	require.Equal(t, rank(task.High, 0, 0), rankOf(cfg, &task.Task{Priority: task.High}, now), "no time of submission is now")
}

func TestClassesAreWhatTasksNeedOfADevice(t *testing.T) {
	w := newWindow(testConfig())
	a := w.classOf(&task.Task{Model: "m", Endpoint: task.EndpointChat, Needs: []string{"x", "y"}})
	require.Same(t, a, w.classOf(&task.Task{Model: "m", Endpoint: task.EndpointResponses, Needs: []string{"y", "x"}}))
	for _, other := range []*task.Task{
		{Model: "n", Endpoint: task.EndpointChat, Needs: []string{"x", "y"}},
		{Model: "m", Endpoint: task.EndpointEmbeddings, Needs: []string{"x", "y"}},
		{Model: "m", Endpoint: task.EndpointChat, Needs: []string{"x"}},
		{Model: "m", Endpoint: task.EndpointChat, Needs: []string{"x", "y"}, Progress: &task.Progress{Exclude: []string{"d"}}},
		{Model: "m", Endpoint: task.EndpointChat},
	} {
		require.NotSame(t, a, w.classOf(other))
	}
}

// model is what the window should hold, kept the simple way.
type model struct {
	at    map[*item]string // ready, waiting, out (popped)
	wakes map[*item]time.Time
}

func (m *model) check(t *rapid.T, w *window) {
	require.Equal(t, len(m.at), w.len())
	src, bytes, inHeaps := map[string]int{}, map[string]int64{}, 0
	for it, where := range m.at {
		src[it.rec.Topic]++
		bytes[it.rec.Topic] += int64(len(it.rec.Value))
		require.Same(t, it, w.byKey[it.task.Key()])
		if where == "ready" {
			inHeaps++
			require.Same(t, it.class, w.classes[it.class.key])
			require.Same(t, it, it.class.ready[it.index])
		} else {
			require.Negative(t, it.index)
		}
		if at, ok := m.wakes[it]; ok {
			require.Same(t, it, w.wakes[it.wakeAt].item)
			require.True(t, at.Equal(w.wakes[it.wakeAt].wakeTime), "%s: %s is not %s", where, w.wakes[it.wakeAt].wakeTime, at)
		} else {
			require.Negative(t, it.wakeAt)
		}
	}
	require.Len(t, w.wakes, len(m.wakes))
	for topic, n := range w.bySrc {
		require.Equal(t, src[topic], n)
		require.Equal(t, bytes[topic], w.bytes[topic])
	}
	n := 0
	for key, c := range w.classes {
		require.Equal(t, key, c.key)
		n += c.ready.Len()
		for i, it := range c.ready {
			require.Equal(t, i, it.index)
			if i > 0 {
				require.LessOrEqual(t, c.ready[(i-1)/2].rank, it.rank)
			}
		}
	}
	require.Equal(t, inHeaps, n)
	var first time.Time
	for _, at := range m.wakes {
		if first.IsZero() || at.Before(first) {
			first = at
		}
	}
	require.True(t, first.Equal(w.next()))
}

// wakeOf says when the item has to be looked at next.
func wakeOf(it *item, now time.Time) (time.Time, bool) {
	at := it.task.Deadline
	if it.ready.After(now) && (at.IsZero() || it.ready.Before(at)) {
		at = it.ready
	}
	return at, !at.IsZero()
}

func TestWindowAgainstAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, m := newWindow(testConfig()), &model{at: map[*item]string{}, wakes: map[*item]time.Time{}}
		now := time.Unix(1_000_000, 0)
		var ids int
		drop := func(it *item) { delete(m.at, it); delete(m.wakes, it) }
		pick := func(t *rapid.T, where ...string) *item {
			var all []*item
			for it, at := range m.at {
				if len(where) == 0 || slices.Contains(where, at) {
					all = append(all, it)
				}
			}
			if len(all) == 0 {
				t.Skip("nothing to pick")
			}
			slices.SortFunc(all, func(a, b *item) int { return int(a.rec.Offset - b.rec.Offset) })
			return rapid.SampledFrom(all).Draw(t, "item")
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				ids++
				tk := &task.Task{ID: fmt.Sprint(ids), Model: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "model"), SubmittedAt: now,
					Priority: rapid.SampledFrom(task.Priorities).Draw(t, "priority"), Level: rapid.IntRange(0, 9).Draw(t, "level")}
				if s := rapid.IntRange(-2, 5).Draw(t, "deadline"); s != 0 {
					tk.Deadline = now.Add(time.Duration(s) * time.Second)
				}
				if s := rapid.IntRange(-2, 5).Draw(t, "not before"); s != 0 {
					tk.NotBefore = now.Add(time.Duration(s) * time.Second)
				}
				it := newItem(tk, rapid.SampledFrom([]string{stream.TasksHigh, stream.TasksLow}).Draw(t, "topic"))
				require.True(t, w.add(it, now))
				m.at[it] = "ready"
				if it.ready.After(now) {
					m.at[it] = "waiting"
				}
				if at, ok := wakeOf(it, now); ok {
					m.wakes[it] = at
				}
			},
			"add again": func(t *rapid.T) {
				old := pick(t)
				require.False(t, w.add(newItem(&task.Task{ID: old.task.ID, Model: "z"}, stream.TasksHigh), now))
			},
			"remove": func(t *rapid.T) {
				it := pick(t)
				w.remove(it)
				w.remove(it) // twice is once
				drop(it)
			},
			"pop": func(t *rapid.T) {
				c := pick(t, "ready").class
				best := c.ready[0]
				for it, at := range m.at {
					if at == "ready" && it.class == c {
						require.GreaterOrEqual(t, it.rank, best.rank)
					}
				}
				require.Same(t, best, c.pop())
				if c.ready.Len() == 0 && rapid.Bool().Draw(t, "tidy") {
					w.tidy(c)
				}
				m.at[best] = "out"
			},
			"back": func(t *rapid.T) {
				it := pick(t, "out")
				w.back(it)
				m.at[it] = "ready"
			},
			"due": func(t *rapid.T) {
				for it, at := range m.at { // nothing is out while time passes
					if at == "out" {
						w.back(it)
						m.at[it] = "ready"
					}
				}
				now = now.Add(time.Duration(rapid.IntRange(0, 3).Draw(t, "seconds")) * time.Second)
				var gone []*item
				w.due(now, func(it *item) { gone = append(gone, it) })
				for it, at := range m.wakes {
					switch dl := it.task.Deadline; {
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
		require.Empty(t, w.classes, "classes without tasks are tidied away")
		require.Empty(t, w.byKey)
		require.Empty(t, w.wakes)
	})
}

// Popped tasks come back to a class that was tidied away and made anew meanwhile.
func TestBackIntoAClassThatWasMadeAnew(t *testing.T) {
	w := newWindow(testConfig())
	now := time.Now()
	a, b := newItem(&task.Task{Model: "m"}, stream.TasksNormal), newItem(&task.Task{Model: "m"}, stream.TasksNormal)
	require.True(t, w.add(a, now))
	c := a.class
	require.Same(t, a, c.pop())
	w.tidy(c)
	require.True(t, w.add(b, now))
	require.NotSame(t, c, b.class)
	w.back(a)
	require.Len(t, w.classes, 1)
	require.Len(t, b.class.ready, 2)
	require.Same(t, b.class, a.class)
	heap.Init(&b.class.ready)
}

// A task that was parked for want of a device comes back when one joins; one
// that was parked for another reason, or has a time of its own, does not.
func TestParkedTasksComeBackWithTheirDevice(t *testing.T) {
	now := time.Unix(1000, 0)
	w := newWindow(Config{})
	add := func(id, model string, early bool, notBefore time.Time) *item {
		it := &item{
			task: &task.Task{ID: id, Tenant: "t", Model: model, Endpoint: task.EndpointChat, NotBefore: notBefore},
			rec:  &stream.Record{Topic: stream.TasksParked}, ready: now.Add(time.Minute), early: early, index: -1,
		}
		require.True(t, w.add(it, now))
		return it
	}
	able := add("able", "here", true, time.Time{})
	unable := add("unable", "nowhere", true, time.Time{})
	busy := add("busy", "here", false, time.Time{})
	later := add("later", "here", true, now.Add(30*time.Second))

	w.wakeEarly(now, func(c *class) bool { return c.model == "here" })
	require.GreaterOrEqual(t, able.index, 0)
	for _, it := range []*item{unable, busy, later} {
		require.Equal(t, -1, it.index, it.task.ID)
	}
	require.Equal(t, 1, w.classes["here"].ready.Len())
	w.due(now.Add(time.Minute), func(*item) { t.Fatal("none has a deadline") })
	for _, it := range []*item{unable, busy, later} {
		require.GreaterOrEqual(t, it.index, 0, it.task.ID)
	}
}
