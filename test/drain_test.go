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

// termed sends SIGTERM and checks how the process ends.
func termed(t *testing.T, p *harness.Process) {
	t.Helper()
	require.Zero(t, p.Term(t), p.Log())
}

// TestTermUnderLoad ends a process that runs all stages, under load: nothing new
// is begun, what runs is finished, and another process does the rest. No task is
// run twice.
func TestTermUnderLoad(t *testing.T) {
	t.Parallel()
	const n = 400
	in := harness.Install(t, harness.Get(t, harness.Shared), under(nil))
	specs := []fleet.Spec{{ID: "a", Slots: 4, ServiceTime: 100 * time.Millisecond}, {ID: "b", Slots: 2, ServiceTime: 200 * time.Millisecond}}
	f := in.Fleet(t, specs...)
	hooks := harness.Hooks(t, harness.Secret, nil)
	p := in.Process(t, "serve")
	ids := submit(t, p.API(), "t", hooks.URL, n).wait(t)
	whenEnded(t, in, n/10, n)
	begun := requests(f)
	termed(t, p)
	// What had its credit when the signal came may still begin: as many wait at a
	// device as end while the news goes round, more on a loaded machine. A process
	// that went on would get through all of them within its time to stop.
	require.Less(t, requests(f)-begun, int64(n/4), "requests that began after SIGTERM")
	for _, d := range f.Devices() {
		require.Zerof(t, d.Stats().InFlight, "requests that the process left at device %s", d.ID())
		require.Zerof(t, d.Stats().Cancelled, "requests that the process broke off at device %s", d.ID())
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

// TestTermGivesBack ends a process while a device does not answer: what cannot
// be finished in time is given back, and another process finishes it, as the
// same attempt's successor and not as a failure.
func TestTermGivesBack(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), under(map[string]any{"workers.drain_timeout": "500ms"}))
	f := in.Fleet(t, fleet.Spec{ID: "a", Slots: 4})
	f.Device("a").SetFault(fleet.Fault{Kind: fleet.Hang})
	p := in.Process(t, "serve")
	tasks, ids := harness.Chats("t", 40)
	require.Equal(t, ids, p.API().Submit(t, tasks...))
	harness.Eventually(t, harness.Patience, "requests hang", func() bool { return f.Device("a").Stats().InFlight == 4 })
	harness.Eventually(t, harness.Patience, "it is known that they run", func() bool {
		return harness.SQL[int](t, in, "SELECT count(*) FROM tasks WHERE state = $1", task.Running) == 4
	})
	termed(t, p)
	harness.Eventually(t, harness.Patience, "the device has no requests left", func() bool { return f.Device("a").Stats().InFlight == 0 })
	require.Zero(t, ended(t, in), "stopping is no reason for a task to end")

	f.Device("a").ClearFault()
	in.Process(t, "serve")
	in.Await(t, ids, harness.Patience)
	in.CheckPromises(t, ids, nil)
	require.Zero(t, harness.SQL[int](t, in, "SELECT count(*) FROM results WHERE state <> $1", task.Success))
	require.GreaterOrEqual(t, harness.SQL[int](t, in, "SELECT count(DISTINCT task_id) FROM audit_log WHERE action = $1 AND error_class = $2",
		task.TaskRequeued, task.ClassDraining), 4, "what was given back is told")
}

// TestTermOfEachStage replaces each of six processes under load by a new one, as
// an upgrade does. Nobody is told of it and nothing is run twice.
func TestTermOfEachStage(t *testing.T) {
	t.Parallel()
	const n = 1200
	in := harness.Install(t, harness.Get(t, harness.Shared), under(nil))
	f := in.Fleet(t, unequal()...)
	hooks := harness.Hooks(t, harness.Secret, nil)
	ps := six(t, in)
	l := submit(t, ps["api"].API(), "t", hooks.URL, n)
	for i, stage := range stages {
		harness.Eventually(t, 2*harness.Patience, fmt.Sprintf("there is load when the %s ends", stage), func() bool {
			return requests(f) >= int64(n/8*(i+1)/2)
		})
		termed(t, ps[stage])
		ps[stage] = ps[stage].Again(t)
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
