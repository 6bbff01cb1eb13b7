package workers

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/testenv"
)

// register adds a registry whose devices become silent after the timeout.
func (y *yard) register(timeout time.Duration) {
	y.deps.Registry = store.NewRegistry(testenv.RedisAt(y.t, y.redis.Addr()), store.Config{Timeout: timeout}, "t:")
}

func (y *yard) beat(id string, draining bool) {
	y.t.Helper()
	d := y.fleet.Device(id)
	_, err := y.deps.Registry.Beat(y.t.Context(), device.Device{ID: id, URL: d.URL(), Models: []string{"m"}, Slots: d.Spec().Slots, Draining: draining, Queue: -1, InFlight: -1, Weight: 1})
	require.NoError(y.t, err)
}

// reasonsOf returns the details of the events with which a task was written back.
func (y *yard) reasonsOf(id string) (out []string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	for _, e := range y.events {
		if e.Action == task.TaskRequeued && e.ResourceID == id {
			out = append(out, string(e.Detail))
		}
	}
	return out
}

// When a device takes no more work, queued tasks go elsewhere and running ones may finish.
func TestTheQueueOfADeviceThatIsAwayGoesElsewhere(t *testing.T) {
	for name, c := range map[string]struct {
		reason string
		away   func(y *yard)
	}{
		"silent":   {awaySilent, func(y *yard) {}},
		"draining": {awayDraining, func(y *yard) { y.beat("d", true) }},
		"gone":     {awayLeft, func(y *yard) { require.NoError(y.t, y.deps.Registry.Leave(y.t.Context(), "d")) }},
	} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t, fleet.Spec{ID: "d", Slots: 1})
			y.register(map[bool]time.Duration{true: time.Second, false: time.Hour}[name == "silent"])
			s, _ := y.workers(testConfig())
			d := y.fleet.Device("d")
			d.SetFault(fleet.Fault{Kind: fleet.Hang})
			y.beat("d", false)
			y.send("d", chat("runs"), chat("waits-1"))
			y.eventually("one runs", func() bool { return d.Stats().InFlight == 1 })
			y.send("d", embed("waits-2", `"x"`))
			y.eventually("it is seen", func() bool {
				r := s.allRunners()[0]
				r.mu.Lock()
				defer r.mu.Unlock()
				return r.seen
			})
			c.away(y)
			for _, id := range []string{"waits-1", "waits-2"} {
				tk := y.back(id, 1)
				require.Zero(t, tk.Tried())
				require.Empty(t, tk.Progress.Exclude)
				require.False(t, tk.Progress.Moved)
				require.NotZero(t, tk.Progress.BackoffMS, "or it would come back at once")
			}
			y.send("d", chat("late"))
			y.back("late", 1)
			for _, id := range []string{"waits-1", "waits-2", "late"} {
				y.eventually("it is recorded", func() bool { return len(y.reasonsOf(id)) == 1 })
				require.Contains(t, y.reasonsOf(id)[0], c.reason)
			}
			require.EqualValues(t, 1, d.Stats().Requests)
			require.Equal(t, 1, d.Stats().InFlight)

			require.NoError(t, y.deps.Cancels.Cancel(t.Context(), task.Key{Tenant: task.DefaultTenant, ID: "runs"}))
			d.ClearFault()
			y.register(time.Hour) // only the test's; the workers keep theirs
			y.eventually("it is back and runs again", func() bool {
				y.beat("d", false)
				id := fmt.Sprint("again-", time.Now().UnixNano())
				y.send("d", chat(id))
				ended := false
				y.until("its end", func() bool {
					ended = len(y.results[id]) > 0
					return ended || slices.ContainsFunc(y.requeued, func(tk *task.Task) bool { return tk.ID == id })
				})
				return ended
			})
			y.committed()
		})
	}
}

