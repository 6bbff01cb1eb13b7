package recorder

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder/partitions"
	"github.com/batchyard/batchyard/audit/recorder/states"
	"github.com/batchyard/batchyard/internal/fuzzing"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
	"github.com/batchyard/batchyard/test/audittest"
)

func TestATaskFromBeginningToEnd(t *testing.T) {
	t.Parallel()
	r := newRig(t, audittest.NewPool(t))
	events, results := r.own("events", 0), r.own("results", 0)
	s := audittest.NewStory("t1")
	s.Task.Callback = &task.Callback{URL: "https://example.com/hook"}
	s.Task.Labels = map[string]string{"team": "blue"}
	accepted, queued := s.Accepted(), s.Event(task.TaskQueued, 0, "")
	assigned, started := s.Event(task.TaskAssigned, 1, "d1"), s.Event(task.AttemptStarted, 1, "d1")
	started.Duration, started.InputTokens, started.Detail = 1500*time.Microsecond, 7, []byte(`{"why":"earliest finish"}`)

	r.record(events.events(t, accepted, queued))
	require.Equal(t, "PENDING", audittest.One[string](t, r.pool, "SELECT state FROM tasks WHERE tenant = 'acme' AND task_id = 't1'"))
	r.record(events.events(t, assigned))
	require.Equal(t, "ASSIGNED d1", audittest.One[string](t, r.pool, "SELECT state || ' ' || device_id FROM tasks"))
	r.record(events.events(t, started))
	res := s.Result(task.Success, "d1")
	r.record(results.result(t, res))

	row := struct {
		State, Device, Model, Endpoint, Priority, Job, Custom string
		Attempt                                               int
		Submitted, Assigned, Started, Finished, Deadline      time.Time
	}{}
	require.NoError(t, r.pool.QueryRow(t.Context(), `SELECT state, device_id, model, endpoint, priority, job_id, custom_id, attempt,
		submitted_at, assigned_at, started_at, finished_at, deadline FROM tasks`).Scan(&row.State, &row.Device, &row.Model, &row.Endpoint,
		&row.Priority, &row.Job, &row.Custom, &row.Attempt, &row.Submitted, &row.Assigned, &row.Started, &row.Finished, &row.Deadline))
	require.Equal(t, []any{"SUCCESS", "d1", "m", task.EndpointChat, "normal", "job-1", "line-t1", 1},
		[]any{row.State, row.Device, row.Model, row.Endpoint, row.Priority, row.Job, row.Custom, row.Attempt})
	for what, at := range map[string][2]time.Time{
		"submitted": {s.Task.SubmittedAt, row.Submitted}, "assigned": {assigned.Time, row.Assigned}, "started": {started.Time, row.Started},
		"finished": {res.FinishedAt, row.Finished}, "deadline": {s.Task.Deadline, row.Deadline}} {
		require.True(t, at[0].Equal(at[1]), "%s: %v and %v", what, at[0], at[1])
	}
	require.Equal(t, `{"answer":42}`, audittest.One[string](t, r.pool, "SELECT output::text FROM results"))
	require.Equal(t, "blue", audittest.One[string](t, r.pool, "SELECT labels->>'team' FROM results"))
	require.Equal(t, s.Task.Run().CallbackID(), audittest.One[string](t, r.pool, "SELECT callback_id FROM callbacks WHERE state = 'DUE' AND next_at <= now()"))

	require.Equal(t, 4, audittest.One[int](t, r.pool, "SELECT count(*) FROM audit_log WHERE action <> 'audit.rows_recorded'"))
	require.Zero(t, audittest.One[int](t, r.pool, "SELECT count(*) FROM audit_log_default"))
	require.Equal(t, "acme 203.0.113.7:4711 test", audittest.One[string](t, r.pool, "SELECT actor_id || ' ' || source_addr || ' ' || user_agent FROM audit_log WHERE action = 'task.accepted'"))
	require.Equal(t, "1.5 7 1 earliest finish", audittest.One[string](t, r.pool, "SELECT duration_ms || ' ' || input_tokens || ' ' || attempt || ' ' || (detail->>'why') FROM audit_log WHERE action = 'attempt.started'"))
	require.Equal(t, int64(2), audittest.One[int64](t, r.pool, "SELECT octet_length(input_sha256) / 16 FROM audit_log WHERE action = 'task.accepted'"))
	require.Equal(t, int64(3), audittest.One[int64](t, r.pool, "SELECT next_offset FROM stream_offsets WHERE topic = 'events'"))
}

