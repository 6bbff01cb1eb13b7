package status

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/audittest/rig"
	"github.com/batchyard/batchyard/test/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func newTestStore(t testing.TB, pool *pgxpool.Pool, cfg Config) *Store {
	t.Helper()
	s := New(cfg, Deps{Pool: pool, Logger: audittest.Quiet(), Metrics: metrics.New(nil)})
	t.Cleanup(s.Close)
	return s
}

func TestTaskWithItsResult(t *testing.T) {
	t.Parallel()
	r := rig.New(t, audittest.NewPool(t))
	s := newTestStore(t, r.Pool, Config{})
	require.NoError(t, s.Ping(t.Context()))
	events, results := r.Own("events", 0), r.Own("results", 0)
	st := audittest.NewStory("t1")
	_, err := s.Task(t.Context(), st.Task.Key())
	require.ErrorIs(t, err, ErrNotFound)

	r.Record(events.Events(t, st.Accepted(), st.Event(task.TaskAssigned, 1, "d1")))
	row, err := s.Task(t.Context(), st.Task.Key())
	require.NoError(t, err)
	require.Equal(t, task.Assigned, row.State)
	require.Nil(t, row.Result)
	require.True(t, row.FinishedAt.IsZero())

	res := st.Result(task.Failed, "d1", "d2")
	res.Output, res.Labels, res.Callback = task.Input(`{"a":"\u0000 stays"}`), map[string]string{"k": "v"}, &task.Callback{URL: "http://x/y"}
	res.Usage, res.AssignedAt, res.RequestedModel = task.Usage{InputTokens: 3, OutputTokens: 4}, st.At, "big"
	r.Record(results.Result(t, res))
	row, err = s.Task(t.Context(), st.Task.Key())
	require.NoError(t, err)
	require.Equal(t, task.Failed, row.State)
	require.Equal(t, 2, row.Attempt)
	require.Equal(t, res, row.Result, "what was written is what is read")
}

func TestPriorityIsTheLastThatWasSet(t *testing.T) {
	t.Parallel()
	r := rig.New(t, audittest.NewPool(t))
	s := newTestStore(t, r.Pool, Config{})
	events, results := r.Own("events", 0), r.Own("results", 0)
	st := audittest.NewStory("t1")
	priority := func() task.Priority {
		row, err := s.Task(t.Context(), st.Task.Key())
		require.NoError(t, err)
		return row.Priority
	}
	change := func(p task.Priority, o task.Outcome) task.Event {
		e := st.Event(task.TaskReprioritized, 0, "")
		e.Priority, e.Outcome = p, o
		return e
	}
	r.Record(events.Events(t, st.Accepted()))
	require.Equal(t, task.Normal, priority())
	r.Record(events.Events(t, change(task.Low, task.OutcomeOK), change(task.High, task.OutcomeOK)))
	require.Equal(t, task.High, priority())
	r.Record(events.Events(t, change(task.Low, task.OutcomeFailed)))
	require.Equal(t, task.High, priority(), "Redis did not accept it")
	queued := st.Event(task.TaskQueued, 0, "")
	queued.Priority = task.Normal
	r.Record(events.Events(t, queued))
	require.Equal(t, task.High, priority(), "a late event")

	// It went to a device before the change arrived, as its result shows.
	r.Record(results.Result(t, st.Result(task.Success, "d1")), events.Events(t, change(task.Low, task.OutcomeOK)))
	require.Equal(t, task.Normal, priority())
	r.Record(events.Events(t, change(task.Low, task.OutcomeOK)))
	require.Equal(t, task.Normal, priority())

	// All of it in one chunk.
	st = audittest.NewStory("t2")
	r.Record(events.Events(t, st.Accepted(), change(task.High, task.OutcomeOK)))
	require.Equal(t, task.High, priority())
}

