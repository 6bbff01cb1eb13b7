package harness

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// historyOf lists the actions that the audit log must contain for a task that ended in
// a state. Tasks may fail, expire or be cancelled before they reach every stage. A process
// that dies after it has written a record and before it has written the event leaves what
// lostWith says.
var historyOf = map[task.State][]task.Action{
	task.Success: {task.TaskAccepted, task.TaskQueued, task.TaskAssigned, task.BatchClosed,
		task.AttemptStarted, task.AttemptSucceeded, task.TaskSucceeded},
	task.Failed:    {task.TaskAccepted, task.TaskFailed},
	task.Cancelled: {task.TaskAccepted, task.TaskCancelRequested},
	task.Expired:   {task.TaskAccepted, task.TaskExpired},
}

// lostWith says which event of a repetition stands in for an event that was lost with its
// process, if the task had finished by then. If it had not, the event itself is repeated.
var lostWith = map[task.Action]task.Action{
	task.TaskAccepted:     task.TaskResubmitted, // the client, which got no answer, submits again
	task.TaskQueued:       task.TaskReread,
	task.TaskAssigned:     task.TaskReread,
	task.TaskExpired:      task.TaskReread,
	task.TaskFailed:       task.TaskReread,
	task.AttemptSucceeded: task.TaskReread, // the second attempt failed, and its copy finds the first one's result
	task.TaskSucceeded:    task.TaskReread,
}

// CheckPromises checks what Batchyard promises, whatever died in between. The tasks
// must have been accepted and have ended (see Await).
//
//   - Each is in one terminal state and has one row in results, which is also in the
//     results topic.
//   - No other task is unfinished.
//   - The audit log has the whole history of each task, and each event in the events
//     topic exactly once.
//   - If hooks is given, each callback was delivered at least once, always with the
//     same id, and is recorded as delivered.
//   - The program's own verification finds nothing wrong with the audit log, and nothing in the tables
//     that contradicts it.
//
// The recorder must be running and, if hooks is given, the callbacks stage.
func (in *Installation) CheckPromises(t testing.TB, ids []string, hooks *Receiver) {
	t.Helper()
	require.Len(t, slices.Compact(slices.Sorted(slices.Values(ids))), len(ids), "the test's ids must differ")
	if hooks != nil {
		in.awaitCallbacks(t, ids)
	}
	in.AwaitRecorded(t)
	states := in.CheckAnswers(t, ids)
	in.checkHistories(t, states)
	in.CheckExact(t)
	if hooks != nil {
		in.checkCallbacks(t, ids, hooks)
	}
}

// VerifyLog verifies the audit log and the tables. It takes seconds, so the tests with the most kinds of events call
// it, and others do not.
func (in *Installation) VerifyLog(t testing.TB) {
	t.Helper()
	// Checkpoints of an installation that still runs never have the newest rows, and no witness is there.
	// The login of the stages may not read the log.
	verified := in.Run(t, "audit", "verify", "--settled", "--allow-unproven", "all", "--postgres", in.Pool(t).Config().ConnString())
	require.Zerof(t, verified.Code, "%s%s", verified.Stdout, verified.Stderr)
}

// AwaitRecorded waits until everything now in the events and results topics is in
// Postgres.
func (in *Installation) AwaitRecorded(t testing.TB) {
	t.Helper()
	for _, topic := range []string{stream.Events, stream.Results} {
		ends := in.Ends(t, topic)
		what := ""
		if !await(t.Context(), 2*Patience, func() bool {
			next := map[int]int64{}
			rows, err := in.Pool(t).Query(t.Context(), "SELECT partition, next_offset FROM stream_offsets WHERE topic = $1", topic)
			if err != nil {
				what = err.Error()
				return false
			}
			defer rows.Close()
			for rows.Next() {
				var p int
				var n int64
				if err := rows.Scan(&p, &n); err != nil {
					what = err.Error()
					return false
				}
				next[p] = n
			}
			for p, end := range ends {
				if end > 0 && next[p] < end {
					what = fmt.Sprintf("partition %d is recorded up to %d of %d", p, next[p], end)
					return false
				}
			}
			return rows.Err() == nil
		}) {
			t.Fatalf("the recorder is behind on %s: %s", topic, what)
		}
	}
}

// CheckAnswers requires that each task has ended once, and returns how.
func (in *Installation) CheckAnswers(t testing.TB, ids []string) map[string]task.State {
	t.Helper()
	type row struct {
		ID     string
		State  task.State
		Result *task.State
	}
	states := map[string]task.State{}
	for _, r := range Rows[row](t, in, `SELECT t.task_id AS id, t.state, r.state AS result FROM tasks t
		LEFT JOIN results r ON r.tenant = t.tenant AND r.task_id = t.task_id AND r.generation = t.generation WHERE t.task_id = ANY($1)`, ids) {
		require.Truef(t, r.State.Terminal(), "%s is %s", r.ID, r.State)
		require.NotNilf(t, r.Result, "%s ended as %s but has no result", r.ID, r.State)
		require.Equalf(t, r.State, *r.Result, "state and result of %s", r.ID)
		require.NotContainsf(t, states, r.ID, "two tasks with the same id")
		states[r.ID] = r.State
	}
	for _, id := range ids {
		require.Containsf(t, states, id, "%s was accepted but is unknown", id)
	}
	require.Zero(t, SQL[int](t, in, `SELECT count(*) FROM tasks WHERE state NOT IN ('SUCCESS', 'FAILED', 'CANCELLED', 'EXPIRED')`), "tasks that have not ended")
	require.Equal(t, SQL[int](t, in, `SELECT coalesce(sum(generation + 1), 0)::int FROM tasks`), SQL[int](t, in, `SELECT count(*) FROM results`), "one result per generation of a task")

	out := map[string][]task.State{}
	for _, r := range in.All(t, stream.Results) {
		result, err := wire.DecodeResult(r.Value, Header(r, "content-type"))
		require.NoErrorf(t, err, "a result in the topic: %s", r.Value)
		out[result.TaskID] = append(out[result.TaskID], result.State)
	}
	for _, id := range ids {
		require.Containsf(t, out[id], states[id], "the result of %s in the topic", id)
	}
	return states
}

