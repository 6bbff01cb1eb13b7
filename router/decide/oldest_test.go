package decide

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/waiting"
	"github.com/batchyard/batchyard/task"
)

// oldest asks what waits, by the reason.
func (w *world) oldest(lowest map[Owner]int64) (map[waiting.Reason]waiting.Oldest, map[Owner]map[int64]bool) {
	r := w.d.Oldest(Question{
		Now: w.now, At: w.now, Lowest: lowest, Allow: time.Minute,
		Position: func(o Owner, offset int64) string { return fmt.Sprint(o.(*partition).source, "@", offset) },
	})
	out := map[waiting.Reason]waiting.Oldest{}
	for _, o := range r.List {
		out[o.Reason] = o
	}
	return out, r.Known
}

// A task that no device can run waits for that, in the window and aside, however long, and it is no stall.
func TestWaitingForADeviceIsNoStall(t *testing.T) {
	for want, change := range map[waiting.Reason]func(f *Fleet){
		waiting.NoDevice: func(f *Fleet) { f.Devices[0].Models = []string{"other"} },
		waiting.Silent:   func(f *Fleet) { f.Devices[0].Silent = true },
		waiting.Draining: func(f *Fleet) { f.Devices[0].Draining = true },
		waiting.Unserved: func(f *Fleet) { f.Devices[0].Unserved = true },
		waiting.BreakerOpen: func(f *Fleet) {
			f.Healths["d"] = device.Health{State: device.StateOpen, OpenUntil: t0.Add(24 * time.Hour)}
		},
		waiting.Throttled: func(f *Fleet) { f.Healths["d"] = device.Health{ThrottledUntil: t0.Add(24 * time.Hour)} },
	} {
		t.Run(string(want), func(t *testing.T) {
			f := fleetOf(dev("d", 1, "m"), dev("other", 1, "n"))
			f.Healths = map[string]device.Health{}
			change(&f)
			w := newWorld(t, testConfig(), f, time.Millisecond)
			many(w, 1000, func(int) *task.Task { return &task.Task{Tenant: "a", Model: "m"} })
			for range 3 {
				w.pass(time.Second)
				w.now = w.now.Add(time.Hour)
				got, _ := w.oldest(nil)
				require.Contains(t, got, want)
				require.True(t, got[want].Still.IsZero())
				require.NotContains(t, got, waiting.Stuck)
			}
			got, _ := w.oldest(nil)
			require.GreaterOrEqual(t, w.now.Sub(got[want].Since), 3*time.Hour)
			aside, _ := w.d.Aside(topicOf(""))
			require.Positive(t, aside)
		})
	}
}

// A task whose time has not come waits for it, in the window and aside.
func TestWaitingForATimeIsNoStall(t *testing.T) {
	w := newWorld(t, testConfig(), fleetOf(dev("d", 1, "m")), time.Millisecond)
	many(w, 1000, func(int) *task.Task { return &task.Task{Tenant: "a", Model: "m", NotBefore: t0.Add(24 * time.Hour)} })
	w.pass(time.Second)
	w.now = w.now.Add(time.Hour)
	got, _ := w.oldest(nil)
	require.Equal(t, []waiting.Reason{waiting.Later}, []waiting.Reason{got[waiting.Later].Reason})
	require.Len(t, got, 1)
	require.True(t, got[waiting.Later].Still.IsZero())

	w.now = w.now.Add(24 * time.Hour) // and nothing is done about it
	w.oldest(nil)
	w.now = w.now.Add(time.Minute)
	got, _ = w.oldest(nil)
	require.Equal(t, time.Minute, w.now.Sub(got[waiting.Stuck].Still))
	w.pass(10 * time.Second)
	got, _ = w.oldest(nil)
	require.NotContains(t, got, waiting.Stuck)
}

