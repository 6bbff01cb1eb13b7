package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/task"
)

func newTestStore(t testing.TB, r *rig, cfg Config) *Store {
	s := NewStore(r.pool, cfg, quiet(), metrics.New(nil))
	t.Cleanup(s.Close)
	return s
}

func TestTaskWithItsResult(t *testing.T) {
	t.Parallel()
	r := newRig(t, newPool(t))
	s := newTestStore(t, r, Config{})
	events, results := r.own("events", 0), r.own("results", 0)
	st := newStory("t1")
	_, err := s.Task(t.Context(), st.task.Key())
	require.ErrorIs(t, err, ErrNotFound)

	r.record(events.events(t, st.accepted(), st.event(task.TaskAssigned, 1, "d1")))
	row, err := s.Task(t.Context(), st.task.Key())
	require.NoError(t, err)
	require.Equal(t, task.Assigned, row.State)
	require.Nil(t, row.Result)
	require.True(t, row.FinishedAt.IsZero())

	res := st.result(task.Failed, "d1", "d2")
	res.Output, res.Labels, res.Callback = task.Input(`{"a":"\u0000 stays"}`), map[string]string{"k": "v"}, &task.Callback{URL: "http://x/y"}
	res.Usage, res.AssignedAt, res.Requested = task.Usage{InputTokens: 3, OutputTokens: 4}, st.at, "big"
	r.record(results.result(t, res))
	row, err = s.Task(t.Context(), st.task.Key())
	require.NoError(t, err)
	require.Equal(t, task.Failed, row.State)
	require.Equal(t, 2, row.Attempt)
	require.Equal(t, res, row.Result, "what was written is what is read")
}

func TestPriorityIsTheLastThatWasSaid(t *testing.T) {
	t.Parallel()
	r := newRig(t, newPool(t))
	s := newTestStore(t, r, Config{})
	events, results := r.own("events", 0), r.own("results", 0)
	st := newStory("t1")
	priority := func() task.Priority {
		row, err := s.Task(t.Context(), st.task.Key())
		require.NoError(t, err)
		return row.Priority
	}
	change := func(p task.Priority, o task.Outcome) task.Event {
		e := st.event(task.TaskReprioritized, 0, "")
		e.Priority, e.Outcome = p, o
		return e
	}
	r.record(events.events(t, st.accepted()))
	require.Equal(t, task.Normal, priority())
	r.record(events.events(t, change(task.Low, task.OutcomeOK), change(task.High, task.OutcomeOK)))
	require.Equal(t, task.High, priority())
	r.record(events.events(t, change(task.Low, task.OutcomeFailed)))
	require.Equal(t, task.High, priority(), "Redis did not take it")
	queued := st.event(task.TaskQueued, 0, "")
	queued.Priority = task.Normal
	r.record(events.events(t, queued))
	require.Equal(t, task.High, priority(), "an event that was late")

	// It went to a device before the change came there: its result tells.
	r.record(results.result(t, st.result(task.Success, "d1")), events.events(t, change(task.Low, task.OutcomeOK)))
	require.Equal(t, task.Normal, priority())
	r.record(events.events(t, change(task.Low, task.OutcomeOK)))
	require.Equal(t, task.Normal, priority())

	// All of it in one chunk.
	st = newStory("t2")
	r.record(events.events(t, st.accepted(), change(task.High, task.OutcomeOK)))
	require.Equal(t, task.High, priority())
}

func TestListPagesThroughEverythingOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t, newPool(t))
	s := newTestStore(t, r, Config{})
	events, results := r.own("events", 0), r.own("results", 0)
	at := time.Now().Add(-time.Hour)
	var c chunk
	for i := range 25 {
		st := newStory(fmt.Sprintf("t%02d", i))
		st.task.SubmittedAt = at.Add(time.Duration(i/5) * time.Second).UTC().Truncate(time.Microsecond) // five at a time
		c = append(c, events.events(t, st.accepted()))
		if i%5 == 0 {
			c = append(c, results.result(t, st.result(task.Success, "d1")))
		}
	}
	other := newStory("other")
	other.task.Tenant = "another"
	c = append(c, events.events(t, other.accepted()))
	r.record(c...)

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
	r := newRig(t, newPool(t))
	s := newTestStore(t, r, Config{})
	events, results := r.own("events", 0), r.own("results", 0)
	const n = 2*jobPage + 7
	var c chunk
	for i := range n {
		st := newStory(fmt.Sprintf("t%05d", i))
		c = append(c, events.events(t, st.accepted()), results.result(t, st.result(task.Success, fmt.Sprintf("d%d", i%2))))
	}
	waiting := newStory("waits")
	c = append(c, events.events(t, waiting.accepted(), waiting.event(task.TaskAssigned, 1, "d0")))
	r.record(c...)
	counts, err := s.JobCounts(t.Context(), "acme", "job-1")
	require.NoError(t, err)
	require.Equal(t, JobCounts{Total: n + 1, ByState: map[task.State]int64{task.Success: n, task.Assigned: 1},
		ByDevice: map[string]int64{"d0": n/2 + 1, "d1": n / 2}}, counts)

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
	_, err = r.pool.Exec(t.Context(), "UPDATE results SET output = to_json(repeat('x', 5000000)) WHERE task_id < 't00003'")
	require.NoError(t, err)
	page, more, err := s.jobPage(t.Context(), "acme", "job-1", "")
	require.NoError(t, err)
	require.True(t, more)
	require.Len(t, page, 2)
}

