package jobrows_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit/recorder/jobrows"
	"github.com/batchyard/batchyard/internal/jobview"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/audittest/rig"
	"github.com/batchyard/batchyard/test/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// sums are fingerprints of two files.
var sums = []string{strings.Repeat("a1", 32), strings.Repeat("b2", 32)}

// submitted is the event of a job's announcement, an hour ago.
func submitted(t *testing.T, spec task.JobSpec, callback string) task.Event {
	t.Helper()
	detail, err := json.Marshal(spec)
	require.NoError(t, err)
	return task.Event{Time: time.Now().Add(-time.Hour).UTC().Truncate(time.Microsecond), Action: task.JobSubmitted, Outcome: task.OutcomeOK,
		Tenant: "acme", ActorType: task.ActorUser, ActorID: "alice", ResourceType: "job", ResourceID: "job-1", JobID: "job-1", Detail: detail, CallbackURL: callback}
}

func cancelled(at time.Time) task.Event {
	return task.Event{Time: at, Action: task.JobCancelRequested, Outcome: task.OutcomeOK, Tenant: "acme", ActorType: task.ActorUser, ActorID: "alice",
		ResourceType: "job", ResourceID: "job-1", JobID: "job-1"}
}

func jobOf(t *testing.T, pool *pgxpool.Pool) *task.Job {
	t.Helper()
	j, err := jobview.Scan(pool.QueryRow(t.Context(), `SELECT `+jobview.Columns+` FROM job_progress WHERE tenant = 'acme' AND job_id = 'job-1'`))
	require.NoError(t, err)
	return j
}

// A job is the same, whichever of its events are recorded first.
func TestJobIsTheSameInAnyOrder(t *testing.T) {
	t.Parallel()
	for name, announcedFirst := range map[string]bool{"announcement first": true, "task first": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rig.New(t, audittest.NewPool(t))
			events, tasks := r.Own("events", 0), r.Own("events", 1)
			announcement := events.Events(t, submitted(t, task.JobSpec{SHA256: sums[0], Tasks: 2, Lines: 3, BadLines: 1, Bytes: 99, File: "n.jsonl", Format: "openai", Labels: map[string]string{"k": "v"}}, ""))
			accepted := tasks.Events(t, audittest.NewStory("t1").Accepted())
			if announcedFirst {
				r.Record(announcement)
				r.Record(accepted)
			} else {
				r.Record(accepted)
				require.Equal(t, task.JobRunning, jobOf(t, r.Pool).State)
				require.Empty(t, jobOf(t, r.Pool).SHA256, "it was not announced")
				r.Record(announcement)
			}
			j := jobOf(t, r.Pool)
			require.NotNil(t, j.At)
			j.At = nil
			require.Equal(t, &task.Job{JobID: "job-1", Tenant: "acme", State: task.JobRunning, Total: 2, Known: 1, Tasks: map[task.State]int64{task.Pending: 1},
				SHA256: sums[0], File: "n.jsonl", Format: "openai", Lines: 3, BadLines: 1, Bytes: 99, Labels: map[string]string{"k": "v"}, By: "alice"}, j)

			// Another file under the same name changes nothing, and the event stays in the audit log.
			r.Record(events.Events(t, submitted(t, task.JobSpec{SHA256: sums[1], Tasks: 9}, "http://elsewhere/hook")))
			require.Equal(t, sums[0], jobOf(t, r.Pool).SHA256)
			require.Equal(t, int64(2), jobOf(t, r.Pool).Total)
			require.Empty(t, audittest.One[string](t, r.Pool, "SELECT coalesce(callback_url, '') FROM jobs"))
			require.Equal(t, 2, audittest.One[int](t, r.Pool, "SELECT count(*) FROM audit_log WHERE action = 'job.submitted'"))
		})
	}
}

// What no row can be made of does not hold up the others.
func TestAnnouncementsThatAreInvalid(t *testing.T) {
	t.Parallel()
	r := rig.New(t, audittest.NewPool(t))
	events := r.Own("events", 0)
	invalid := []task.JobSpec{{SHA256: "no", Tasks: 1}, {SHA256: sums[0]}, {SHA256: sums[0], Tasks: 1, Format: "csv"}}
	var recs []*stream.Record
	for _, spec := range invalid {
		recs = append(recs, events.Events(t, submitted(t, spec, "")))
	}
	broken := submitted(t, invalid[0], "")
	broken.Detail = []byte(`{"sha256":1}`)
	long := submitted(t, task.JobSpec{SHA256: sums[0], Tasks: 1}, "")
	long.JobID = strings.Repeat("j", 200)
	r.Record(append(recs, events.Events(t, broken, long))...)
	require.Zero(t, audittest.One[int](t, r.Pool, "SELECT count(*) FROM jobs"))
	require.Equal(t, 5, audittest.One[int](t, r.Pool, "SELECT count(*) FROM audit_log"))
}