// Tasks behind others wait as long as these move. When no credit of their devices moves any more, that is seen.
func TestABacklogThatMovesIsNoStall(t *testing.T) {
	w := newWorld(t, testConfig(), fleetOf(dev("d", 1, "m")), 100*time.Millisecond)
	many(w, 5000, func(int) *task.Task { return &task.Task{Tenant: "a", Model: "m"} })
	for range 20 {
		w.pass(time.Second)
		got, _ := w.oldest(nil)
		require.NotContains(t, got, waiting.Stuck)
		require.LessOrEqual(t, w.now.Sub(got[waiting.Busy].Still), time.Second)
	}
	w.service = 0 // whatever is assigned from now on never ends
	for range 20 {
		w.pass(time.Second)
		w.oldest(nil)
	}
	got, _ := w.oldest(nil)
	require.GreaterOrEqual(t, w.now.Sub(got[waiting.Busy].Still), 15*time.Second)
	require.Equal(t, time.Minute, got[waiting.Busy].Allow)
	pool := device.Pool("d", device.ClassSingle)
	w.d.UpdateUsed(map[string]int{pool: w.used[pool]}) // a task of another router ended there, and the next one began
	got, _ = w.oldest(nil)
	require.Equal(t, w.now, got[waiting.Busy].Still)
}

// A task for which a device has room, and which is not assigned, stands still; as soon as one is assigned, none does.
func TestATaskThatADeviceHasRoomForStandsStill(t *testing.T) {
	w := newWorld(t, testConfig(), fleetOf(dev("d", 4, "m")), 0)
	many(w, 3, func(int) *task.Task { return &task.Task{Tenant: "a", Model: "m"} })
	w.read(w.log[0], 3) // and no round is made
	w.oldest(nil)
	w.now = w.now.Add(idleGrace)
	got, _ := w.oldest(nil)
	require.Equal(t, idleGrace, w.now.Sub(got[waiting.Stuck].Still))
	require.Equal(t, "tasks.normal@", got[waiting.Stuck].What[:13])
	w.d.Step(w.now)
	got, _ = w.oldest(nil)
	require.Empty(t, got)
}

// The record that holds up a partition is found wherever it is: in the window, aside, or on its way. One that is
// nowhere is not.
func TestRecordsThatHoldUpAPartitionAreFound(t *testing.T) {
	w := newWorld(t, testConfig(), Fleet{}, time.Millisecond)
	many(w, 1000, func(int) *task.Task { return &task.Task{Tenant: "a", Model: "m"} })
	many(w, 1, func(int) *task.Task { return &task.Task{Tenant: "a", Model: "m", NotBefore: t0.Add(time.Hour)} })
	w.pass(time.Second)
	p := w.log[0]
	for it := range w.d.Pending() {
		_, known := w.oldest(map[Owner]int64{p: it.Offset})
		require.True(t, known[p][it.Offset], "in the window")
	}
	heads := 0
	for l := range w.d.window.lists {
		_, known := w.oldest(map[Owner]int64{p: l.head.offset})
		require.True(t, known[p][l.head.offset], "aside")
		heads++
	}
	require.Positive(t, heads)
	_, known := w.oldest(map[Owner]int64{p: 5000})
	require.Empty(t, known)

	for l := range w.d.window.lists { // it is recalled, and never comes
		offset := l.head.offset
		w.d.RecallAt(p, offset)
		_, known = w.oldest(map[Owner]int64{p: offset})
		require.True(t, known[p][offset], "on its way")
		w.now = w.now.Add(time.Minute)
		got, _ := w.oldest(nil)
		require.Equal(t, time.Minute, w.now.Sub(got[waiting.Kafka].Still))
		break
	}
}

// One look at a full window and a million tasks aside, which a router takes once a second.
func BenchmarkOldest(b *testing.B) {
	cfg := testConfig()
	cfg.MaxPendingTasks = 4096
	w := newWorld(b, cfg, fleetOf(dev("d", 100, "m0")), 0)
	many(w, 1_000_000, func(i int) *task.Task { return &task.Task{Tenant: fmt.Sprint(i % 100), Model: fmt.Sprint("m", i%10)} })
	w.pass(time.Second)
	for b.Loop() {
		w.oldest(nil)
	}
	b.ReportMetric(float64(w.d.Len()), "tasks")
}