func TestTimelineIsInOrder(t *testing.T) {
	t.Parallel()
	r := newRig(t, newPool(t))
	s := newTestStore(t, r, Config{})
	events := r.own("events", 0)
	st := newStory("t1")
	all := []task.Event{st.accepted(), st.event(task.TaskQueued, 0, ""), st.event(task.TaskAssigned, 1, "d1"), st.event(task.AttemptStarted, 1, "d1")}
	r.record(events.events(t, all[3], all[1]), events.events(t, all[2], all[0]))
	rows, err := s.Events(t.Context(), st.task.Key())
	require.NoError(t, err)
	require.Len(t, rows, len(all))
	for i, row := range rows {
		require.Equal(t, all[i].Action, row.Action)
		require.Equal(t, all[i].Time, row.Time)
		require.Equal(t, "events", row.Topic)
	}
	require.Equal(t, all[0].InputSHA256, rows[0].InputSHA256)
}

func TestWaitersAreToldWhenTheirTaskEnds(t *testing.T) {
	t.Parallel()
	r := newRig(t, newPool(t))
	// The safety check is far away: only notifications can tell in time.
	s := newTestStore(t, r, Config{Safety: time.Hour})
	results := r.own("results", 0)

	already := newStory("already")
	r.record(results.result(t, already.result(task.Success, "d1")))
	row, err := s.WaitTask(t.Context(), already.task.Key())
	require.NoError(t, err)
	require.Equal(t, task.Success, row.Result.State)

	const n = 3 * lookPage
	var wg sync.WaitGroup
	var c chunk
	for i := range n {
		st := newStory(fmt.Sprintf("t%d", i))
		c = append(c, results.result(t, st.result(task.Success, "d1")))
		for range 2 { // two wait for the same
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				row, err := s.WaitTask(ctx, st.task.Key())
				if err != nil || row.ID != st.task.ID || row.Result == nil {
					t.Errorf("waiting for %s: %v, %v", st.task.ID, row, err)
				}
			})
		}
	}
	require.Eventually(t, func() bool { s.hub.mu.Lock(); defer s.hub.mu.Unlock(); return s.hub.count == 2*n }, 30*time.Second, time.Millisecond)
	r.record(c...)
	wg.Wait()
	require.Zero(t, s.hub.count)
	require.Empty(t, s.hub.waiters)

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err = s.WaitTask(ctx, task.Key{Tenant: "acme", ID: "never"})
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestWaitersSurviveALostConnection(t *testing.T) {
	t.Parallel()
	r := newRig(t, newPool(t))
	s := newTestStore(t, r, Config{Safety: time.Hour})
	results := r.own("results", 0)
	st := newStory("t1")
	got := make(chan error, 1)
	go func() {
		_, err := s.WaitTask(context.WithoutCancel(t.Context()), st.task.Key())
		got <- err
	}()
	listeners := func() int {
		return one[int](t, r.pool, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'")
	}
	require.Eventually(t, func() bool { return listeners() == 1 }, 30*time.Second, 5*time.Millisecond)
	_, err := r.pool.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'")
	require.NoError(t, err)
	r.record(results.result(t, st.result(task.Success, "d1"))) // perhaps while nobody listens
	select {
	case err := <-got:
		require.NoError(t, err)
	case <-time.After(30 * time.Second):
		t.Fatal("nobody told")
	}
}

func TestWaitersAreBoundedAndEndWithTheStore(t *testing.T) {
	t.Parallel()
	r := newRig(t, newPool(t))
	s := NewStore(r.pool, Config{MaxWaiters: 1}, quiet(), metrics.New(nil))
	got := make(chan error, 1)
	go func() {
		_, err := s.WaitTask(context.WithoutCancel(t.Context()), task.Key{Tenant: "acme", ID: "x"})
		got <- err
	}()
	require.Eventually(t, func() bool { s.hub.mu.Lock(); defer s.hub.mu.Unlock(); return s.hub.count == 1 }, 30*time.Second, time.Millisecond)
	_, err := s.WaitTask(t.Context(), task.Key{Tenant: "acme", ID: "y"})
	require.ErrorIs(t, err, ErrTooManyWaiters)
	s.Close()
	require.ErrorIs(t, <-got, ErrStoreClosed)
	_, err = s.WaitTask(t.Context(), task.Key{Tenant: "acme", ID: "y"})
	require.ErrorIs(t, err, ErrStoreClosed)
}

func TestPruneDays(t *testing.T) {
	t.Parallel()
	r := newRig(t, newPool(t))
	s := newTestStore(t, r, Config{})
	require.NoError(t, s.Ping(t.Context()))
	_, err := r.pool.Exec(t.Context(), "SELECT batchyard_make_audit_partition('2020-01-31'), batchyard_make_audit_partition(current_date)")
	require.NoError(t, err)
	gone, err := s.PruneDays(t.Context(), 90*day)
	require.NoError(t, err)
	require.Equal(t, []string{"2020-01-31"}, gone)
}
