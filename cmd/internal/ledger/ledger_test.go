package ledger

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/testenv"
)

// settled returns a history without problems: all tasks have ended, two of them twice; some
// were submitted twice, and some requeued.
func settled(t *testing.T) *history {
	h := newHistory(t)
	all := ids("t", 60)
	h.submit(all...)
	h.submit(all[:5]...) // duplicates
	h.put(stream.Unit{Messages: []stream.Message{h.message(stream.TasksNormal, newTask("t-007")), h.message(stream.TasksParked, newTask("t-008"))}})
	h.end(task.Success, all...)
	h.end(task.Failed, "t-003", "t-004") // duplicates
	for _, topic := range back {
		h.finish("router", topic, nil)
	}
	h.record()
	return h
}

func TestTheAccountHolds(t *testing.T) {
	t.Parallel()
	h := settled(t)
	r := h.check(Options{Settled: true})
	require.Truef(t, r.Holds, "%+v", r.Problems)
	require.Equal(t, int64(60), r.Accepted)
	require.Equal(t, int64(60), r.Terminal)
	require.Equal(t, map[string]int64{"SUCCESS": 60}, r.ByState)
	require.Equal(t, int64(2), r.Events.Duplicates)
	require.Equal(t, r.Events.Expected, r.Events.Rows)
	require.Equal(t, int64(65+62), r.Events.Rows)
	require.Equal(t, 1, r.Looks)
	for _, topic := range r.Topics {
		require.True(t, topic.Complete)
	}
}

func TestWhatIsInFlightIsNotMissing(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.submit("unread", "assigned", "batched", "answered", "requeued")
	h.put(stream.Unit{Messages: []stream.Message{h.message(stream.TasksParked, newTask("parked"))}})
	h.finish("router", stream.TasksNormal, func(r *stream.Record) bool { return string(r.Key) == "unread" })
	assignment := func(id string) task.Assignment {
		return task.Assignment{Task: *newTask(id), Device: task.DeviceRef{ID: "d"}, Attempt: 1}
	}
	as, err := wire.EncodeFrame(wire.FrameAssignments, []task.Assignment{assignment("assigned"), assignment("lost on the way")})
	require.NoError(t, err)
	bs, err := wire.EncodeFrame(wire.FrameBatches, []task.Batch{{ID: "b", Assignments: []task.Assignment{assignment("batched")}}})
	require.NoError(t, err)
	h.put(stream.Unit{Messages: []stream.Message{{Topic: stream.Assignments, Key: "d", Value: as}, {Topic: stream.Batches, Key: "d", Value: bs}}})
	h.put(stream.Unit{Messages: []stream.Message{h.message(stream.TasksHigh, newTask("requeued"))}})
	h.record()
	h.end(task.Success, "answered") // and no recorder runs
	r := h.check(Options{})
	require.Truef(t, r.Holds, "%+v", r.Problems)
	require.Equal(t, int64(6), r.InFlight)
	require.Equal(t, map[string]int64{"router": 2, "router, parked": 1, "batcher": 1, "workers": 1, "recorder": 1}, r.Where)

	r = h.check(Options{Settled: true})
	require.False(t, r.Holds)
	require.Equal(t, int64(1), r.Counts[StillInFlight])

	// The stages commit, but wrote nothing.
	h.finish("batcher", stream.Assignments, nil)
	h.finish("workers", stream.Batches, nil)
	h.finish("router", stream.TasksParked, nil)
	r = h.check(Options{})
	require.False(t, r.Holds)
	require.Equal(t, int64(3), r.Missing)
	require.Equal(t, "assigned batched parked", kinds(r)[Missing])
	require.Equal(t, 2, r.Looks)
}

// A task that was written behind an open transaction cannot be read. It is not missing: the check waits, or says
// that it cannot tell.
func TestATaskBehindAnOpenTransactionIsNotMissing(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.submit("moved")
	h.finish("router", stream.TasksNormal, nil)
	h.record()
	abort := audittest.OpenTransaction(t, h.log, stream.TasksNormal, []byte("from another client"))
	h.put(stream.Unit{Messages: []stream.Message{h.message(stream.TasksNormal, newTask("moved").Requeued())}})
	_, err := Check(t.Context(), h.log, h.pool, Options{})
	open := new(stream.OpenTransactionError)
	require.ErrorAs(t, err, &open)
	r, err := Check(t.Context(), h.log, h.pool, Options{Wait: testenv.Patience, Progress: func(what string) {
		if strings.Contains(what, "transaction") {
			abort()
		}
	}})
	require.NoError(t, err)
	require.Truef(t, r.Holds, "%+v", r.Problems)
	require.Equal(t, int64(1), r.InFlight)
}

