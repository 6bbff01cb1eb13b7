package recorder

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder/partitions"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
)

// wholeLives returns a chunk of tasks that begin and end in it.
func wholeLives(t *testing.T, events, results *ownership, from, to int) (c chunk) {
	for i := from; i < to; i++ {
		es, r := audittest.NewStory(fmt.Sprint("t", i)).Life()
		c = append(c, events.events(t, es...), results.result(t, r))
	}
	return c
}

// Tasks that begin and end in a chunk are copied. If something about one of them was recorded
// before, all of them are merged with what is there, as if they had come one by one.
func TestTasksThatBeginAndEndInAChunkAreCopied(t *testing.T) {
	t.Parallel()
	r := newRig(t, audittest.NewPool(t))
	events, results := r.own("events", 0), r.own("results", 0)
	const n = minRowsForCopy
	r.record(wholeLives(t, events, results, 0, n)...)
	require.Zero(t, r.w.chunks.safeChunks)
	require.Equal(t, n, audittest.One[int](t, r.pool, "SELECT count(*) FROM tasks WHERE state = 'SUCCESS' AND version = 1 AND known_from = 2 AND device_id = 'sim-gpu-4' AND finished_at > started_at"))

	early := audittest.NewStory(fmt.Sprint("t", n)).Event(task.TaskQueued, 0, "") // its producer died, or was slow
	r.record(events.events(t, early))
	r.record(wholeLives(t, events, results, n, 2*n)...)
	require.Equal(t, slowPathChunks-1, r.w.chunks.safeChunks)
	require.Equal(t, 2*n, audittest.One[int](t, r.pool, "SELECT count(*) FROM tasks WHERE state = 'SUCCESS' AND known_from = 2"))
	require.Equal(t, fmt.Sprint("t", n), audittest.One[string](t, r.pool, "SELECT task_id FROM tasks WHERE version = 2"))
	require.Equal(t, 2*n, audittest.One[int](t, r.pool, "SELECT count(*) FROM results"))
	require.Equal(t, 14*n+1, audittest.One[int](t, r.pool, "SELECT count(*) FROM audit_log"))
	audittest.RequireChains(t, r.pool, map[string]int64{"events/0": 14*n + 1})

	// Most tasks end in a later chunk than they begin in: the shortcut is not for them.
	r.w.chunks.safeChunks = 0
	var begun, ended chunk
	for i := range n {
		es, end := audittest.NewStory(fmt.Sprint("u", i)).Life()
		begun, ended = append(begun, events.events(t, es[:4]...)), append(ended, events.events(t, es[4:]...), results.result(t, end))
	}
	r.record(begun...)
	r.record(ended...)
	require.Zero(t, r.w.chunks.safeChunks)
	require.Equal(t, n, audittest.One[int](t, r.pool, "SELECT count(*) FROM tasks WHERE task_id LIKE 'u%' AND state = 'SUCCESS' AND version = 2"))
	require.Empty(t, r.sent)
}

// Rows of several days in one chunk, with and without the shortcut, end up in the partitions of
// their days.
func TestDaysAreWrittenDirectly(t *testing.T) {
	t.Parallel()
	r := newRig(t, audittest.NewPool(t))
	events := r.own("events", 0)
	today := audit.DayOf(time.Now())
	say := func() *entry {
		var es []task.Event
		for _, at := range []time.Time{today, today.Add(-time.Nanosecond), today.Add(audit.Day), today.Add(-400 * audit.Day), today.Add(time.Hour)} {
			e := audittest.NewStory("t1").Event(task.TaskQueued, 0, "")
			e.Time = at
			es = append(es, e)
		}
		return events.events(t, es...)
	}
	of := func(at time.Time) string { return "audit_log_" + at.Format("20060102") }
	r.record(say())
	require.Len(t, r.w.chunks.days.shortcuts(), 3)
	r.w.chunks.safeChunks = 1
	r.record(say())
	require.Empty(t, r.w.chunks.days.shortcuts())
	for table, n := range map[string]int{of(today): 2, of(today.Add(-audit.Day)): 1, of(today.Add(audit.Day)): 1, "audit_log_default": 1} {
		require.Equal(t, 2*n, audittest.One[int](t, r.pool, "SELECT count(*) FROM "+table), table)
	}
	audittest.RequireChains(t, r.pool, map[string]int64{"events/0": 10})
}

