package states

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
)

// A result of an earlier generation leaves the row of a task unfinished, so the constraint of the table cannot see
// whether it answers the request that the id belongs to. Postgres has to be asked first.
func TestAResultOfAnEarlierGenerationIsLookedUp(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, c := range []struct {
		name    string
		result  int // generation
		foreign bool
	}{
		{"of an earlier generation", 0, true},
		{"of the same generation", 1, false},
		{"of a later generation", 2, false},
	} {
		tk := &task.Task{ID: "t", Model: "m", Input: task.Input(`{}`)}
		tk.Normalize(now)
		ev := task.NewEvent(task.TaskAssigned, tk, "router", now)
		ev.Generation = 1
		var assigned State
		require.True(t, OfEvent(&ev, &assigned))
		set := New(1)
		set.Add(&assigned)
		res := task.NewResult(tk, task.Success, now)
		res.Generation = c.result
		result := OfResult(res)
		set.Add(&result)
		require.Equal(t, c.foreign, set.Foreign, c.name)
	}
}

// A task that was cancelled before a router read it has no request in Postgres. The first record that a router reads
// then says whose id it is, although all that becomes of it is task.duplicate.
func TestADuplicateMayBindAnID(t *testing.T) {
	t.Parallel()
	tk := &task.Task{ID: "t", Model: "m", Input: task.Input(`{}`)}
	ev := task.NewEvent(task.TaskDuplicate, tk, "router", time.Now())
	var s State
	require.False(t, OfEvent(&ev, &s), "of a second record, it says nothing")
	ev.Fingerprint = tk.Fingerprint().Bytes()
	require.True(t, OfEvent(&ev, &s))
	require.Equal(t, ev.Fingerprint, s.fingerprint)
	require.Equal(t, task.Pending, s.state)
}