func TestDeadLettersAreAccountedFor(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.submit("good")
	var all []*stream.Record
	h.put(stream.Unit{Messages: []stream.Message{
		{Topic: stream.TasksNormal, Value: []byte("not a task")},
		{Topic: stream.TasksLow, Value: []byte(`{"task_id":"no-model","tenant":"acme","input":{}}`)},
		{Topic: stream.TasksLow, Value: []byte(`{"tenant":"acme","input":{}}`)}, // without an id
		{Topic: stream.Events, Value: []byte("not an event")},
		{Topic: stream.Results, Value: []byte("not a result")},
		{Topic: stream.Results, Value: []byte(`{"task_id":"good","tenant":"acme","state":"ASSIGNED"}`)},
	}})
	for _, topic := range back {
		require.NoError(t, h.log.Scan(t.Context(), topic, func(r *stream.Record) error {
			if string(r.Key) != "good" {
				all = append(all, r)
			}
			return nil
		}))
	}
	require.Len(t, all, 3)
	h.end(task.Success, "good")
	h.record()
	r := h.check(Options{})
	require.Truef(t, r.Holds, "%+v", r.Problems)
	require.Equal(t, int64(3), r.InFlight)

	for _, topic := range back {
		h.finish("router", topic, nil)
	}
	r = h.check(Options{})
	require.False(t, r.Holds, "they are finished, but left no result")
	require.Equal(t, int64(3), r.Missing)
	require.Equal(t, map[Kind]int64{Missing: 2, RecordLost: 1}, r.Counts)

	for _, rec := range all {
		h.bury(rec)
		h.bury(rec) // as after a crash of the stage
	}
	h.record()
	r = h.check(Options{})
	require.Truef(t, r.Holds, "%+v", r.Problems)
	require.Equal(t, int64(3), r.Dead)
	require.Equal(t, int64(4), r.Accepted)
}

// The answer to another request under the same id becomes a dead letter, and no audit row, whichever came first.
func TestAnswersToOtherRequestsAreAccountedFor(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.submit("first", "second")
	other := func(id string) stream.Unit {
		asked := newTask(id)
		asked.Input = task.Input(`{"messages":["something else"]}`)
		m, err := records.ResultMessage(task.NewResult(asked, task.Expired, h.at))
		require.NoError(t, err)
		return stream.Unit{Messages: []stream.Message{m}}
	}
	h.end(task.Success, "first")
	h.put(other("first"))
	e := task.NewEvent(task.TaskQueued, newTask("second"), "router@test-1", h.at)
	e.Fingerprint = newTask("second").Fingerprint().Bytes()
	h.put(stream.Unit{Events: []task.Event{e}})
	h.finish("router", stream.TasksNormal, nil)
	h.record()
	h.put(other("second"))
	h.record()
	h.end(task.Success, "second")
	h.record()
	r := h.check(Options{})
	require.Truef(t, r.Holds, "%+v", r.Problems)
	require.Equal(t, int64(2), r.Terminal)
}

// A dead letter of another request under the same id does not account for the task that the id belongs to.
func TestADeadLetterOfAnotherRequestIsNotTheTask(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.submit("lost")
	require.NoError(t, h.log.Scan(t.Context(), stream.TasksNormal, func(r *stream.Record) error {
		h.put(stream.Unit{Messages: []stream.Message{records.DeadLetter(r, "router", records.ReasonIDReused, fmt.Errorf("its id belongs to another request"))}})
		return nil
	}))
	h.finish("router", stream.TasksNormal, nil)
	h.record()
	r := h.check(Options{})
	require.False(t, r.Holds)
	require.Equal(t, map[Kind]int64{Missing: 1}, r.Counts)
}

// A broker that is killed soon after it deleted records serves them again. The recorder has noted the hole
// and moved on: the hole is the only problem.
func TestRecordsOfAHoleThatCanBeReadAgain(t *testing.T) {
	t.Parallel()
	h := settled(t)
	h.submit("behind")
	h.end(task.Failed, "t-010", "behind")
	h.finish("router", stream.TasksNormal, nil)
	for _, topic := range []string{stream.Events, stream.Results} {
		h.missRest(topic)
	}
	h.end(task.Success, "behind") // it ran again
	h.record()
	r := h.check(Options{})
	for _, p := range r.Problems {
		require.Equal(t, RecordsGone, p.Kind, p.What)
		require.Contains(t, p.What, " of them can be read again")
	}
	require.NotEmpty(t, r.Problems)
}