// A partition that was detached or dropped gets no more rows, not even from a writer that has just
// written to it; the rows stay in the log.
func TestADetachedDayGetsNoRows(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"detached": "ALTER TABLE audit_log DETACH PARTITION %s",
		"dropped":  "DROP TABLE %s",
		"replaced": "ALTER TABLE audit_log DETACH PARTITION %[1]s; ALTER TABLE %[1]s RENAME TO old; CREATE TABLE %[1]s (LIKE audit_log INCLUDING ALL)",
		"another":  "ALTER TABLE %s ADD CONSTRAINT foreign_check CHECK (actor_id = 'mallory') NOT VALID; ALTER TABLE audit_log DETACH PARTITION %[1]s",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, audittest.NewPool(t))
			events := r.own("events", 0)
			s := audittest.NewStory("t1")
			r.record(events.events(t, s.Accepted()))
			table := "audit_log_" + s.At.Format("20060102")
			require.Equal(t, []string{"public." + table}, r.w.chunks.days.shortcuts())

			_, err := r.pool.Exec(t.Context(), fmt.Sprintf(sql, table))
			require.NoError(t, err)
			r.record(events.events(t, s.Event(task.TaskQueued, 0, "")))
			require.Equal(t, slowPathChunks-1, r.w.chunks.safeChunks)
			r.w.chunks.safeChunks = 0
			r.record(events.events(t, s.Event(task.TaskAssigned, 1, "d1")))
			require.Zero(t, r.w.chunks.safeChunks, "the shortcut is not tried again")
			require.Empty(t, r.w.chunks.days.shortcuts())
			require.Equal(t, 2, audittest.One[int](t, r.pool, "SELECT count(*) FROM audit_log WHERE action <> 'task.accepted'"))
			require.Equal(t, 2, audittest.One[int](t, r.pool, "SELECT count(*) FROM audit_log_default"))
			require.Empty(t, r.sent)
		})
	}
}

// If the record was at fault, the shortcut for its day stays open.
func TestARefusedRecordDoesNotCloseItsDay(t *testing.T) {
	t.Parallel()
	r := newRig(t, audittest.NewPool(t))
	events := r.own("events", 0)
	s := audittest.NewStory("t1")
	bad := events.events(t, s.Accepted(), s.Event(task.TaskQueued, 0, ""), s.Event(task.TaskAssigned, 1, "d1"))
	bad.events[1].event.ActorID = "\xff" // no decoder lets this through
	r.record(bad)
	require.Len(t, r.sent, 1)
	for r.w.chunks.safeChunks > 0 {
		r.record(events.events(t, s.Event(task.TaskQueued, 0, "")))
	}
	r.record(events.events(t, s.Event(task.TaskQueued, 0, "")))
	require.Len(t, r.w.chunks.days.shortcuts(), 1)
}