func TestTheFirstResultWins(t *testing.T) {
	t.Parallel()
	r := newRig(t, audittest.NewPool(t))
	results := r.own("results", 3)
	s := audittest.NewStory("t1")
	first, second := s.Result(task.Success, "d1"), s.Result(task.Failed, "d1", "d2")
	second.Callback = &task.Callback{URL: "https://example.com/late"}
	r.record(results.result(t, first), results.result(t, second), results.result(t, first)) // in one chunk
	third := s.Result(task.Expired)
	r.record(results.result(t, third), results.result(t, first)) // and later

	require.Equal(t, "SUCCESS", audittest.One[string](t, r.pool, "SELECT state FROM results"))
	require.Equal(t, "SUCCESS d1", audittest.One[string](t, r.pool, "SELECT state || ' ' || device_id FROM tasks"))
	require.Zero(t, audittest.One[int](t, r.pool, "SELECT count(*) FROM callbacks"))
	rows, err := r.pool.Query(t.Context(), "SELECT src_offset || ' ' || (detail->>'state') || ' ' || src_topic || ' ' || actor_id FROM audit_log WHERE action = 'result.duplicate' ORDER BY 1")
	require.NoError(t, err)
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	require.Equal(t, []string{"1 FAILED results audit@test-1", "3 EXPIRED results audit@test-1"}, got, "the same result once more is no event")
}

// Many results at once are copied, which fails if a task already has one. Then they are inserted
// one by one, and nothing is lost or recorded twice.
func TestTheFirstOfManyResultsWins(t *testing.T) {
	t.Parallel()
	r := newRig(t, audittest.NewPool(t))
	results := r.own("results", 0)
	say := func(from, to int, state task.State) (c chunk) {
		for i := from; i < to; i++ {
			c = append(c, results.result(t, audittest.NewStory(fmt.Sprint("t", i)).Result(state, "d1")))
		}
		return c
	}
	const n = minRowsForCopy
	r.record(say(0, n, task.Success)...)
	require.Zero(t, r.w.chunks.safeChunks)
	// Half of them again, but different, and as many new ones; the last one twice.
	r.record(append(say(n/2, n+n/2, task.Failed), say(n+n/2-1, n+n/2, task.Expired)...)...)
	require.Equal(t, slowPathChunks-1, r.w.chunks.safeChunks)
	require.Equal(t, n, audittest.One[int](t, r.pool, "SELECT count(*) FROM results WHERE state = 'SUCCESS'"))
	require.Equal(t, n/2, audittest.One[int](t, r.pool, "SELECT count(*) FROM results WHERE state = 'FAILED'"))
	require.Equal(t, n+n/2, audittest.One[int](t, r.pool, "SELECT count(*) FROM tasks t JOIN results r ON r.tenant = t.tenant AND r.task_id = t.task_id AND r.state = t.state"))
	require.Equal(t, n/2+1, audittest.One[int](t, r.pool, "SELECT count(*) FROM audit_log WHERE action = 'result.duplicate'"))
	require.Empty(t, r.sent)

	// What Postgres refuses is found among them all the same, and in mode safe nothing is refused
	// because it exists already.
	r.w.chunks.safeChunks = 0
	r.record(say(2*n, 2*n+2, task.Success)...)
	bad := say(2*n, 3*n+1, task.Success)
	bad[3].result.State = "LOST" // no decoder lets this through
	r.record(bad...)
	require.Len(t, r.sent, 1)
	require.Equal(t, bad[3], r.sent[0].entry)
	require.Equal(t, slowPathChunks-1, r.w.chunks.safeChunks)
	require.Equal(t, n+n/2+n, audittest.One[int](t, r.pool, "SELECT count(*) FROM results"))

	// After a while results are copied again.
	for i := range slowPathChunks - 1 {
		r.record(say(100*n+i, 100*n+i+1, task.Success)...)
	}
	require.Zero(t, r.w.chunks.safeChunks)
}

