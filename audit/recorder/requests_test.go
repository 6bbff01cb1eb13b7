package recorder

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
)

// asking returns the stories of n tasks with the same id in each of which something else is asked.
func asking(n int, tenant, id string) (all []*audittest.Story) {
	for i := range n {
		s := audittest.NewStory(id)
		s.Task.Tenant, s.Task.Callback = tenant, nil
		s.Task.Input = task.Input(fmt.Sprintf(`{"prompt":"number %d"}`, i))
		all = append(all, s)
	}
	return all
}

func queuedEvent(s *audittest.Story) task.Event {
	e := s.Event(task.TaskQueued, 0, "")
	e.Fingerprint = s.Task.Fingerprint().Bytes()
	return e
}

// A result answers the request that its id belongs to, or it becomes a dead letter: whatever is recorded first,
// in whatever chunks, and by whichever statement.
func TestAResultOfAnotherRequestIsNotTaken(t *testing.T) {
	t.Parallel()
	for name, many := range map[string]int{"inserted": 0, "copied": minRowsForCopy} {
		// others are results around it.
		others := func(tb testing.TB, part *ownership, what string) (c chunk) {
			for i := range many {
				c = append(c, part.result(tb, audittest.NewStory(fmt.Sprint(what, i)).Result(task.Success, "d1")))
			}
			return c
		}
		for what, record := range map[string]func(r *rig, events, results *ownership, mine, other *audittest.Story) (foreign *entry){
			"after the event": func(r *rig, events, results *ownership, mine, other *audittest.Story) *entry {
				r.record(events.events(r.t, queuedEvent(mine)))
				foreign := results.result(r.t, other.Result(task.Success, "d2"))
				r.record(append(others(r.t, results, "a"), foreign)...)
				r.record(append(others(r.t, results, "b"), results.result(r.t, mine.Result(task.Success, "d1")))...)
				return foreign
			},
			"in a chunk with the event": func(r *rig, events, results *ownership, mine, other *audittest.Story) *entry {
				foreign := results.result(r.t, other.Result(task.Success, "d2"))
				r.record(append(others(r.t, results, "a"), events.events(r.t, queuedEvent(mine), queuedEvent(other)), foreign, results.result(r.t, mine.Result(task.Success, "d1")))...)
				return foreign
			},
			"in a chunk with the result": func(r *rig, _, results *ownership, mine, other *audittest.Story) *entry {
				won := results.result(r.t, mine.Result(task.Success, "d1"))
				foreign := results.result(r.t, other.Result(task.Success, "d2"))
				r.record(append(others(r.t, results, "a"), won, foreign)...)
				return foreign
			},
			"after the result": func(r *rig, events, results *ownership, mine, other *audittest.Story) *entry {
				r.record(append(others(r.t, results, "a"), results.result(r.t, mine.Result(task.Success, "d1")))...)
				foreign := results.result(r.t, other.Result(task.Failed, "d2"))
				r.record(append(others(r.t, results, "b"), foreign, events.events(r.t, queuedEvent(other)))...)
				return foreign
			},
			"in the other generation": func(r *rig, events, results *ownership, mine, other *audittest.Story) *entry {
				r.record(events.events(r.t, queuedEvent(mine)), results.result(r.t, mine.Result(task.Failed, "d1")))
				retried := queuedEvent(mine)
				retried.Generation = 1
				late := other.Result(task.Success, "d2")
				late.Generation = 1
				foreign := results.result(r.t, late)
				r.record(append(others(r.t, results, "a"), events.events(r.t, retried), foreign)...)
				return foreign
			},
			"a generation late": func(r *rig, events, results *ownership, mine, other *audittest.Story) *entry {
				retried := queuedEvent(mine)
				retried.Generation = 1
				r.record(events.events(r.t, retried))
				foreign := results.result(r.t, other.Result(task.Success, "d2"))
				r.record(append(others(r.t, results, "a"), foreign)...)
				r.record(append(others(r.t, results, "b"), results.result(r.t, mine.Result(task.Success, "d1")))...)
				return foreign
			},
		} {
			t.Run(name+" "+what, func(t *testing.T) {
				t.Parallel()
				r := newRig(t, audittest.NewPool(t))
				two := asking(2, "acme", "same")
				foreign := record(r, r.own("events", 0), r.own("results", 0), two[0], two[1])
				require.Len(t, r.sent, 1)
				require.Equal(t, foreign, r.sent[0].entry)
				require.Equal(t, records.ReasonIDReused, r.sent[0].reason)
				require.ErrorContains(t, r.sent[0].cause, `the result of task "same" answers the request `+two[1].Task.Fingerprint().String())
				require.Equal(t, two[0].Task.Fingerprint().Bytes(), audittest.One[[]byte](t, r.pool, "SELECT fingerprint FROM tasks WHERE task_id = 'same'"))
				require.Equal(t, 1, audittest.One[int](t, r.pool, "SELECT count(*) FROM results WHERE task_id = 'same' AND device_id = 'd1'"))
				require.Zero(t, audittest.One[int](t, r.pool, "SELECT count(*) FROM results WHERE device_id = 'd2'"))
			})
		}
	}
}