// A finished job keeps its counts, and its callback is due once.
func TestFinishedJob(t *testing.T) {
	t.Parallel()
	r := rig.New(t, audittest.NewPool(t))
	f := jobrows.NewFinisher(r.Pool, audittest.Quiet())
	events, results := r.Own("events", 0), r.Own("results", 0)
	r.Record(events.Events(t, submitted(t, task.JobSpec{SHA256: sums[0], Tasks: 3, Format: "openai"}, "https://Receiver.example/hook?key=secret")))
	require.NoError(t, f.Round(t.Context()))
	require.Equal(t, task.JobRunning, jobOf(t, r.Pool).State, "no task is recorded yet")

	one, two, three := audittest.NewStory("t1"), audittest.NewStory("t2"), audittest.NewStory("t3")
	good, bad := one.Result(task.Success, "d1"), two.Result(task.Failed, "d2")
	good.Usage = task.Usage{InputTokens: 3, OutputTokens: 4}
	bad.Error = &task.Error{Class: task.ClassInvalid, Message: "device d2 answered 400: I refuse this."}
	r.Record(events.Events(t, one.Accepted(), two.Accepted()), results.Result(t, good), results.Result(t, bad))
	f = jobrows.NewFinisher(r.Pool, audittest.Quiet()) // without pauses of earlier checks
	require.NoError(t, f.Round(t.Context()))
	require.Equal(t, task.JobRunning, jobOf(t, r.Pool).State, "all that is known has finished, but not all of the file")
	require.Zero(t, audittest.One[int](t, r.Pool, "SELECT count(*) FROM callbacks"))

	last := three.Result(task.Success, "d1")
	last.Usage = task.Usage{InputTokens: 10, OutputTokens: 20}
	r.Record(events.Events(t, three.Accepted()), results.Result(t, last))
	live := jobOf(t, r.Pool)
	require.Equal(t, task.JobFinished, live.State, "before the finisher has seen it")
	for range 2 {
		require.NoError(t, jobrows.NewFinisher(r.Pool, audittest.Quiet()).Round(t.Context()))
	}
	j := jobOf(t, r.Pool)
	require.Equal(t, 1, j.Rounds)
	require.Equal(t, map[task.State]int64{task.Success: 2, task.Failed: 1}, j.Tasks)
	require.Equal(t, map[string]int64{"d1": 2, "d2": 1}, j.Devices)
	require.Equal(t, task.Usage{InputTokens: 13, OutputTokens: 24}, j.Usage)
	require.Equal(t, []task.JobError{{Class: task.ClassInvalid, Tasks: 1, Sample: "device d2 answered 400: I refuse this."}}, j.Errors)
	require.Positive(t, j.Rate)
	require.Equal(t, live.LastDone, j.LastDone)
	live.Rate, live.Rounds = j.Rate, j.Rounds
	require.Equal(t, live, j, "what was stored is what was counted")

	require.Equal(t, 1, audittest.One[int](t, r.Pool, "SELECT count(*) FROM callbacks"))
	require.Equal(t, jobrows.CallbackID("acme", "job-1", 1), audittest.One[string](t, r.Pool,
		"SELECT callback_id FROM callbacks WHERE job_id = 'job-1' AND task_id IS NULL AND host = 'receiver.example' AND state = 'DUE'"))
	var body struct {
		ID   string `json:"id"`
		Type string `json:"type"`
		Data task.Job
	}
	require.NoError(t, json.Unmarshal([]byte(audittest.One[string](t, r.Pool, "SELECT body::text FROM callbacks")), &body))
	require.Equal(t, "job.finished", body.Type)
	require.Equal(t, *j, body.Data, "the callback has what the API answers")
	require.NotContains(t, audittest.One[string](t, r.Pool, "SELECT string_agg(detail::text, '') FROM audit_log"), "secret")
}