// A migration that changes audit_log locks it and then its partitions. A writer that had locked one of these
// first would deadlock with them.
func TestTheLogIsLockedBeforeItsPartitions(t *testing.T) {
	t.Parallel()
	r := newRig(t, audittest.NewPool(t))
	events := r.own("events", 0)
	s := audittest.NewStory("t1")
	r.record(events.events(t, s.Accepted()))
	require.Len(t, r.w.chunks.days.shortcuts(), 1)
	tx, err := r.pool.Begin(t.Context())
	require.NoError(t, err)
	defer pg.Rollback(t.Context(), tx)
	_, err = tx.Exec(t.Context(), "LOCK TABLE ONLY audit_log IN SHARE MODE")
	require.NoError(t, err)
	next := events.events(t, s.Event(task.TaskQueued, 0, ""))
	done := make(chan error, 1)
	go func() { done <- r.w.record(t.Context(), chunk{next}) }()
	// The databases of other tests have tables with the same OIDs, because all come from one
	// template.
	const here = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
	require.Eventually(t, func() bool {
		return audittest.One[bool](t, r.pool, "SELECT EXISTS (SELECT FROM pg_locks WHERE "+here+" AND relation = 'audit_log'::regclass AND NOT granted)")
	}, audittest.Patience, 5*time.Millisecond)
	require.Zero(t, audittest.One[int](t, r.pool, "SELECT count(*) FROM pg_locks WHERE "+here+" AND mode = 'RowExclusiveLock' AND granted AND relation IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'audit_log'::regclass)"))
	require.NoError(t, tx.Rollback(t.Context()))
	require.NoError(t, <-done)
	require.Len(t, r.w.chunks.days.shortcuts(), 1)
}

// Rows go through audit_log for a while, without waiting for anyone.
func TestADayThatCannotBeWrittenDirectlyNow(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"a day is being created or dropped": "SELECT pg_advisory_xact_lock(hashtextextended('batchyard_make_audit_partition', 0))",
		"a trigger for each statement": `CREATE FUNCTION count_them() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
			CREATE TRIGGER count_them AFTER INSERT ON audit_log FOR EACH STATEMENT EXECUTE FUNCTION count_them()`,
		"the function is gone": "DROP FUNCTION batchyard_audit_partition(date)",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			owner, of := audittest.Logins(t, "batchyard_recorder")
			r := newRig(t, of["batchyard_recorder"])
			events := r.own("events", 0)
			s := audittest.NewStory("t1")
			for _, at := range []time.Time{s.At, time.Now()} {
				_, err := partitions.Create(t.Context(), owner, audit.DayOf(at))
				require.NoError(t, err)
			}
			tx, err := owner.Begin(t.Context())
			require.NoError(t, err)
			defer pg.Rollback(t.Context(), tx)
			_, err = tx.Exec(t.Context(), sql)
			require.NoError(t, err)
			if name != "a day is being created or dropped" {
				require.NoError(t, tx.Commit(t.Context()))
			}
			first := s.Accepted()
			where, made, err := openDay(t.Context(), r.pool, audit.DayOf(first.Time), time.Now())
			require.NoError(t, err)
			require.False(t, made)
			require.Equal(t, auditLog, where.table)
			require.False(t, where.until.IsZero())
			r.record(events.events(t, first))
			require.Empty(t, r.w.chunks.days.shortcuts())
			require.Equal(t, 1, audittest.One[int](t, owner, "SELECT count(*) FROM audit_log"))
			require.Zero(t, audittest.One[int](t, owner, "SELECT count(*) FROM audit_log_default"))
			if name != "a day is being created or dropped" {
				return
			}
			// A minute later it asks again.
			require.NoError(t, tx.Rollback(t.Context()))
			for at, p := range r.w.chunks.days.known {
				r.w.chunks.days.known[at] = destination{p.table, time.Now().Add(-time.Second)}
			}
			r.record(events.events(t, s.Event(task.TaskQueued, 0, "")))
			require.Len(t, r.w.chunks.days.shortcuts(), 1)
		})
	}
}

// A hash covers what was sent, whatever defaults the table has.
func TestDefaultsAreNotReliedOn(t *testing.T) {
	t.Parallel()
	r := newRig(t, audittest.NewPool(t))
	events := r.own("events", 0)
	s := audittest.NewStory("t1")
	r.record(events.events(t, s.Accepted()))
	for _, table := range append(r.w.chunks.days.shortcuts(), auditLog) {
		audittest.Execute(t, r.pool, "ALTER TABLE "+table+" ALTER ingested_at SET DEFAULT clock_timestamp()")
	}
	r.record(events.events(t, s.Event(task.TaskQueued, 0, "")))
	audittest.RequireChains(t, r.pool, map[string]int64{"events/0": 2})
}