func (in *Installation) checkHistories(t testing.TB, states map[string]task.State) {
	t.Helper()
	ids := make([]string, 0, len(states))
	for id := range states {
		ids = append(ids, id)
	}
	type row struct {
		TaskID  string
		Actions []string
	}
	histories := map[string][]string{}
	for _, r := range Rows[row](t, in, `SELECT task_id, array_agg(DISTINCT action) AS actions FROM audit_log WHERE task_id = ANY($1) GROUP BY task_id`, ids) {
		histories[r.TaskID] = r.Actions
	}
	for id, state := range states {
		for _, a := range historyOf[state] {
			instead, ok := lostWith[a]
			if ok && slices.Contains(histories[id], string(instead)) {
				continue
			}
			// A router that was away for longer than claims live takes its record for another one.
			if instead == task.TaskReread && slices.Contains(histories[id], string(task.TaskDuplicate)) {
				continue
			}
			require.Containsf(t, histories[id], string(a), "the history of %s, which ended as %s", id, state)
		}
	}
}

// CheckExact checks that each event in the events topic has exactly one audit row, and
// each audit row an event.
func (in *Installation) CheckExact(t testing.TB) {
	t.Helper()
	type place struct {
		partition int32
		offset    int64
	}
	written := map[place]int{}
	for _, r := range in.All(t, stream.Events) {
		events, err := wire.DecodeFrame[task.Event](wire.FrameEvents, r.Value)
		require.NoErrorf(t, err, "events/%d@%d", r.Partition, r.Offset)
		written[place{r.Partition, r.Offset}] = len(events)
	}
	in.AwaitRecorded(t)
	type row struct {
		SrcPartition int32
		SrcOffset    int64
		Rows, Events int
	}
	for _, r := range Rows[row](t, in, `SELECT src_partition, src_offset, count(*) AS rows, count(DISTINCT src_index) AS events
		FROM audit_log WHERE src_topic = 'events' GROUP BY 1, 2`) {
		require.Equalf(t, r.Rows, r.Events, "rows of events/%d@%d: an event was recorded twice", r.SrcPartition, r.SrcOffset)
		p := place{r.SrcPartition, r.SrcOffset}
		n, ok := written[p]
		if !ok {
			continue // written after the topic was read
		}
		require.Equalf(t, n, r.Rows, "rows of events/%d@%d", r.SrcPartition, r.SrcOffset)
		delete(written, p)
	}
	require.Empty(t, written, "event records without audit rows")
	require.Zero(t, SQL[int](t, in, `SELECT count(*) FROM (SELECT 1 FROM audit_log GROUP BY src_topic, src_partition, src_offset, src_index HAVING count(*) > 1) twice`))
}

func (in *Installation) awaitCallbacks(t testing.TB, ids []string) {
	t.Helper()
	missing := 0
	if !await(t.Context(), 2*Patience, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		var sent int
		err := in.Pool(t).QueryRow(ctx, `SELECT count(*) FROM callbacks WHERE task_id = ANY($1) AND state = 'DELIVERED'`, ids).Scan(&sent)
		missing = len(ids) - sent
		return err == nil && missing <= 0
	}) {
		t.Fatalf("%d callbacks of %d are not delivered: %v", missing, len(ids), Rows[struct {
			State    string
			Attempts int
			Error    *string
			Count    int
		}](t, in, `SELECT state, attempts, last_error AS error, count(*) FROM callbacks GROUP BY 1, 2, 3 LIMIT 10`))
	}
}

func (in *Installation) checkCallbacks(t testing.TB, ids []string, hooks *Receiver) {
	t.Helper()
	hooks.Check(t)
	type row struct {
		ID, TaskID, State string
		Generation        int
	}
	type run struct {
		id         string
		generation int
	}
	known, runs := map[run]string{}, map[string]int{}
	for _, r := range Rows[row](t, in, `SELECT callback_id AS id, task_id, state, generation FROM callbacks WHERE task_id = ANY($1)`, ids) {
		k := run{r.TaskID, r.Generation}
		require.NotContainsf(t, known, k, "two callbacks of one run of a task")
		require.Equalf(t, "DELIVERED", r.State, "callback of %s", r.TaskID)
		known[k] = r.ID
		runs[r.TaskID]++
	}
	for _, id := range ids {
		got := hooks.Deliveries(id)
		require.NotEmptyf(t, got, "no webhook was delivered for %s", id)
		require.Lenf(t, got, runs[id], "webhook-ids delivered for %s", id)
		for generation := range runs[id] {
			require.Positivef(t, got[known[run{id, generation}]], "the callback of %s, generation %d, must be delivered with the recorded id", id, generation)
		}
	}
}