// An emptied registry says nothing about a device.
func TestADeviceMayBeMissingFromTheRegistryForAWhile(t *testing.T) {
	_, r := bare(t, "d")
	well := &device.Device{ID: "d"}
	for range 10 {
		r.registered(nil, regularCheck)
	}
	require.Empty(t, r.away, "it has never sent a heartbeat")
	for range 3 {
		r.registered(well, regularCheck)
		for range maxMissedChecks - 1 {
			r.registered(nil, regularCheck)
			r.registered(nil, triggeredCheck)
		}
		require.Empty(t, r.away)
	}
	r.registered(nil, regularCheck)
	require.Equal(t, awayLeft, r.away)
	r.registered(&device.Device{ID: "d", Draining: true}, triggeredCheck)
	require.Equal(t, awayDraining, r.away)
	r.registered(nil, regularCheck)
	require.Equal(t, awayDraining, r.away, "the last known reason stays")
	r.registered(well, triggeredCheck)
	require.Empty(t, r.away)
}

// Tasks that wait at a busy device move to where they are done sooner, but only once: a router that
// sends them here again has its reasons.
func TestWaitingTasksMoveToIdleDevicesOnce(t *testing.T) {
	for _, sendTo := range []string{"idle", "busy"} {
		t.Run(sendTo, func(t *testing.T) {
			y := newYard(t, fleet.Spec{ID: "busy", Slots: 1, ServiceTime: 200 * time.Millisecond}, fleet.Spec{ID: "idle", Slots: 1, ServiceTime: 200 * time.Millisecond},
				fleet.Spec{ID: "other", Slots: 8})
			y.register(time.Hour)
			cfg := testConfig()
			cfg.RebalanceEvery = time.Second // longer than it takes to come back: a check does not see tasks on their way
			y.workers(cfg)
			y.beat("busy", false)
			y.beat("idle", false)
			y.send("busy", chat("first"))
			y.send("idle", chat("first-too"))
			y.only("first")
			y.only("first-too")
			y.eventually("their speeds are known", func() bool {
				rates, _, err := y.deps.Rates.Load(t.Context())
				return err == nil && len(rates) == 2
			})
			y.mu.Lock()
			y.again = func(tk *task.Task) { // at once: tasks on their way use no credit
				if err := y.client.Produce(context.Background(), stream.Message{Topic: stream.Batches, Key: sendTo, Value: frameOf(t, y.fleet.Device(sendTo), y.deps.Credits, tk)}); err != nil {
					t.Error(err)
				}
			}
			y.mu.Unlock()
			special := chat("special")
			special.Needs = []string{"gpu"} // no other device has it
			tasks := []*task.Task{special}
			for i := range 15 {
				tasks = append(tasks, chat(fmt.Sprint("t-", i)))
			}
			y.send("busy", tasks...)
			y.until("every result", func() bool { return len(y.results) == 18 })
			y.committed()
			moved := map[string]int{}
			y.mu.Lock()
			for _, tk := range y.requeued {
				moved[tk.ID]++
				require.True(t, tk.Progress.Moved)
				require.Zero(t, tk.Progress.BackoffMS)
				require.Empty(t, tk.Progress.Exclude)
				require.Zero(t, tk.Tried())
			}
			y.mu.Unlock()
			require.NotEmpty(t, moved)
			for id, n := range moved {
				require.Equal(t, 1, n, id)
				require.NotEqual(t, "special", id)
				require.Contains(t, y.reasonsOf(id)[0], `"reason":"moved"`)
				require.Contains(t, y.reasonsOf(id)[0], `"idle":["idle"]`)
				require.Equal(t, sendTo, y.only(id).DeviceID)
				require.Len(t, y.only(id).Attempts, 1)
			}
			if sendTo == "idle" {
				require.LessOrEqual(t, len(moved), 12, "about half")
				require.NotContains(t, moved, "t-0", "the first in the queue gains least")
			}
			y.eventually("credits are given back", func() bool { return y.creditsUsed("busy")+y.creditsUsed("idle") == 0 })
		})
	}
}