func TestEveryKindOfDamageIsNamed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		harm func(h *history)
		want map[Kind]string
	}{
		{"a result is gone", func(h *history) { h.sql("DELETE FROM results WHERE task_id = 't-010'") },
			map[Kind]string{NotTaken: "t-010", StateWrong: "t-010", CallbackStray: "t-010"}},
		{"one of two results is gone", func(h *history) { h.sql("DELETE FROM results WHERE task_id = 't-003'") },
			map[Kind]string{NotTaken: "t-003", StateWrong: "t-003", CallbackStray: "t-003", EventStray: "results"}},
		{"a result of an unknown task", func(h *history) {
			h.end(task.Success, "unknown")
			h.record()
		}, map[Kind]string{ResultUnknown: "unknown"}},
		{"a result inserted by hand", func(h *history) {
			h.submit("by-hand")
			h.finish("router", stream.TasksNormal, nil)
			h.record()
			h.sql("INSERT INTO results (tenant, task_id, state, attempt, input_tokens, output_tokens, finished_at) VALUES ('acme', 'by-hand', 'SUCCESS', 1, 0, 0, now())")
		}, map[Kind]string{Changed: "by-hand", StateWrong: "by-hand"}},
		{"another result", func(h *history) { h.sql("UPDATE results SET state = 'FAILED' WHERE task_id = 't-011'") },
			map[Kind]string{Changed: "t-011", StateWrong: "t-011", EventMissing: "results"}},
		{"a state is gone", func(h *history) { h.sql("DELETE FROM tasks WHERE task_id = 't-012'") }, map[Kind]string{StateWrong: "t-012"}},
		{"a state of an unknown task", func(h *history) {
			h.sql("INSERT INTO tasks (tenant, task_id, state, seq, submitted_at, updated_at, known_from) VALUES ('acme', 'ghost', 'PENDING', 0, now(), now(), 2)")
		}, map[Kind]string{StateUnknown: "ghost"}},
		{"an audit row is gone", func(h *history) {
			h.sql("DELETE FROM audit_log WHERE task_id = 't-013' AND action = 'task.accepted'")
		}, map[Kind]string{EventMissing: "events", ChainRows: "events"}},
		{"an audit row twice", func(h *history) {
			h.sql("INSERT INTO audit_log SELECT * FROM audit_log WHERE task_id = 't-014' AND action = 'task.accepted'")
		}, map[Kind]string{EventTwice: "events", ChainRows: "events"}},
		{"an audit row without an event", func(h *history) {
			h.sql("INSERT INTO audit_log SELECT time, ingested_at, tenant, actor_type, actor_id, source_addr, user_agent, action, resource_type, resource_id, outcome, error_class, task_id, job_id, batch_id, device_id, attempt, trace_id, duration_ms, model, input_tokens, output_tokens, input_sha256, input_bytes, output_sha256, output_bytes, detail, row_digests, src_topic, src_partition, src_offset, 9999, NULL, NULL, NULL FROM audit_log WHERE task_id = 't-015' AND action = 'task.accepted'")
		}, map[Kind]string{EventStray: "events"}},
		{"an audit row at a place that no record has", func(h *history) {
			h.sql("INSERT INTO audit_log SELECT time, ingested_at, tenant, actor_type, actor_id, source_addr, user_agent, action, resource_type, resource_id, outcome, error_class, task_id, job_id, batch_id, device_id, attempt, trace_id, duration_ms, model, input_tokens, output_tokens, input_sha256, input_bytes, output_sha256, output_bytes, detail, row_digests, src_topic, src_partition, src_offset, -1, NULL, NULL, NULL FROM audit_log WHERE task_id = 't-015' AND action = 'task.accepted'")
		}, map[Kind]string{EventStray: "events"}},
		{"a result with values that no recorder writes", func(h *history) {
			h.sql("UPDATE results SET attempt = -1, finished_at = 'infinity', submitted_at = '-infinity' WHERE task_id = 't-018'")
		}, map[Kind]string{Changed: "t-018", EventMissing: "results"}},
		{"a copy of a table in another schema", func(h *history) {
			audittest.Execute(t, h.pool, "CREATE SCHEMA clean")
			audittest.Execute(t, h.pool, "CREATE TABLE clean.results AS TABLE results")
		}, map[Kind]string{SchemaWrong: "clean.results"}},
		{"the row of a duplicate is gone", func(h *history) {
			h.sql("DELETE FROM audit_log WHERE action = 'result.duplicate' AND task_id = 't-003'")
		},
			map[Kind]string{EventMissing: "results", ChainRows: "results"}},
		{"a callback is gone", func(h *history) { h.sql("DELETE FROM callbacks WHERE task_id = 't-016'") }, map[Kind]string{CallbackMissing: "t-016"}},
		{"a callback twice", func(h *history) {
			h.sql("INSERT INTO callbacks (callback_id, tenant, task_id, url, host) VALUES ('evt_other', 'acme', 't-017', 'https://x', 'x')")
		}, map[Kind]string{CallbackTwice: "t-017"}},
		{"a task was finished without a result", func(h *history) {
			h.submit("dropped")
			h.finish("router", stream.TasksNormal, nil)
			h.record()
		}, map[Kind]string{Missing: "dropped"}},
		{"the offsets are beyond the log", func(h *history) {
			h.sql("UPDATE stream_offsets SET next_offset = 100000 WHERE topic = 'events' AND partition = 0")
		}, map[Kind]string{OffsetsBeyond: "events"}},
		{"records were deleted before they were recorded", func(h *history) {
			h.sql("INSERT INTO stream_breaks (topic, partition, kind, chain_seq, first_offset, last_offset, noticed_at, actor_id) VALUES ('events', 1, 'records_missed', 0, 5, 9, now(), 'audit@test')")
		}, map[Kind]string{RecordsGone: "events/1@5"}},
		{"a topic of tasks was created again", func(h *history) {
			audittest.Recreate(t, h.log, stream.TasksNormal)
			h.submit("after")
			h.finish("router", stream.TasksNormal, nil)
			h.end(task.Success, "after")
			h.record()
		}, map[Kind]string{TasksGone: "tasks.normal"}},
		{"the topics of the recorder were created again", func(h *history) {
			for _, topic := range []string{stream.Events, stream.Results} {
				audittest.Recreate(t, h.log, topic)
			}
			all := ids("again", 20) // their records have offsets that those of other tasks had before
			h.submit(all...)
			h.end(task.Success, all...)
			for _, topic := range back {
				h.finish("router", topic, nil)
			}
			h.recordUntil(func(ctx context.Context) {
				require.Eventually(t, func() bool {
					var n int
					return h.pool.QueryRow(ctx, "SELECT count(*) FROM results WHERE task_id LIKE 'again%'").Scan(&n) == nil && n == 20
				}, testenv.Patience, 20*time.Millisecond)
			})
			h.record()
		}, map[Kind]string{TopicReplaced: "/"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := settled(t)
			c.harm(h)
			r := h.check(Options{})
			require.False(t, r.Holds)
			got := kinds(r)
			for kind, about := range got {
				require.Containsf(t, about, c.want[kind], "%s: %+v", kind, r.Problems)
				require.NotEmptyf(t, c.want[kind], "%+v", r.Problems)
			}
			for kind := range c.want {
				require.Containsf(t, got, kind, "%+v", r.Problems)
			}
		})
	}
}

