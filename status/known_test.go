package status

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/audittest/rig"
	"github.com/batchyard/batchyard/test/testenv"
)

// A retry is a row of its own in results, and the row in tasks follows it, in whatever order events and
// results of the two runs arrive.
func TestTheLatestGenerationIsTheAnswer(t *testing.T) {
	t.Parallel()
	r := rig.New(t, audittest.NewPool(t))
	s := newTestStore(t, r.Pool, Config{})
	events, results := r.Own("events", 0), r.Own("results", 0)
	st := audittest.NewStory("again")
	first, second := st.Result(task.Failed, "d1"), st.Result(task.Success, "d2")
	second.Generation, second.Output = 1, task.Input(`{"n":2}`)
	again := func(a task.Action, attempt int, device string) task.Event {
		e := st.Event(a, attempt, device)
		e.Generation = 1
		return e
	}
	state := func() (task.State, int, *task.Result) {
		row, err := s.Task(t.Context(), st.Task.Key())
		require.NoError(t, err)
		return row.State, row.Generation, row.Result
	}
	key := []task.Key{{Tenant: "nobody", ID: "x"}, st.Task.Key()}
	known := func() task.Known {
		k, err := s.Known(t.Context(), key)
		require.NoError(t, err)
		require.Equal(t, task.Known{}, k[0])
		return k[1]
	}

	queued := st.Event(task.TaskQueued, 0, "")
	queued.Fingerprint = st.Task.Fingerprint().Bytes()
	r.Record(events.Events(t, st.Accepted()))
	require.Equal(t, task.Known{State: task.Pending}, known(), "what was accepted may turn out to be another request under a known id")
	r.Record(events.Events(t, queued), results.Result(t, first))
	require.Equal(t, task.Known{Fingerprint: st.Task.Fingerprint(), State: task.Failed}, known())
	require.True(t, known().Answers(0))
	require.False(t, known().Answers(1))

	// The retry's assignment is recorded before the event that asked for it.
	r.Record(events.Events(t, again(task.TaskAssigned, 1, "d2")))
	at, generation, res := state()
	require.Equal(t, task.Assigned, at)
	require.Equal(t, 1, generation)
	require.Nil(t, res, "the result of the first run is not that of the second")
	require.False(t, known().Answers(1))
	r.Record(events.Events(t, again(task.TaskRetried, 0, "")))
	at, _, _ = state()
	require.Equal(t, task.Assigned, at)

	// Late events and results of the first run change nothing.
	late := st.Result(task.Success, "d1")
	r.Record(events.Events(t, st.Event(task.TaskAssigned, 7, "d9")), results.Result(t, late))
	at, generation, _ = state()
	require.Equal(t, task.Assigned, at)
	require.Equal(t, 1, generation)

	r.Record(results.Result(t, second))
	at, _, res = state()
	require.Equal(t, task.Success, at)
	require.Equal(t, second.Output, res.Output)
	require.True(t, known().Answers(1))
	require.Equal(t, []string{"0 FAILED", "1 SUCCESS"}, audittest.One[[]string](t, r.Pool,
		"SELECT array_agg(generation || ' ' || state ORDER BY generation) FROM results WHERE task_id = 'again'"), "the history stays")
	require.Equal(t, 1, audittest.One[int](t, r.Pool, "SELECT count(*)::int FROM audit_log WHERE action = 'result.duplicate'"))

	// Both runs in one chunk, the second one first.
	both := audittest.NewStory("both")
	one, two := both.Result(task.Failed, "d1"), both.Result(task.Success, "d2")
	two.Generation = 1
	r.Record(results.Result(t, two), results.Result(t, one), events.Events(t, both.Accepted()))
	row, err := s.Task(t.Context(), both.Task.Key())
	require.NoError(t, err)
	require.Equal(t, task.Success, row.State)
	require.Equal(t, 1, row.Generation)
}

// A lookup answers within its time, and not at all for a while after Postgres did not.
func TestLookupDoesNotWaitForPostgres(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	s := New(Config{}, Deps{Pool: pool, Logger: testenv.Logger(t), Metrics: metrics.New(nil)})
	t.Cleanup(s.Close)
	l := NewLookup(Config{LookupTimeout: time.Minute, LookupRetry: time.Hour}, s, testenv.Logger(t)) // a busy machine is no missing one
	keys := []task.Key{{Tenant: "t", ID: "a"}}
	known, err := l.Known(t.Context(), keys)
	require.NoError(t, err)
	require.Equal(t, []task.Known{{}}, known)

	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = l.Known(gone, keys)
	require.ErrorIs(t, err, ErrUnchecked)
	_, err = l.Known(t.Context(), keys)
	require.NoError(t, err, "a caller that went away says nothing about Postgres")

	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
	require.NoError(t, err)
	impatient := NewLookup(Config{LookupTimeout: 50 * time.Millisecond, LookupRetry: time.Hour}, s, testenv.Logger(t))
	_, err = impatient.Known(t.Context(), keys)
	require.ErrorIs(t, err, ErrUnchecked)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NoError(t, tx.Rollback(context.WithoutCancel(t.Context())))
	_, err = impatient.Known(t.Context(), keys)
	require.ErrorIs(t, err, ErrUnchecked, "it is not asked again so soon")
	require.NotErrorIs(t, err, context.DeadlineExceeded)
}