func TestOnlyMovableTasksAreTaken(t *testing.T) {
	_, r := bare(t, "d")
	add := func(id string, change func(w *work)) {
		w := &work{assignment: task.Assignment{Task: *chat(id)}}
		w.assignment.Task.Normalize(time.Now())
		change(w)
		r.queue = append(r.queue, &call{works: []*work{w}})
	}
	nothing := func(*work) {}
	add("first", nothing)
	add("tried", func(w *work) { w.localAttempts = 1 })
	add("moved", func(w *work) { w.assignment.Task.Progress = &task.Progress{Moved: true} })
	add("not there", func(w *work) { w.assignment.Task.Progress = &task.Progress{Exclude: []string{"e"}} })
	add("elsewhere", func(w *work) { w.assignment.Task.Progress = &task.Progress{Exclude: []string{"x"}} })
	add("other model", func(w *work) { w.assignment.Task.Model = "x" })
	add("needs", func(w *work) { w.assignment.Task.Needs = []string{"b", "a"} })
	add("last", nothing)
	batched := &call{works: []*work{{assignment: task.Assignment{Task: *embed("e1", `"x"`)}}, {assignment: task.Assignment{Task: *embed("e2", `"x"`)}}}}
	r.queue = append(r.queue, batched)
	m, any := map[demand]map[string]int{}, demand{workload: workload{model: "m"}}
	r.movable(m)
	require.Equal(t, map[string]int{"d": 4}, m[any])
	require.Equal(t, map[string]int{"d": 2}, m[demand{workload: workload{model: "m", batched: true}}])
	require.Equal(t, map[string]int{"d": 1}, m[demand{workload: workload{model: "m"}, needs: "a" + tagSeparator + "b"}])
	names := func(calls []*call) (out []string) {
		for _, c := range calls {
			for _, w := range c.works {
				out = append(out, w.assignment.Task.ID)
			}
		}
		return out
	}
	require.Empty(t, r.takeTail(demand{workload: workload{model: "m", batched: true}}, 1, []string{"e"}), "a batched request stays whole")
	require.Equal(t, []string{"elsewhere", "last"}, names(r.takeTail(any, 2, []string{"e"})))
	require.Equal(t, []string{"first"}, names(r.takeTail(any, 9, []string{"e"})))
	require.Equal(t, []string{"not there"}, names(r.takeTail(any, 9, []string{"e", "f"})))
	require.Equal(t, []string{"tried", "moved", "other model", "needs", "e1", "e2"}, names(r.queue))
}

func TestPlansAreMadeFromTheFleetsLoad(t *testing.T) {
	now := time.Now()
	f := &fleetLoad{
		now: now,
		devices: []device.Device{
			{ID: "a", Models: []string{"m"}, Slots: 4},
			{ID: "b", Models: []string{"*"}, Slots: 4, Tags: []string{"gpu"}},
			{ID: "new", Models: []string{"m"}, Slots: 2},
			{ID: "open", Models: []string{"m"}, Slots: 1},
			{ID: "half", Models: []string{"m"}, Slots: 1},
			{ID: "slow", Models: []string{"m"}, Slots: 1},
			{ID: "x", Models: []string{"x"}, Slots: 1},
			{ID: "drains", Models: []string{"m"}, Slots: 1, Draining: true},
		},
		rates: map[device.RateKey]device.Rate{
			{DeviceID: "a", Model: "m"}: {ServiceMS: 100}, {DeviceID: "b", Model: "y"}: {ServiceMS: 300}, {DeviceID: "a", Model: "m", Batched: true}: {ServiceMS: 10},
		},
		healths: map[string]device.Health{
			"a": {Slots: 2}, "open": {State: device.StateOpen, OpenUntil: now.Add(time.Minute)}, "half": {State: device.StateHalfOpen}, "slow": {ThrottledUntil: now.Add(time.Minute)},
		},
		loads: map[string]float64{}, used: map[string][2]int{"a": {7, 5}, "b": {5, 0}},
		mean: map[string][2]float64{"a": {100, 10}, "b": {300, 0}},
	}
	for _, d := range f.devices {
		f.loads[d.ID] = -1
	}
	byID := func(list []*deviceLoad) map[string]deviceLoad {
		out := map[string]deviceLoad{}
		for _, s := range list {
			out[s.id] = *s
		}
		return out
	}
	got := byID(f.candidates(demand{workload: workload{model: "m"}}, map[string]int{"a": 3}))
	require.Equal(t, map[string]deviceLoad{
		"a":    {id: "a", slots: 2, load: 750, service: 100, takes: true, gives: 3},
		"b":    {id: "b", slots: 4, load: 1500, service: 300, takes: true, gives: 1},
		"new":  {id: "new", slots: 2, service: 200, takes: true},
		"half": {id: "half", slots: 1, service: 200},
		"slow": {id: "slow", slots: 1, service: 200},
	}, got)
	require.Len(t, f.candidates(demand{workload: workload{model: "m"}, needs: "gpu"}, nil), 1)
	require.Empty(t, f.candidates(demand{workload: workload{model: "x", batched: true}, needs: strings.Repeat("no", 2)}, nil))
}