// Results that cannot be copied are inserted: if someone has modified the table, many results at
// once are treated like few.
func TestResultsThatCannotBeCopied(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		sql  string
		lost int // results that the table does not keep
	}{
		"another type": {"ALTER TABLE results ALTER status TYPE bigint", 0},
		"a trigger": {`CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN CASE WHEN NEW.task_id = 't5' THEN NULL ELSE NEW END; END $$;
			CREATE TRIGGER lose BEFORE INSERT ON results FOR EACH ROW EXECUTE FUNCTION lose()`, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, audittest.NewPool(t))
			_, err := r.pool.Exec(t.Context(), c.sql)
			require.NoError(t, err)
			results := r.own("results", 0)
			var all chunk
			for i := range minRowsForCopy {
				all = append(all, results.result(t, audittest.NewStory(fmt.Sprint("t", i)).Result(task.Success, "d1")))
			}
			r.record(all...)
			require.Equal(t, slowPathChunks-1, r.w.chunks.safeChunks)
			for sql, n := range map[string]int{"SELECT count(*) FROM results": minRowsForCopy - c.lost, "SELECT count(*) FROM tasks": minRowsForCopy - c.lost, "SELECT count(*) FROM audit_log WHERE action <> 'audit.rows_recorded'": c.lost} {
				require.Equal(t, n, audittest.One[int](t, r.pool, sql), sql)
			}
			require.Empty(t, r.sent)
		})
	}
}

func TestATwinThatWasReplacedCannotWrite(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	old, young := newRig(t, pool), newRig(t, pool)
	s := audittest.NewStory("t1")
	before := old.own("events", 0)
	held := before.events(t, s.Accepted())
	alone := old.own("events", 1) // a partition that the old one keeps
	kept := alone.events(t, s.Event(task.TaskQueued, 0, ""))

	after := young.own("events", 0)
	again := *held
	again.part, again.rec = after, &fakeRecord{}
	young.record(&again)

	// The old one wakes up and does not know that the partition is lost.
	old.record(held, kept)
	require.Equal(t, 2, audittest.One[int](t, pool, "SELECT count(*) FROM audit_log"))
	require.Equal(t, 2, audittest.One[int](t, pool, "SELECT count(DISTINCT (src_partition, src_offset, src_index)) FROM audit_log"))
	require.True(t, kept.rec.(*fakeRecord).isDone())

	// Both continue, believing that they own the partition: still once.
	for i := range 10 {
		e := s.Event(task.TaskQueued, 0, "")
		mine := before.events(t, e)
		theirs := *mine
		theirs.part, theirs.rec = after, &fakeRecord{}
		if i%2 == 0 {
			old.record(mine)
			young.record(&theirs)
		} else {
			young.record(&theirs)
			old.record(mine)
		}
	}
	require.Equal(t, 12, audittest.One[int](t, pool, "SELECT count(*) FROM audit_log"))

	// Once it knows, it lets go.
	lost := before.events(t, s.Event(task.TaskQueued, 0, ""))
	lost.rec.(*fakeRecord).lost = true
	old.record(lost)
	require.Equal(t, 12, audittest.One[int](t, pool, "SELECT count(*) FROM audit_log"))
}