// A job of which only a part was submitted is over when it is cancelled, and continues when it is
// announced again.
func TestCancelledJob(t *testing.T) {
	t.Parallel()
	r := rig.New(t, audittest.NewPool(t))
	finish := func() { require.NoError(t, jobrows.NewFinisher(r.Pool, audittest.Quiet()).Round(t.Context())) }
	events, results := r.Own("events", 0), r.Own("results", 0)
	first := submitted(t, task.JobSpec{SHA256: sums[0], Tasks: 5}, "")
	st := audittest.NewStory("t1")
	r.Record(events.Events(t, first, st.Accepted(), cancelled(first.Time.Add(time.Second))))
	finish()
	require.Equal(t, task.JobRunning, jobOf(t, r.Pool).State)
	r.Record(results.Result(t, st.Result(task.Cancelled)))
	finish()
	j := jobOf(t, r.Pool)
	require.Equal(t, task.JobCancelled, j.State)
	require.Equal(t, []int64{5, 1, 1, 1}, []int64{j.Total, j.Known, j.Done, int64(j.Rounds)})

	again := first
	again.Time = first.Time.Add(time.Minute)
	r.Record(events.Events(t, again))
	require.Equal(t, task.JobRunning, jobOf(t, r.Pool).State)
	require.Nil(t, jobOf(t, r.Pool).Cancel)
	for _, id := range []string{"t2", "t3", "t4", "t5"} {
		st := audittest.NewStory(id)
		r.Record(events.Events(t, st.Accepted()), results.Result(t, st.Result(task.Success, "d")))
	}
	finish()
	require.Equal(t, task.JobFinished, jobOf(t, r.Pool).State)
	r.Record(events.Events(t, cancelled(time.Now())))
	require.Equal(t, task.JobFinished, jobOf(t, r.Pool).State, "it is too late to cancel")
	again.Time = first.Time.Add(2 * time.Minute)
	r.Record(events.Events(t, again))
	require.Equal(t, task.JobFinished, jobOf(t, r.Pool).State, "the same file again is the same job")
}

// The recorder may do all of this with its own rights.
func TestRecorderMayFinishJobs(t *testing.T) {
	t.Parallel()
	_, of := audittest.Logins(t, "batchyard_recorder")
	r := rig.New(t, of["batchyard_recorder"])
	st := audittest.NewStory("t1")
	r.Record(r.Own("events", 0).Events(t, submitted(t, task.JobSpec{SHA256: sums[0], Tasks: 1}, "http://h/x"), st.Accepted()), r.Own("results", 0).Result(t, st.Result(task.Success, "d")))
	require.NoError(t, jobrows.NewFinisher(r.Pool, audittest.Quiet()).Round(t.Context()))
	require.Equal(t, 1, jobOf(t, r.Pool).Rounds)
}

// A retry reopens a finished job, in whatever order its event and its result are recorded.
func TestRetriedJob(t *testing.T) {
	t.Parallel()
	for name, resultFirst := range map[string]bool{"event first": false, "result first": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rig.New(t, audittest.NewPool(t))
			finish := func() { require.NoError(t, jobrows.NewFinisher(r.Pool, audittest.Quiet()).Round(t.Context())) }
			events, results := r.Own("events", 0), r.Own("results", 0)
			st := audittest.NewStory("t1")
			r.Record(events.Events(t, submitted(t, task.JobSpec{SHA256: sums[0], Tasks: 1}, "http://h/x"), st.Accepted()), results.Result(t, st.Result(task.Failed, "d")))
			finish()
			require.Equal(t, map[task.State]int64{task.Failed: 1}, jobOf(t, r.Pool).Tasks)

			st.Task.Progress = &task.Progress{Generation: 1}
			asked := task.Accepted(st.Task, task.Origin{Actor: "alice"}, st.Tick())
			asked.Action = task.TaskRetried
			result := results.Result(t, st.Result(task.Success, "d"))
			if resultFirst {
				r.Record(result)
				r.Record(events.Events(t, asked))
			} else {
				r.Record(events.Events(t, asked))
				require.Equal(t, task.JobRunning, jobOf(t, r.Pool).State)
				require.Equal(t, map[task.State]int64{task.Pending: 1}, jobOf(t, r.Pool).Tasks)
				finish()
				require.Equal(t, 1, jobOf(t, r.Pool).Rounds)
				r.Record(result)
			}
			finish()
			finish()
			j := jobOf(t, r.Pool)
			require.Equal(t, []any{task.JobFinished, 2}, []any{j.State, j.Rounds})
			require.Equal(t, map[task.State]int64{task.Success: 1}, j.Tasks)
			require.Empty(t, j.Errors)
			require.Equal(t, 2, audittest.One[int](t, r.Pool, "SELECT count(*) FROM callbacks WHERE job_id = 'job-1'"), "each round has its own")
		})
	}
}
