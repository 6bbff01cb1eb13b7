package recorder

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
)

// taskRow is everything in a row of tasks but its identity and version.
const taskRow = `SELECT task_id || ' ' || row(state, seq, attempt, device_id, model, endpoint, priority, job_id, custom_id, trace_id, submitted_at,
	assigned_at, started_at, finished_at, error_class, error_message, deadline, updated_at, known_from)::text FROM tasks WHERE tenant = $1 ORDER BY task_id`

// drawLife draws the life of a task: attempts, requeues, and in the end perhaps a result.
func drawLife(t *rapid.T, tenant string, n int) (events []task.Event, results []*task.Result) {
	s := audittest.NewStory(fmt.Sprintf("t%d", n))
	s.Task.Tenant = tenant
	s.Task.Callback = nil
	if rapid.Bool().Draw(t, "no deadline") {
		s.Task.Deadline = s.Task.Deadline.Truncate(0).AddDate(-100, 0, 0) // out of range, which means none
	}
	if rapid.Bool().Draw(t, "with acceptance") {
		events = append(events, s.Accepted())
	}
	events = append(events, s.Event(task.TaskQueued, 0, ""))
	var tried []string
	for a := range rapid.IntRange(0, 3).Draw(t, "attempts") {
		device := fmt.Sprintf("d%d", a)
		events = append(events, s.Event(task.TaskAssigned, a+1, device))
		if rapid.Bool().Draw(t, "redone") { // a router died after it had written the assignment
			events = append(events, s.Event(task.TaskAssigned, a+1, device+"-again"))
		}
		if rapid.Bool().Draw(t, "started") {
			events = append(events, s.Event(task.AttemptStarted, a+1, device))
		}
		if rapid.Bool().Draw(t, "degraded") {
			s.Task.Model, s.Task.Progress = fmt.Sprintf("m%d", a), &task.Progress{RequestedModel: "m"}
		}
		failed := s.Event(task.TaskRequeued, a+1, device)
		failed.ErrorClass = task.ClassTimeout
		failed.Detail = fmt.Appendf(nil, `{"message":"attempt %d: \u0000 it hangs"}`, a+1)
		events = append(events, failed)
		tried = append(tried, device)
	}
	if rapid.Bool().Draw(t, "ends") {
		state := rapid.SampledFrom([]task.State{task.Success, task.Failed, task.Cancelled, task.Expired}).Draw(t, "end")
		r := s.Result(state, tried...)
		if rapid.Bool().Draw(t, "knows times") && len(tried) > 0 {
			r.AssignedAt, r.StartedAt = s.At, s.At
		}
		results = append(results, r)
	}
	return events, results
}

// TestOrderDoesNotMatter records the same events and results one by one in their order, and
// shuffled over partitions in chunks of any size. The tables end up the same.
func TestOrderDoesNotMatter(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	partition := 0
	rapid.Check(t, func(rt *rapid.T) {
		r := newRig(t, pool)
		type piece struct {
			event  *task.Event
			result *task.Result
		}
		tenants := [2]string{"a-" + uuid.NewString(), "b-" + uuid.NewString()}
		var pieces []piece
		for n := range rapid.IntRange(1, 4).Draw(rt, "tasks") {
			events, results := drawLife(rt, tenants[0], n)
			for i := range events {
				pieces = append(pieces, piece{event: &events[i]})
			}
			for _, x := range results {
				pieces = append(pieces, piece{result: x})
			}
		}
		var ts []*ownership
		for range 4 { // two for each topic
			ts = append(ts, r.own([]string{"events", "results"}[len(ts)%2], partition+len(ts)/2))
		}
		partition += 2
		entryOf := func(p piece, tenant string, k int) *entry {
			if p.event != nil {
				e := *p.event
				e.Tenant = tenant
				return ts[2*k].events(t, e)
			}
			x := *p.result
			x.Tenant = tenant
			return ts[2*k+1].result(t, &x)
		}
		for _, p := range pieces {
			r.record(entryOf(p, tenants[0], 0))
		}
		shuffled := rapid.Permutation(pieces).Draw(rt, "order")
		var c chunk
		for _, p := range shuffled {
			c = append(c, entryOf(p, tenants[1], rapid.IntRange(0, 1).Draw(rt, "partition")))
			if rapid.IntRange(0, 3).Draw(rt, "commit") == 0 {
				r.record(c...)
				c = nil
			}
		}
		r.record(c...)
		require.Empty(rt, r.sent)

		read := func(tenant string) []string {
			rows, err := pool.Query(t.Context(), taskRow, tenant)
			require.NoError(rt, err)
			got, err := pgx.CollectRows(rows, pgx.RowTo[string])
			require.NoError(rt, err)
			return got
		}
		require.Equal(rt, read(tenants[0]), read(tenants[1]))
		require.NotEmpty(rt, read(tenants[0]))
		rows := audittest.One[int](t, pool, "SELECT count(*) FROM audit_log WHERE tenant = $1", tenants[1])
		events := slices.DeleteFunc(slices.Clone(pieces), func(p piece) bool { return p.event == nil })
		require.Equal(rt, len(events), rows)
		require.Equal(rt, len(pieces)-len(events), audittest.One[int](t, pool, "SELECT count(*) FROM results WHERE tenant = $1", tenants[1]))
	})
}

// People read why a task that waits has failed before.
func TestAWaitingTaskHasItsLastError(t *testing.T) {
	t.Parallel()
	r := newRig(t, audittest.NewPool(t))
	events := r.own("events", 0)
	s := audittest.NewStory("t1")
	back := s.Event(task.TaskRequeued, 1, "d1")
	back.ErrorClass, back.Detail = task.ClassConnect, []byte(`{"reason":"connect","message":"device d1 cannot\u0000 be reached"}`)
	r.record(events.events(t, s.Accepted(), s.Event(task.TaskAssigned, 1, "d1"), back))
	require.Equal(t, "PENDING connect device d1 cannot\ufffd be reached", audittest.One[string](t, r.pool, "SELECT state || ' ' || error_class || ' ' || error_message FROM tasks"))
}

// TestATerminalStateStays records late events after the end.
func TestATerminalStateStays(t *testing.T) {
	t.Parallel()
	r := newRig(t, audittest.NewPool(t))
	events, results := r.own("events", 0), r.own("results", 0)
	s := audittest.NewStory("t1")
	accepted := s.Accepted()
	r.record(results.result(t, s.Result(task.Failed, "d1")))
	require.Equal(t, "FAILED 1 device it broke", audittest.One[string](t, r.pool, "SELECT state || ' ' || attempt || ' ' || error_class || ' ' || error_message FROM tasks"))
	r.record(events.events(t, accepted, s.Event(task.TaskAssigned, 9, "d9"), s.Event(task.TaskRequeued, 9, "d9")))
	require.Equal(t, "FAILED 1 d1 device", audittest.One[string](t, r.pool, "SELECT state || ' ' || attempt || ' ' || device_id || ' ' || error_class FROM tasks"))
	require.Equal(t, "normal", audittest.One[string](t, r.pool, "SELECT priority FROM tasks WHERE deadline IS NOT NULL AND finished_at IS NOT NULL"))
}