func TestACommitWhoseReplyWasLostIsNotRepeated(t *testing.T) {
	t.Parallel()
	r := newRig(t, audittest.NewPool(t))
	events := r.own("events", 0)
	e := events.events(t, audittest.NewStory("t1").Accepted())
	next, epoch := events.next, events.epoch
	_, err := r.w.chunks.apply(t.Context(), chunk{e})
	require.NoError(t, err)
	events.next, events.epoch = next, epoch // as if the reply had been lost
	r.record(e)
	require.Equal(t, 1, audittest.One[int](t, r.pool, "SELECT count(*) FROM audit_log"))
	require.Equal(t, int64(1), events.next)
	require.True(t, e.rec.(*fakeRecord).isDone())
}

func TestOffsetsSetBackByHandAreAnError(t *testing.T) {
	t.Parallel()
	r := newRig(t, audittest.NewPool(t))
	events := r.own("events", 0)
	s := audittest.NewStory("t1")
	r.record(events.events(t, s.Accepted()), events.events(t, s.Event(task.TaskQueued, 0, "")))
	_, err := r.pool.Exec(t.Context(), "UPDATE stream_offsets SET next_offset = 1")
	require.NoError(t, err)
	require.ErrorIs(t, r.w.record(t.Context(), chunk{events.events(t, s.Event(task.TaskQueued, 0, ""))}), errOffsetsSetBack)
	_, err = r.pool.Exec(t.Context(), "TRUNCATE stream_offsets")
	require.NoError(t, err)
	require.ErrorIs(t, r.w.record(t.Context(), chunk{events.events(t, s.Event(task.TaskQueued, 0, ""))}), errOffsetsSetBack)
}

func TestWhatCannotBeRecordedIsSetAside(t *testing.T) {
	t.Parallel()
	r := newRig(t, audittest.NewPool(t))
	events, results := r.own("events", 0), r.own("results", 0)
	var c chunk
	for i := range 20 {
		s := audittest.NewStory(fmt.Sprintf("t%d", i))
		c = append(c, events.events(t, s.Accepted(), s.Event(task.TaskQueued, 0, "")), results.result(t, s.Result(task.Success, "d1")))
	}
	// An action that does not exist, among good ones; a broken frame; a broken result.
	s := audittest.NewStory("mixed")
	strange := s.Event("task.teleported", 0, "")
	mixed := events.events(t, s.Accepted(), strange, s.Event(task.TaskQueued, 0, ""))
	broken := &entry{rec: &fakeRecord{}, part: events, offset: events.take(), bytes: 3}
	broken.decode([]byte{0xdd, 0xff, 0xff, 0xff, 0xff})
	notJSON := &entry{rec: &fakeRecord{}, part: results, offset: results.take(), bytes: 3}
	notJSON.decodeAsResult([]byte(`{"task_id":`), "")
	c = append(c, mixed, broken, notJSON)
	// What only Postgres refuses: bypass the cleaning of one event and one result.
	nul := events.events(t, audittest.NewStory("nul").Accepted(), audittest.NewStory("good").Accepted())
	nul.events[0].event.ActorID = "a\x00b"
	bad := results.result(t, audittest.NewStory("bad").Result(task.Success, "d1"))
	bad.result.Output = task.Input(`{"unfinished":`)
	c = append(c, nul, bad)
	r.record(c...)

	require.Equal(t, 20*2+2+1, audittest.One[int](t, r.pool, "SELECT count(*) FROM audit_log"))
	require.Equal(t, 20, audittest.One[int](t, r.pool, "SELECT count(*) FROM results"))
	require.Equal(t, int32(2), audittest.One[int32](t, r.pool, "SELECT max(src_index) FROM audit_log"), "indexes stay when other events are taken out")
	require.Len(t, r.sent, 5)
	reasons := map[string]int{}
	for _, l := range r.sent {
		reasons[l.reason]++
		require.Error(t, l.cause)
	}
	require.Equal(t, map[string]int{"invalid": 1, "unreadable": 2, "refused": 2}, reasons)
	for _, e := range c {
		require.True(t, e.rec.(*fakeRecord).isDone())
	}
	require.Equal(t, events.read, audittest.One[int64](t, r.pool, "SELECT next_offset FROM stream_offsets WHERE topic = 'events'"))
}

