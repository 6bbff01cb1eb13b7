package test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/harness"
)

// term sends SIGTERM and checks that the process exits cleanly.
func term(t *testing.T, p *harness.Process) {
	t.Helper()
	require.Zero(t, p.Term(t), p.Log())
}

// TestTermUnderLoad stops a process with all stages under load. It must start nothing
// new and finish what is running, and another process does the rest. No task may run
// twice.
func TestTermUnderLoad(t *testing.T) {
	t.Parallel()
	const n = 400
	in := harness.Install(t, harness.Get(t, harness.Shared), loadSettings(nil))
	specs := []fleet.Spec{{ID: "a", Slots: 4, ServiceTime: 100 * time.Millisecond}, {ID: "b", Slots: 2, ServiceTime: 200 * time.Millisecond}}
	f := in.Fleet(t, specs...)
	hooks := harness.Hooks(t, harness.Secret, nil)
	p := in.Process(t, "serve")
	ids := submit(t, p.API(), "t", hooks.URL, n).wait(t)
	awaitSomeEnded(t, in, n/10, n)
	begun := requests(f)
	term(t, p)
	// Tasks that already had a credit may still start; there are a few per device, and
	// more on a busy machine. A process that ignored the signal would get through all
	// tasks within its drain timeout.
	require.Less(t, requests(f)-begun, int64(n/4), "requests that started after SIGTERM")
	for _, d := range f.Devices() {
		require.Zerof(t, d.Stats().InFlight, "requests still in flight on device %s", d.ID())
		require.Zerof(t, d.Stats().Cancelled, "requests aborted on device %s", d.ID())
	}
	require.Less(t, ended(t, in), n)

	in.Process(t, "serve")
	in.Await(t, ids, 2*harness.Patience)
	in.CheckPromises(t, ids, hooks)
	for _, id := range ids {
		require.Equalf(t, 1, f.Device("a").Seen(id)+f.Device("b").Seen(id), "runs of %s", id)
	}
}

func requests(f *fleet.Fleet) (n int64) {
	for _, d := range f.Devices() {
		n += d.Stats().Requests
	}
	return n
}

// TestTermRequeuesUnfinishedTasks stops a process while a device does not answer. Tasks
// that cannot finish in time are requeued, and another process finishes them. That
// does not count as a failure.
func TestTermRequeuesUnfinishedTasks(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), loadSettings(map[string]any{"workers.drain_timeout": "500ms"}))
	f := in.Fleet(t, fleet.Spec{ID: "a", Slots: 4})
	f.Device("a").SetFault(fleet.Fault{Kind: fleet.Hang})
	p := in.Process(t, "serve")
	tasks, ids := harness.Chats("t", 40)
	require.Equal(t, ids, p.API().Submit(t, tasks...))
	harness.Eventually(t, harness.Patience, "requests hang", func() bool { return f.Device("a").Stats().InFlight == 4 })
	harness.Eventually(t, harness.Patience, "the tasks are RUNNING in Postgres", func() bool {
		return harness.SQL[int](t, in, "SELECT count(*) FROM tasks WHERE state = $1", task.Running) == 4
	})
	term(t, p)
	harness.Eventually(t, harness.Patience, "the device has no requests left", func() bool { return f.Device("a").Stats().InFlight == 0 })
	require.Zero(t, ended(t, in), "stopping the process must not end tasks")

	f.Device("a").ClearFault()
	in.Process(t, "serve")
	in.Await(t, ids, harness.Patience)
	in.CheckPromises(t, ids, nil)
	require.Zero(t, harness.SQL[int](t, in, "SELECT count(*) FROM results WHERE state <> $1", task.Success))
	require.GreaterOrEqual(t, harness.SQL[int](t, in, "SELECT count(DISTINCT task_id) FROM audit_log WHERE action = $1 AND error_class = $2",
		task.TaskRequeued, task.ClassDraining), 4, "requeued tasks must be recorded")
}

// TestTermOfEachStage replaces each of six processes under load with a new one, as an
// upgrade does. No task may fail or run twice.
func TestTermOfEachStage(t *testing.T) {
	t.Parallel()
	const n = 1200
	in := harness.Install(t, harness.Get(t, harness.Shared), loadSettings(nil))
	f := in.Fleet(t, unequalFleet()...)
	hooks := harness.Hooks(t, harness.Secret, nil)
	ps := sixProcesses(t, in)
	l := submit(t, ps["api"].API(), "t", hooks.URL, n)
	for i, stage := range stages {
		harness.Eventually(t, 2*harness.Patience, fmt.Sprintf("there is load when the %s stage stops", stage), func() bool {
			return requests(f) >= int64(n/8*(i+1)/2)
		})
		term(t, ps[stage])
		ps[stage] = ps[stage].Restart(t)
	}
	ids := l.wait(t)
	in.Await(t, ids, 2*harness.Patience)
	in.CheckPromises(t, ids, hooks)
	again := 0
	for _, id := range ids {
		again += f.Device("fast").Seen(id) + f.Device("slow").Seen(id) + f.Device("lone").Seen(id) - 1
	}
	require.Zero(t, again, "runs beyond the first")
}
