package workers

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/task"
)

func keyOf(id string) task.Key { return task.Key{Tenant: task.DefaultTenant, ID: id} }

// A batched request goes on while one of its tasks needs it, and ends with the last.
func TestABatchedRequestEndsWithItsTasks(t *testing.T) {
	y := newYard(t, fleet.Spec{ID: "d"})
	cfg := testConfig()
	cfg.HangMin = time.Hour
	y.workers(cfg)
	d := y.fleet.Device("d")
	d.SetFault(fleet.Fault{Kind: fleet.Hang})
	soon := embed("soon", `"x"`)
	soon.Deadline = time.Now().Add(300 * time.Millisecond)
	later := embed("later", `"y"`)
	later.Deadline = time.Now().Add(600 * time.Millisecond)
	y.send("d", soon, later, embed("a", `"z"`), embed("b", `"w"`))
	for _, tk := range []*task.Task{soon, later} {
		res := y.only(tk.ID)
		require.Equal(t, task.Expired, res.State)
		require.WithinDuration(t, tk.Deadline, res.FinishedAt, 250*time.Millisecond)
		require.Len(t, res.Attempts, 1)
		require.Equal(t, task.ClassExpired, res.Attempts[0].Class)
	}
	require.Equal(t, 1, d.Stats().InFlight, "the others need it")
	require.NoError(t, y.deps.Cancels.Cancel(t.Context(), keyOf("a")))
	require.Never(t, func() bool { return d.Stats().InFlight != 1 }, 100*time.Millisecond, 5*time.Millisecond, "the last one needs it")
	require.NoError(t, y.deps.Cancels.Cancel(t.Context(), keyOf("b")))
	require.Eventually(t, func() bool { return d.Stats().InFlight == 0 }, time.Second, time.Millisecond, "nobody needs it")
	y.until("the cancels", func() bool { return y.count(task.TaskCancelled) == 2 })
	y.committed()
	y.mu.Lock()
	defer y.mu.Unlock()
	require.Len(t, y.results, 2)
	require.Equal(t, 4, y.count(task.AttemptFailed), "each attempt ends once")
	require.Zero(t, y.count(task.BreakerOpened))
	y.eventually("credits are given back", func() bool { return y.creditsUsed("d") == 0 })
}

// When the device answers a batched request in parts of which some have expired, the others still get their own.
func TestTheRestOfABatchedRequestIsAnswered(t *testing.T) {
	y := newYard(t, fleet.Spec{ID: "d", ServiceTime: 500 * time.Millisecond})
	y.workers(testConfig())
	soon := embed("soon", `"x"`)
	soon.Deadline = time.Now().Add(200 * time.Millisecond)
	y.fleet.Device("d").SetFault(fleet.Fault{Kind: fleet.Partial, Times: 1}) // the halves follow
	y.send("d", soon, embed("a", `"y"`), embed("b", `"z"`))
	require.Equal(t, task.Expired, y.only("soon").State)
	for _, id := range []string{"a", "b"} {
		require.Equal(t, task.Success, y.only(id).State)
	}
	require.NotEqual(t, string(y.only("a").Output), string(y.only("b").Output))
	y.committed()
	require.Empty(t, y.returned(), "what has ended does not come back")
}

// An engine that goes on with a request whose client has hung up gets no other in its place for a while.
func TestATimedOutRequestOccupiesItsSlotForAWhile(t *testing.T) {
	y := newYard(t, fleet.Spec{ID: "d", Slots: 1})
	cfg := testConfig()
	cfg.RequestTimeout, cfg.Linger, cfg.MaxAttempts, cfg.HangMin, cfg.BreakerFails = 100*time.Millisecond, 400*time.Millisecond, 1, time.Hour, 100
	y.workers(cfg)
	y.fleet.Device("d").SetFault(fleet.Fault{Kind: fleet.Hang, Times: 1})
	y.send("d", chat("hangs"), chat("next"))
	hung, next := y.only("hangs"), y.only("next")
	require.Equal(t, task.Failed, hung.State)
	require.Equal(t, task.Success, next.State)
	require.GreaterOrEqual(t, next.StartedAt.Sub(hung.FinishedAt), 350*time.Millisecond)
	y.committed()
}

// Cancelling closes the connections to the devices, which would answer in an hour, before anything else ends them.
// BenchmarkCancelling says how soon.
func TestCancellingClosesConnections(t *testing.T) {
	const n = 100
	y := newYard(t, slowDevices(n)...)
	cfg := testConfig()
	cfg.RequestTimeout = time.Hour
	y.workers(cfg)
	keys := y.fill(n)
	require.Zero(t, y.total(func(s fleet.Stats) int { return int(s.Cancelled) }))
	require.NoError(t, y.deps.Cancels.Cancel(t.Context(), keys[:n/2]...))
	y.eventually("half of the connections are closed", func() bool { return y.total(func(s fleet.Stats) int { return int(s.Cancelled) }) == n/2 })
	y.until("the first cancels", func() bool { return y.count(task.TaskCancelled) == n/2 })
	require.Equal(t, n/2, y.total(func(s fleet.Stats) int { return s.Running }), "the others go on")
	require.NoError(t, y.deps.Cancels.Cancel(t.Context(), keys...))
	y.eventually("all connections are closed", func() bool { return y.total(func(s fleet.Stats) int { return s.InFlight }) == 0 })
	y.until("the cancels", func() bool { return y.count(task.TaskCancelled) == n })
	y.committed()
	require.Equal(t, n, y.total(func(s fleet.Stats) int { return int(s.Cancelled) }))
}

// slowDevices are four devices that answer after an hour, with n slots together.
func slowDevices(n int) []fleet.Spec {
	specs := []fleet.Spec{{ID: "a"}, {ID: "b"}, {ID: "c"}, {ID: "d"}}
	for i := range specs {
		specs[i].Slots, specs[i].ServiceTime = n/len(specs), time.Hour
	}
	return specs
}

// total adds up a figure of all devices.
func (y *yard) total(f func(fleet.Stats) int) (all int) {
	for _, d := range y.fleet.Devices() {
		all += f(d.Stats())
	}
	return all
}

// fill sends a task for each slot of the devices, and waits until all are in flight.
func (y *yard) fill(n int) (keys []task.Key) {
	y.t.Helper()
	devices := y.fleet.Devices()
	for _, d := range devices {
		var tasks []*task.Task
		for range n / len(devices) {
			tk := chat(task.NewID())
			keys, tasks = append(keys, keyOf(tk.ID)), append(tasks, tk)
		}
		y.send(d.ID(), tasks...)
	}
	y.eventually("all are in flight", func() bool { return y.total(func(s fleet.Stats) int { return s.Running }) == n })
	return keys
}