func TestStrangeTextIsCleaned(t *testing.T) {
	t.Parallel()
	r := newRig(t, audittest.NewPool(t))
	events := r.own("events", 0)
	e := audittest.NewStory("t1").Event(task.TaskRefused, 0, "d\x00\xff")
	e.UserAgent, e.Detail = string(make([]byte, 5000)), []byte(`{"broken`)
	e.InputSHA256 = make([]byte, 5000)
	r.record(events.events(t, e))
	require.Equal(t, "d\uFFFD\uFFFD 512 8", audittest.One[string](t, r.pool, "SELECT device_id || ' ' || length(user_agent) || ' ' || (detail->>'unreadable_bytes') FROM audit_log"))

	long := audittest.NewStory("t2").Event(task.TaskQueued, 0, "")
	long.TaskID = string(make([]rune, task.MaxIDLength+1))
	far := audittest.NewStory("t4").Event(task.TaskAssigned, 1<<40, "d1")
	require.Len(t, events.events(t, long, far).dead, 2)
}

// A worker whose clock was wrong stamps a result with a time that no table holds. The task ends all the
// same, with the time of the record, and what happened has its row.
func TestAWrongClockCostsNoResult(t *testing.T) {
	t.Parallel()
	r := newRig(t, audittest.NewPool(t))
	events, results := r.own("events", 0), r.own("results", 0)
	written := time.Now().UTC().Truncate(time.Microsecond)
	for i, at := range []time.Time{time.Unix(12345, 0), {}, time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC)} {
		s := audittest.NewStory(fmt.Sprintf("t%d", i))
		s.Task.Callback = &task.Callback{URL: "https://example.com/hook"}
		res, done := s.Result(task.Success, "d1"), s.Event(task.TaskSucceeded, 1, "d1")
		res.FinishedAt, done.Time = at, at
		for _, e := range []*entry{events.events(t, s.Accepted()), events.unread(t, written, done), results.unreadResult(t, written, res)} {
			r.w.slab.decode(chunk{e})
			require.Empty(t, e.dead)
			r.record(e)
		}
	}
	require.Equal(t, 3, audittest.One[int](t, r.pool, "SELECT count(*) FROM results WHERE finished_at = $1", written))
	require.Equal(t, 3, audittest.One[int](t, r.pool, "SELECT count(*) FROM tasks WHERE state = 'SUCCESS'"))
	require.Equal(t, 3, audittest.One[int](t, r.pool, "SELECT count(*) FROM callbacks"))
	require.Equal(t, 3, audittest.One[int](t, r.pool, "SELECT count(*) FROM audit_log WHERE action = 'task.succeeded' AND time = $1 AND detail->>'stamped' <> ''", written))
}