func TestListPagesThroughEverythingOnce(t *testing.T) {
	t.Parallel()
	r := rig.New(t, audittest.NewPool(t))
	s := newTestStore(t, r.Pool, Config{})
	events, results := r.Own("events", 0), r.Own("results", 0)
	at := time.Now().Add(-time.Hour)
	var c []*stream.Record
	for i := range 25 {
		st := audittest.NewStory(fmt.Sprintf("t%02d", i))
		st.Task.SubmittedAt = at.Add(time.Duration(i/5) * time.Second).UTC().Truncate(time.Microsecond) // five at a time
		c = append(c, events.Events(t, st.Accepted()))
		if i%5 == 0 {
			c = append(c, results.Result(t, st.Result(task.Success, "d1")))
		}
	}
	other := audittest.NewStory("other")
	other.Task.Tenant = "another"
	c = append(c, events.Events(t, other.Accepted()))
	r.Record(c...)

	page := func(f Filter) (ids []string) {
		f.Tenant = "acme"
		for {
			rows, next, err := s.Tasks(t.Context(), f)
			require.NoError(t, err)
			for _, row := range rows {
				ids = append(ids, row.ID)
			}
			require.LessOrEqual(t, len(rows), f.Limit)
			if next == "" {
				return ids
			}
			f.Cursor = next
		}
	}
	ids := page(Filter{Limit: 4})
	require.Len(t, ids, 25)
	for i, id := range ids {
		require.Equal(t, fmt.Sprintf("t%02d", 24-i), id)
	}
	require.Equal(t, []string{"t20", "t15", "t10", "t05", "t00"}, page(Filter{Limit: 2, State: task.Success}))
	require.Len(t, page(Filter{Limit: 5, State: task.Pending, Job: "job-1"}), 20)
	ofJob := page(Filter{Limit: 7, Job: "job-1"})
	require.Len(t, ofJob, 25)
	require.True(t, slices.IsSortedFunc(ofJob, func(x, y string) int { return strings.Compare(y, x) }), "%s", ofJob)
	require.Empty(t, page(Filter{Limit: 5, Job: "job-2"}))

	for _, bad := range []string{"!", "AAAA", "AAAAAAAAAAAA", "_________w"} {
		_, _, err := s.Tasks(t.Context(), Filter{Tenant: "acme", Cursor: bad})
		require.ErrorIs(t, err, ErrBadCursor, bad)
	}
	var fe *task.FieldError
	_, _, err := s.Tasks(t.Context(), Filter{})
	require.ErrorAs(t, err, &fe)
	_, _, err = s.Tasks(t.Context(), Filter{Tenant: "acme", Limit: MaxLimit + 1})
	require.ErrorAs(t, err, &fe)
}

func TestJobsAreCountedAndStreamed(t *testing.T) {
	t.Parallel()
	r := rig.New(t, audittest.NewPool(t))
	s := newTestStore(t, r.Pool, Config{})
	events, results := r.Own("events", 0), r.Own("results", 0)
	const n = 2*jobPage + 7
	var c []*stream.Record
	for i := range n {
		st := audittest.NewStory(fmt.Sprintf("t%05d", i))
		c = append(c, events.Events(t, st.Accepted()), results.Result(t, st.Result(task.Success, fmt.Sprintf("d%d", i%2))))
	}
	waiting := audittest.NewStory("waits")
	c = append(c, events.Events(t, waiting.Accepted(), waiting.Event(task.TaskAssigned, 1, "d0")))
	r.Record(c...)
	j, err := s.Job(t.Context(), "acme", "job-1")
	require.NoError(t, err)
	require.Equal(t, int64(n+1), j.Total)
	require.Equal(t, map[task.State]int64{task.Success: n, task.Assigned: 1}, j.Tasks)
	require.Equal(t, map[string]int64{"d0": n/2 + 1, "d1": n / 2}, j.Devices)
	_, err = s.Job(t.Context(), "acme", "none")
	require.ErrorIs(t, err, ErrNoJob)

	i := 0
	require.NoError(t, s.JobResults(t.Context(), "acme", "job-1", func(res *task.Result) error {
		require.Equal(t, fmt.Sprintf("t%05d", i), res.TaskID)
		i++
		return nil
	}))
	require.Equal(t, n, i)
	stop := errors.New("stop")
	require.ErrorIs(t, s.JobResults(t.Context(), "acme", "job-1", func(*task.Result) error { return stop }), stop)
	// A page is bounded by bytes, too.
	_, err = r.Pool.Exec(t.Context(), "UPDATE results SET output = to_json(repeat('x', 5000000)) WHERE task_id < 't00003'")
	require.NoError(t, err)
	page, more, err := s.jobPage(t.Context(), "acme", "job-1", "")
	require.NoError(t, err)
	require.True(t, more)
	require.Len(t, page, 2)
}

func TestTimelineIsInOrder(t *testing.T) {
	t.Parallel()
	r := rig.New(t, audittest.NewPool(t))
	s := newTestStore(t, r.Pool, Config{})
	events := r.Own("events", 0)
	st := audittest.NewStory("t1")
	all := []task.Event{st.Accepted(), st.Event(task.TaskQueued, 0, ""), st.Event(task.TaskAssigned, 1, "d1"), st.Event(task.AttemptStarted, 1, "d1")}
	r.Record(events.Events(t, all[3], all[1]), events.Events(t, all[2], all[0]))
	rows, err := s.Events(t.Context(), st.Task.Key())
	require.NoError(t, err)
	require.Len(t, rows, len(all))
	for i, row := range rows {
		require.Equal(t, all[i].Action, row.Action)
		require.Equal(t, all[i].Time, row.Time)
		require.Equal(t, "events", row.Topic)
	}
	require.Equal(t, all[0].InputSHA256, rows[0].InputSHA256)
}