// A task may have more results than are kept to compare them.
func TestManyResultsOfOneTask(t *testing.T) {
	t.Parallel()
	h := settled(t)
	for range mostOffered + 10 {
		h.end(task.Failed, "t-020")
	}
	h.record()
	r := h.check(Options{})
	require.Truef(t, r.Holds, "%+v", r.Problems)
	require.Equal(t, int64(mostOffered+10+2), r.Events.Duplicates)
}

func TestProblemsOfOnlyOnePassAreNotReported(t *testing.T) {
	t.Parallel()
	h := settled(t)
	h.submit("moves")
	h.finish("router", stream.TasksNormal, nil)
	h.record()
	looked := false
	r := h.check(Options{between: func() {
		looked = true
		h.end(task.Success, "moves")
		h.record()
	}})
	require.True(t, looked, "the first pass must find it missing")
	require.Truef(t, r.Holds, "%+v", r.Problems)
	require.Equal(t, 2, r.Looks)
	require.Equal(t, int64(61), r.Terminal)
}

func TestCheckEndsWithItsContextAndWithoutARecorder(t *testing.T) {
	t.Parallel()
	h := settled(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Check(ctx, h.log, h.pool, Options{})
	require.ErrorIs(t, err, context.Canceled)
	h.end(task.Success, "t-001") // and no recorder runs
	r := h.check(Options{Wait: 300 * time.Millisecond})
	require.True(t, r.Holds)
}

// All tasks that a recreated topic has no record of are one problem, and say when they were submitted. What
// was never submitted is a problem of its own.
func TestARecreatedTopicOfTasksIsOneProblem(t *testing.T) {
	t.Parallel()
	h := settled(t)
	audittest.Recreate(t, h.log, stream.TasksNormal)
	h.submit("after")
	h.finish("router", stream.TasksNormal, nil)
	h.end(task.Success, "after", "never-submitted")
	h.record()
	r := h.check(Options{})
	require.Equal(t, map[Kind]int64{TasksGone: 1, ResultUnknown: 1}, r.Counts)
	require.Equal(t, "never-submitted", kinds(r)[ResultUnknown])
	require.Contains(t, r.Problems[slices.IndexFunc(r.Problems, func(p Problem) bool { return p.Kind == TasksGone })].What, "59 tasks", "one of the 60 was parked")
}