func TestOldDaysGetAPartitionAndOlderOnesDoNot(t *testing.T) {
	t.Parallel()
	r := newRig(t, audittest.NewPool(t))
	events := r.own("events", 0)
	at := func(d time.Duration) task.Event {
		e := audittest.NewStory("t1").Event(task.TaskRefused, 0, "")
		e.Time = time.Now().Add(d)
		return e
	}
	r.record(events.events(t, at(0), at(-40*audit.Day), at(-400*audit.Day), at(400*audit.Day)))
	require.Equal(t, 2, audittest.One[int](t, r.pool, "SELECT count(*) FROM audit_log_default"))
	parts := audittest.One[int](t, r.pool, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'audit_log'::regclass")
	require.Equal(t, 3, parts, "the default partition, today, and 40 days ago")

	var gone []partitions.DroppedDay
	m := r.maintenance(func(cfg *Config) { cfg.Retention = 30 * audit.Day })
	m.Dropped = func(_ context.Context, d partitions.DroppedDay) { gone = append(gone, d) }
	require.NoError(t, m.Once(t.Context()))
	rows, err := r.pool.Query(t.Context(), "SELECT relname::text FROM pg_inherits JOIN pg_class ON oid = inhrelid WHERE inhparent = 'audit_log'::regclass")
	require.NoError(t, err)
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	today := audit.DayOf(time.Now())
	for i := range partitions.DaysAhead + 1 {
		require.Contains(t, names, today.Add(time.Duration(i)*audit.Day).Format("audit_log_20060102"))
	}
	require.NotContains(t, names, today.Add(-40*audit.Day).Format("audit_log_20060102"))
	require.Equal(t, 1, audittest.One[int](t, r.pool, "SELECT count(*) FROM audit_log_default"), "the one from the future stays")
	require.Equal(t, []partitions.DroppedDay{
		{Day: audit.DayOf(time.Now().Add(-400 * audit.Day)).Format(time.DateOnly), Rows: 1, Chained: 1, Runs: 1},
		{Day: audit.DayOf(time.Now().Add(-40 * audit.Day)).Format(time.DateOnly), Rows: 1, Chained: 1, Runs: 1},
	}, gone)
	require.Equal(t, "3-3 2-2", audittest.One[string](t, r.pool, "SELECT string_agg(first_seq || '-' || last_seq, ' ' ORDER BY day) FROM audit_dropped"))
	require.NoError(t, m.Once(t.Context()))
}

func TestAChunkIsKeptWhilePostgresCannotRecordIt(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	r := newRig(t, pool)
	events := r.own("events", 0)
	_, err := pool.Exec(t.Context(), "ALTER TABLE audit_log RENAME TO audit_log_away")
	require.NoError(t, err)
	done := make(chan error, 1)
	e := events.events(t, audittest.NewStory("t1").Accepted())
	go func() { done <- r.w.record(context.WithoutCancel(t.Context()), chunk{e}) }()
	require.Eventually(t, func() bool {
		return r.w.health.Failed() != nil
	}, 30*time.Second, 5*time.Millisecond)
	require.False(t, e.rec.(*fakeRecord).isDone())
	_, err = pool.Exec(t.Context(), "ALTER TABLE audit_log_away RENAME TO audit_log")
	require.NoError(t, err)
	require.NoError(t, <-done)
	require.NoError(t, r.w.health.Failed())
	require.Equal(t, 1, audittest.One[int](t, pool, "SELECT count(*) FROM audit_log"))
}

func FuzzDecodeRecord(f *testing.F) {
	s := audittest.NewStory("t1")
	b, err := wire.EncodeFrame(wire.FrameEvents, []task.Event{s.Accepted(), s.Event(task.TaskAssigned, 1, "d1")})
	require.NoError(f, err)
	f.Add(b)
	j, err := json.Marshal(s.Result(task.Failed, "d1"))
	require.NoError(f, err)
	f.Add(j)
	f.Fuzz(func(t *testing.T, b []byte) {
		e := &entry{}
		fuzzing.Bound(t, len(b), func() {
			e = &entry{}
			e.decode(b)
		})
		var c rowEncoder
		c.resetCopy()
		for i := range e.events {
			c.row(&e.events[i].event, audit.PartitionOf("events", 0).At(audit.Position{Index: e.events[i].index}), time.Now(), nil, &chainEnd{})
			var s states.State
			states.OfEvent(&e.events[i].event, &s)
		}
		fuzzing.Bound(t, len(b), func() {
			e = &entry{}
			e.decodeAsResult(b, "")
		})
		if e.result != nil {
			var a pg.Rows
			a.Reset(pg.BinaryArray, resultWidth)
			addResultRow(&a, e.result)
			s := states.OfResult(e.result)
			a.Reset(pg.BinaryArray, states.Width)
			s.AddRow(&a)
			if e.result.Callback != nil {
				hostOf(e.result.Callback.URL)
			}
		}
	})
}