// A cancel answers no request: it ends the task whatever was asked, also one that two ask for.
func TestACancelEndsWhateverWasAsked(t *testing.T) {
	t.Parallel()
	r := newRig(t, audittest.NewPool(t))
	events, results := r.own("events", 0), r.own("results", 0)
	two := asking(2, "acme", "same")
	r.record(events.events(t, queuedEvent(two[0])))
	cancel := two[1].Result(task.Cancelled)
	cancel.Fingerprint = ""
	r.record(events.events(t, queuedEvent(two[1])), results.result(t, cancel))
	require.Empty(t, r.sent)
	require.Equal(t, "CANCELLED", audittest.One[string](t, r.pool, "SELECT state FROM tasks"))
	require.Equal(t, two[0].Task.Fingerprint().Bytes(), audittest.One[[]byte](t, r.pool, "SELECT fingerprint FROM tasks"))
}

// A cancel does not say what was asked, but a cancelled task does not take the answer to another request.
func TestAResultOfAnotherRequestIsNotTakenAfterACancel(t *testing.T) {
	t.Parallel()
	for _, together := range []bool{true, false} {
		r := newRig(t, audittest.NewPool(t))
		events, results := r.own("events", 0), r.own("results", 0)
		two := asking(2, "acme", "same")
		r.record(events.events(t, queuedEvent(two[0])))
		cancel := two[0].Result(task.Cancelled)
		cancel.Fingerprint = ""
		c := chunk{results.result(t, cancel)}
		if !together {
			r.record(c...)
			c = nil
		}
		foreign := results.result(t, two[1].Result(task.Success, "d2"))
		r.record(append(c, foreign, results.result(t, two[0].Result(task.Success, "d1")))...)
		require.Len(t, r.sent, 1)
		require.Equal(t, foreign, r.sent[0].entry)
		require.Equal(t, records.ReasonIDReused, r.sent[0].reason)
		require.Equal(t, "CANCELLED", audittest.One[string](t, r.pool, "SELECT state FROM results"))
		require.Equal(t, "d1", audittest.One[string](t, r.pool, "SELECT device_id FROM audit_log WHERE action = 'result.duplicate'"))
	}
}

// TestEveryAnswerBelongsToItsRequest records, in any order and with two recorders in turns, the events and results of
// several requests under each id. Each id has the answer of one of them in the end, the one that it
// belongs to; each other result became a dead letter or was a second one of the same request.
func TestEveryAnswerBelongsToItsRequest(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	rapid.Check(t, func(rt *rapid.T) {
		tenant := uuid.NewString()
		rigs := []*rig{newRig(t, pool), newRig(t, pool)}
		var events, results [2]*ownership
		for i, r := range rigs {
			events[i], results[i] = r.own("events", i), r.own("results", i)
			events[i].read, results[i].read = events[i].next, results[i].next
		}
		n := 0
		for id := range rapid.IntRange(1, 4).Draw(rt, "ids") {
			for _, s := range asking(rapid.IntRange(1, 3).Draw(rt, "requests"), tenant, fmt.Sprint("t", id)) {
				n++
				q, res := queuedEvent(s), s.Result(task.Success, fmt.Sprint("d", n))
				at := rapid.IntRange(0, 1).Draw(rt, "recorder of the event")
				rigs[at].pending = append(rigs[at].pending, func() *entry { return events[at].events(t, q) })
				to := rapid.IntRange(0, 1).Draw(rt, "recorder of the result")
				rigs[to].pending = append(rigs[to].pending, func() *entry { return results[to].result(t, res) })
			}
		}
		for i := range rigs {
			rigs[i].pending = rapid.Permutation(rigs[i].pending).Draw(rt, "order")
		}
		for len(rigs[0].pending)+len(rigs[1].pending) > 0 {
			r := rigs[rapid.IntRange(0, 1).Draw(rt, "whose turn")]
			k := min(len(r.pending), rapid.IntRange(1, 6).Draw(rt, "records"))
			var c chunk
			for _, next := range r.pending[:k] {
				c = append(c, next())
			}
			r.pending = r.pending[k:]
			if len(c) > 0 {
				r.record(c...)
			}
		}
		require.Zero(t, audittest.One[int](t, pool, "SELECT count(*) FROM tasks t JOIN results r USING (tenant, task_id) WHERE tenant = '"+tenant+"' AND t.fingerprint IS DISTINCT FROM r.fingerprint"))
		require.Zero(t, audittest.One[int](t, pool, "SELECT count(*) FROM tasks WHERE tenant = '"+tenant+"' AND fingerprint IS NULL"))
		dead := slices.Concat(rigs[0].sent, rigs[1].sent)
		require.Equal(t, n, audittest.One[int](t, pool, "SELECT count(*) FROM results WHERE tenant = '"+tenant+"'")+len(dead))
	})
}