// Devices fail, hang, throttle and are drained while tasks run; tasks that come back are sent again, as
// by a router. Every task ends once, and all credits are returned.
func TestEveryTaskEndsWhateverDevicesDo(t *testing.T) {
	specs := make([]fleet.Spec, 6)
	for i := range specs {
		specs[i] = fleet.Spec{ID: fmt.Sprint("d", i), Slots: 2, ServiceTime: 5 * time.Millisecond}
	}
	y := newYard(t, specs...)
	y.register(time.Hour)
	for i := range specs {
		y.beat(specs[i].ID, i == 5)
	}
	var sending sync.WaitGroup
	t.Cleanup(sending.Wait)
	y.mu.Lock()
	n := 0
	y.again = func(tk *task.Task) {
		for n++; tk.Progress != nil && len(tk.Progress.Exclude) < 5 && slices.Contains(tk.Progress.Exclude, fmt.Sprint("d", n%6)); n++ {
		}
		d := y.fleet.Device(fmt.Sprint("d", n%6))
		sending.Add(1)
		time.AfterFunc(time.Duration(tk.Progress.BackoffMS)*time.Millisecond, func() {
			defer sending.Done()
			if err := y.client.Produce(context.Background(), stream.Message{Topic: stream.Batches, Key: d.ID(), Value: frameOf(t, d, y.deps.Credits, tk)}); err != nil {
				t.Error(err)
			}
		})
	}
	y.mu.Unlock()
	cfg := testConfig()
	cfg.MaxAttempts, cfg.LocalRetries, cfg.RequestTimeout, cfg.HangMin, cfg.HangFactor, cfg.RetryBudget = 20, 0, 500*time.Millisecond, 50*time.Millisecond, 3, 10
	y.workers(cfg)
	y.workers(cfg)
	y.fleet.Device("d0").SetFault(fleet.Fault{Kind: fleet.Fail})
	y.fleet.Device("d1").SetFault(fleet.Fault{Kind: fleet.Hang})
	y.fleet.Device("d2").SetFault(fleet.Fault{Kind: fleet.RateLimit, Share: 0.3})
	y.fleet.Device("d3").SetFault(fleet.Fault{Kind: fleet.Reset, Share: 0.3})
	var all []string
	for i := range 30 {
		var tasks []*task.Task
		for k := range 6 {
			id := fmt.Sprintf("t-%d-%d", i, k)
			if all = append(all, id); i%3 == 0 {
				tasks = append(tasks, embed(id, `"x"`))
			} else {
				tasks = append(tasks, chat(id))
			}
		}
		y.send(fmt.Sprint("d", i%6), tasks...)
	}
	y.until("half of the results", func() bool { return len(y.results) >= len(all)/2 })
	for i := range specs {
		y.fleet.Device(specs[i].ID).ClearFault()
	}
	y.beat("d5", false)
	y.until("every result", func() bool { return len(y.results) == len(all) })
	y.committed()
	y.eventually("credits are given back", func() bool {
		used := 0
		for i := range specs {
			used += y.creditsUsed(specs[i].ID)
		}
		return used == 0
	})
	y.mu.Lock()
	defer y.mu.Unlock()
	for _, id := range all {
		require.Len(t, y.results[id], 1, id)
		require.Equal(t, task.Success, y.results[id][0].State, id)
		numbers := map[int]bool{}
		for _, a := range y.results[id][0].Attempts {
			require.False(t, numbers[a.Number], "attempts of %s have unique numbers", id)
			numbers[a.Number] = true
		}
	}
	require.Positive(t, y.count(task.BreakerOpened))
}