func TestWaitersGetTheirTaskWhenItFinishes(t *testing.T) {
	t.Parallel()
	r := rig.New(t, audittest.NewPool(t))
	// Polling is far away: only notifications can arrive in time.
	s := newTestStore(t, r.Pool, Config{PollInterval: time.Hour})
	results := r.Own("results", 0)

	already := audittest.NewStory("already")
	r.Record(results.Result(t, already.Result(task.Success, "d1")))
	row, err := s.WaitTask(t.Context(), already.Task.Run())
	require.NoError(t, err)
	require.Equal(t, task.Success, row.Result.State)

	const n = 3 * queryTasks
	var wg sync.WaitGroup
	var c []*stream.Record
	for i := range n {
		st := audittest.NewStory(fmt.Sprintf("t%d", i))
		c = append(c, results.Result(t, st.Result(task.Success, "d1")))
		for range 2 { // two wait for the same task
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				row, err := s.WaitTask(ctx, st.Task.Run())
				if err != nil || row.ID != st.Task.ID || row.Result == nil {
					t.Errorf("waiting for %s: %v, %v", st.Task.ID, row, err)
				}
			})
		}
	}
	require.Eventually(t, func() bool { s.hub.mu.Lock(); defer s.hub.mu.Unlock(); return s.hub.count == 2*n }, 30*time.Second, time.Millisecond)
	r.Record(c...)
	wg.Wait()
	require.Zero(t, s.hub.count)
	require.Empty(t, s.hub.waiters)

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err = s.WaitTask(ctx, task.Run{Key: task.Key{Tenant: "acme", ID: "never"}})
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestWaitersSurviveALostConnection(t *testing.T) {
	t.Parallel()
	r := rig.New(t, audittest.NewPool(t))
	s := newTestStore(t, r.Pool, Config{PollInterval: time.Hour})
	results := r.Own("results", 0)
	st := audittest.NewStory("t1")
	got := make(chan error, 1)
	go func() {
		_, err := s.WaitTask(context.WithoutCancel(t.Context()), st.Task.Run())
		got <- err
	}()
	listeners := func() int {
		return audittest.One[int](t, r.Pool, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'")
	}
	require.Eventually(t, func() bool { return listeners() == 1 }, 30*time.Second, 5*time.Millisecond)
	_, err := r.Pool.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'")
	require.NoError(t, err)
	r.Record(results.Result(t, st.Result(task.Success, "d1"))) // perhaps while no connection listens
	select {
	case err := <-got:
		require.NoError(t, err)
	case <-time.After(30 * time.Second):
		t.Fatal("the wait did not end")
	}
}

func TestWaitersAreBoundedAndEndWithTheStore(t *testing.T) {
	t.Parallel()
	r := rig.New(t, audittest.NewPool(t))
	s := New(Config{MaxWaiters: 1}, Deps{Pool: r.Pool, Logger: audittest.Quiet(), Metrics: metrics.New(nil)})
	got := make(chan error, 1)
	go func() {
		_, err := s.WaitTask(context.WithoutCancel(t.Context()), task.Run{Key: task.Key{Tenant: "acme", ID: "x"}})
		got <- err
	}()
	require.Eventually(t, func() bool { s.hub.mu.Lock(); defer s.hub.mu.Unlock(); return s.hub.count == 1 }, 30*time.Second, time.Millisecond)
	_, err := s.WaitTask(t.Context(), task.Run{Key: task.Key{Tenant: "acme", ID: "y"}})
	require.ErrorIs(t, err, ErrTooManyWaiters)
	s.Close()
	require.ErrorIs(t, <-got, ErrStoreClosed)
	_, err = s.WaitTask(t.Context(), task.Run{Key: task.Key{Tenant: "acme", ID: "y"}})
	require.ErrorIs(t, err, ErrStoreClosed)
}

func TestTheAPIReadsAndDoesNotWrite(t *testing.T) {
	t.Parallel()
	owner, of := audittest.Logins(t, "batchyard_api")
	r := rig.New(t, owner)
	s := audittest.NewStory("t1")
	r.Record(r.Own("events", 0).Events(t, s.Accepted(), s.Event(task.TaskQueued, 0, "")), r.Own("results", 0).Result(t, s.Result(task.Success, "d1")))
	store := newTestStore(t, of["batchyard_api"], Config{})
	row, err := store.Task(t.Context(), s.Task.Key())
	require.NoError(t, err)
	require.NotNil(t, row.Result)
	_, err = store.WaitTask(t.Context(), s.Task.Run())
	require.NoError(t, err)
	rows, _, err := store.Tasks(t.Context(), Filter{Tenant: "acme"})
	require.NoError(t, err)
	require.Len(t, rows, 1)
	events, err := store.Events(t.Context(), s.Task.Key())
	require.NoError(t, err)
	require.Len(t, events, 2)
	j, err := store.Job(t.Context(), "acme", s.Task.JobID)
	require.NoError(t, err)
	require.Equal(t, int64(1), j.Total)
	jobs, _, err := store.Jobs(t.Context(), JobFilter{Tenant: "acme"})
	require.NoError(t, err)
	require.Len(t, jobs, 1)
	require.NoError(t, store.JobResults(t.Context(), "acme", s.Task.JobID, func(*task.Result) error { return nil }))
	for _, sql := range []string{"SELECT * FROM audit_log", "DELETE FROM tasks", "UPDATE results SET output = NULL", "SELECT * FROM callbacks"} {
		audittest.RequireDenied(t, of["batchyard_api"], sql)
	}
}
