package status

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/audittest/rig"
)

// announced is the event of a job's announcement.
func announced(t *testing.T, id string, tasks int64, at time.Time) task.Event {
	t.Helper()
	detail, err := json.Marshal(task.JobSpec{SHA256: strings.Repeat("ab", 32), Tasks: tasks})
	require.NoError(t, err)
	return task.Event{Time: at.UTC(), Action: task.JobSubmitted, Outcome: task.OutcomeOK, Tenant: "acme", ActorType: task.ActorUser, ActorID: "alice", JobID: id, Detail: detail}
}

func TestListOfJobs(t *testing.T) {
	t.Parallel()
	r := rig.New(t, audittest.NewPool(t))
	s := newTestStore(t, r.Pool, Config{})
	events, results := r.Own("events", 0), r.Own("results", 0)
	at := time.Now().Add(-time.Hour).Truncate(time.Second)
	for i := range 9 { // three at a time
		r.Record(events.Events(t, announced(t, fmt.Sprintf("nightly-%d", i), 1, at.Add(time.Duration(i/3)*time.Minute))))
	}
	st := audittest.NewStory("t1")
	st.Task.JobID = "nightly-4"
	r.Record(events.Events(t, announced(t, "Weekly_%", 2, at), st.Accepted()), results.Result(t, st.Result(task.Success, "d")))

	page := func(f JobFilter) (ids []string) {
		f.Tenant = "acme"
		for {
			jobs, next, err := s.Jobs(t.Context(), f)
			require.NoError(t, err)
			require.LessOrEqual(t, len(jobs), f.Limit)
			for _, j := range jobs {
				require.Equal(t, "acme", j.Tenant)
				ids = append(ids, j.JobID)
			}
			if next == "" {
				return ids
			}
			f.Cursor = next
		}
	}
	require.Equal(t, []string{"nightly-8", "nightly-7", "nightly-6", "nightly-5", "nightly-4", "nightly-3", "nightly-2", "nightly-1", "nightly-0", "Weekly_%"}, page(JobFilter{Limit: 4}))
	require.Len(t, page(JobFilter{Limit: 2, Prefix: "nightly-"}), 9)
	require.Equal(t, []string{"Weekly_%"}, page(JobFilter{Limit: 2, Prefix: "Weekly_%"}), "a prefix is no pattern")
	require.Empty(t, page(JobFilter{Limit: 2, Prefix: "nightly_"}))
	require.Equal(t, []string{"nightly-4"}, page(JobFilter{Limit: 1, State: task.JobFinished}))
	require.Len(t, page(JobFilter{Limit: 3, State: task.JobRunning}), 9)
	require.Equal(t, []string{"nightly-5", "nightly-4", "nightly-3"}, page(JobFilter{Limit: 2, Since: at.Add(time.Minute), Until: at.Add(2 * time.Minute)}))
	for _, bad := range []string{"!", "AAAA"} {
		_, _, err := s.Jobs(t.Context(), JobFilter{Tenant: "acme", Cursor: bad})
		require.ErrorIs(t, err, ErrBadCursor, bad)
	}
	var fe *task.FieldError
	_, _, err := s.Jobs(t.Context(), JobFilter{})
	require.ErrorAs(t, err, &fe)
	_, _, err = s.Jobs(t.Context(), JobFilter{Tenant: "acme", Limit: MaxLimit + 1})
	require.ErrorAs(t, err, &fe)
}

// The rate counts the last minute, and says how long the rest will take.
func TestProgressOfAJob(t *testing.T) {
	t.Parallel()
	r := rig.New(t, audittest.NewPool(t))
	s := newTestStore(t, r.Pool, Config{})
	events, results := r.Own("events", 0), r.Own("results", 0)
	r.Record(events.Events(t, announced(t, "job-1", 100, time.Now().Add(-2*time.Hour))))
	j, err := s.Job(t.Context(), "acme", "job-1")
	require.NoError(t, err)
	require.Equal(t, []int64{100, 0, 0}, []int64{j.Total, j.Known, j.Done})
	require.Zero(t, j.Rate+j.Seconds)
	for i := range 40 {
		st := audittest.NewStory(fmt.Sprintf("t%02d", i))
		res := st.Result(task.Success, "d")
		if i < 30 {
			res.FinishedAt = time.Now().Add(-time.Second).UTC().Truncate(time.Microsecond)
		}
		if i >= 37 {
			res.State, res.Error = task.Failed, &task.Error{Class: []task.ErrorClass{task.ClassDevice, task.ClassInvalid}[i%2], Message: fmt.Sprintf("broke %d", i)}
		}
		r.Record(events.Events(t, st.Accepted()), results.Result(t, res))
	}
	for i, a := range []task.Action{task.TaskQueued, task.TaskAssigned, task.AttemptStarted, task.AttemptStarted} {
		st := audittest.NewStory(fmt.Sprintf("w%d", i))
		st.Task.Model = []string{"a", "b"}[i/3]
		r.Record(events.Events(t, st.Accepted(), st.Event(a, 1, "d")))
	}
	j, err = s.Job(t.Context(), "acme", "job-1")
	require.NoError(t, err)
	require.Equal(t, task.JobRunning, j.State)
	require.Equal(t, []int64{100, 44, 40}, []int64{j.Total, j.Known, j.Done})
	require.InDelta(t, 0.5, j.Rate, 0.001, "30 in the last minute")
	require.InDelta(t, 120, j.Seconds, 0.001, "60 tasks at that rate")
	require.Equal(t, []task.JobError{{Class: task.ClassInvalid, Tasks: 2, Sample: "broke 37"}, {Class: task.ClassDevice, Tasks: 1, Sample: "broke 38"}}, j.Errors)

	groups, err := s.JobGroups(t.Context(), task.Key{Tenant: "acme", ID: "job-1"}, 3)
	require.NoError(t, err)
	require.Equal(t, []Group{{"w0", 1}, {"w1", 1}, {"w2", 1}}, groups)
	rows, err := s.JobTasks(t.Context(), task.Key{Tenant: "acme", ID: "job-1"}, []task.State{task.Assigned, task.Running}, "w1", 10)
	require.NoError(t, err)
	require.Len(t, rows, 2)
}
