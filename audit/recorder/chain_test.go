package recorder

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
)

// TestRowsAreChained makes two recorders write rows in every way there is, and follows the chains.
func TestRowsAreChained(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	r := newRig(t, pool)
	e0, e1, res := r.own("events", 0), r.own("events", 1), r.own("results", 0)
	s, u := audittest.NewStory("t1"), audittest.NewStory("t2")
	r.record(e0.events(t, s.Accepted(), s.Event(task.TaskQueued, 0, "")), e1.events(t, u.Accepted()), e0.events(t, s.Event(task.TaskAssigned, 1, "d1")))
	r.record(res.result(t, s.Result(task.Success, "d1")), e0.events(t, s.Event(task.TaskSucceeded, 1, "d1")))
	// Later results of the same tasks are rows, too, in the order of their records.
	late := []*entry{res.result(t, s.Result(task.Failed, "d2")), res.result(t, u.Result(task.Failed, "d1")), res.result(t, s.Result(task.Expired))}
	r.record(slices.Concat(late, []*entry{e1.events(t, u.Event(task.TaskQueued, 0, ""))})...)
	audittest.RequireChains(t, pool, map[string]int64{"events/0": 4, "events/1": 2, "results/0": 2})

	// What was rolled back leaves no trace, and another owner continues.
	var no *lostFenceError
	stale := e0.events(t, s.Event(task.TaskQueued, 1, ""))
	twin := newRig(t, pool)
	f0 := twin.own("events", 0)
	f0.read = f0.next
	_, err := r.w.chunks.apply(t.Context(), chunk{stale})
	require.ErrorAs(t, err, &no)
	twin.record(f0.events(t, s.Event(task.TaskQueued, 1, "")), f0.events(t, s.Event(task.TaskAssigned, 2, "d1")))
	audittest.RequireChains(t, pool, map[string]int64{"events/0": 6, "events/1": 2, "results/0": 2})
}
