package test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/harness"
)

// step is one audit row of a task's history.
type step struct {
	Time         time.Time
	Action       string
	Outcome      string
	ActorType    string
	ActorID      string
	SourceAddr   *string
	UserAgent    *string
	ErrorClass   *string
	DeviceID     *string
	BatchID      *string
	Attempt      *int
	DurationMs   *float64
	TraceID      *string
	Model        *string
	InputBytes   *int64
	OutputTokens *int64
	Detail       *string
}

// historyOf waits until everything is recorded and returns the history of a task.
func historyOf(t *testing.T, in *harness.Installation, id string) []step {
	t.Helper()
	in.AwaitRecorded(t)
	return harness.Rows[step](t, in, `SELECT time, action, outcome, actor_type, actor_id, source_addr, user_agent, error_class, device_id,
		batch_id, attempt, duration_ms, trace_id, model, input_bytes, output_tokens, detail::text AS detail
		FROM audit_log WHERE task_id = $1 ORDER BY time`, id)
}

func actions(history []step) (out []string) {
	for _, s := range history {
		out = append(out, s.Action)
	}
	return out
}

// only returns the one step with that action.
func only(t *testing.T, history []step, action task.Action) step {
	t.Helper()
	var found []step
	for _, s := range history {
		if s.Action == string(action) {
			found = append(found, s)
		}
	}
	require.Lenf(t, found, 1, "%s in %v", action, actions(history))
	return found[0]
}

func value[T any](t *testing.T, what string, p *T) T {
	t.Helper()
	require.NotNilf(t, p, "%s is missing", what)
	return *p
}

// The audit log answers, in SQL, what happened to a task: who, from where, what, which
// device, which attempt, how long.
func TestAuditLogShowsWholeHistory(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), nil)
	f := in.Fleet(t, fleet.Spec{ID: "only", Slots: 2, ServiceTime: 20 * time.Millisecond})
	p := in.Process(t, "serve")
	hooks := harness.Hooks(t, harness.Secret, nil)
	a := p.API()
	a.Tenant = "acme"
	one := harness.Chat("told")
	one.Callback = &task.Callback{URL: hooks.URL}
	a.Submit(t, one)
	st := waitFor(t, a, "told")
	harness.Eventually(t, harness.Patience, "the callback is recorded", func() bool {
		return harness.SQL[int](t, in, "SELECT count(*) FROM audit_log WHERE action = 'callback.delivered'") == 1
	})
	history := historyOf(t, in, "told")
	require.ElementsMatch(t, []string{"task.accepted", "task.queued", "task.assigned", "batch.closed", "attempt.started", "attempt.succeeded", "task.succeeded", "callback.delivered"}, actions(history))

	accepted := only(t, history, task.TaskAccepted)
	require.Equal(t, "user", accepted.ActorType)
	require.Equal(t, "acme", accepted.ActorID, "who")
	require.True(t, strings.HasPrefix(value(t, "source", accepted.SourceAddr), "127.0.0.1:"), "from where")
	require.Equal(t, "end-to-end/1", value(t, "user agent", accepted.UserAgent))
	require.Equal(t, "m", value(t, "model", accepted.Model), "what")
	require.EqualValues(t, len(one.Input), value(t, "input bytes", accepted.InputBytes))

	assigned := only(t, history, task.TaskAssigned)
	require.Equal(t, "stage", assigned.ActorType)
	require.True(t, strings.HasPrefix(assigned.ActorID, "router@"))
	require.Equal(t, "only", value(t, "device", assigned.DeviceID), "which device")
	require.Equal(t, 1, value(t, "attempt", assigned.Attempt), "which attempt")
	require.NotEmpty(t, value(t, "why this device", assigned.Detail))

	batch := only(t, history, task.BatchClosed)
	require.NotEmpty(t, value(t, "batch", batch.BatchID))
	require.Contains(t, strings.ToLower(value(t, "why the batch closed", batch.Detail)), "reason")

	succeeded := only(t, history, task.AttemptSucceeded)
	require.Equal(t, "only", value(t, "device", succeeded.DeviceID))
	require.Equal(t, 1, value(t, "attempt", succeeded.Attempt))
	require.GreaterOrEqual(t, value(t, "duration", succeeded.DurationMs), 20.0, "how long")
	require.Positive(t, value(t, "tokens", succeeded.OutputTokens))
	require.Equal(t, value(t, "batch", batch.BatchID), value(t, "batch", succeeded.BatchID))

	ended := only(t, history, task.TaskSucceeded)
	require.False(t, ended.Time.Before(accepted.Time))
	for _, s := range history {
		require.Equalf(t, st.TraceID, value(t, "trace id of "+s.Action, s.TraceID), "one trace: %s", s.Action)
		require.NotContains(t, s.Action+value(t, "text", text(s.Detail)), "say told", "no prompt")
	}
	require.Equal(t, 1, f.Device("only").Seen("told"))

	// The API and the command show the same history.
	var timeline struct{ Events []struct{ Action string } }
	a.Get(t, "/v1/tasks/told/events", &timeline)
	require.Len(t, timeline.Events, len(history))
	shown := harness.Run(t, in.Dir, []string{"BATCHYARD_SERVER=" + p.URL(), "BATCHYARD_TENANT=acme"}, "", "tasks", "get", "told", "--events")
	require.Zerof(t, shown.Code, "%s", shown.Stderr)
	require.Contains(t, shown.Stdout, "attempt.succeeded")
}

func text(s *string) *string {
	if s == nil {
		s = new(string)
	}
	return s
}

func TestAuditLogShowsRetries(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), nil)
	f := in.Fleet(t, fleet.Spec{ID: "bad", Slots: 4, Models: []string{"m"}, Tags: []string{"b"}}, fleet.Spec{ID: "good", Slots: 4, Models: []string{"other"}})
	f.Device("bad").SetFault(fleet.Fault{Kind: fleet.Fail, Status: 503, Times: 2})
	a := in.Process(t, "serve").API()
	a.Submit(t, harness.Chat("again"))
	st := waitFor(t, a, "again")
	require.Equal(t, task.Success, st.State)
	require.Equal(t, 3, st.Attempt)
	history := historyOf(t, in, "again")
	var failed, started []step
	for _, s := range history {
		switch task.Action(s.Action) {
		case task.AttemptFailed:
			failed = append(failed, s)
		case task.AttemptStarted:
			started = append(started, s)
		}
	}
	require.Len(t, started, 3, "%v", actions(history))
	require.Len(t, failed, 2)
	for i, s := range failed {
		require.Equal(t, i+1, value(t, "attempt", s.Attempt))
		require.Equal(t, "bad", value(t, "device", s.DeviceID))
		require.Equal(t, "failed", s.Outcome)
		require.NotEmpty(t, value(t, "class", s.ErrorClass))
		require.Contains(t, value(t, "detail", s.Detail), "503")
		require.NotNil(t, s.DurationMs)
	}
	require.Contains(t, actions(history), "task.requeued", "the second retry goes through the router")
	require.Equal(t, 3, value(t, "attempt", only(t, history, task.AttemptSucceeded).Attempt))
	require.Len(t, st.Attempts, 3)
	in.CheckPromises(t, []string{"again"}, nil)
	in.VerifyLog(t)
}

func TestAuditLogShowsOtherEnds(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), nil)
	f := in.Fleet(t, fleet.Spec{ID: "a", Models: []string{"m"}, Slots: 4, ServiceTime: time.Millisecond},
		fleet.Spec{ID: "endless", Models: []string{"endless"}, Slots: 4, ServiceTime: time.Hour},
		fleet.Spec{ID: "refuses", Models: []string{"refuses"}, Slots: 4})
	f.Device("refuses").SetFault(fleet.Fault{Kind: fleet.Fail, Status: 400})
	a := in.Process(t, "serve").API()

	cancelled, waits, runs, failed := harness.Chat("cancelled"), harness.Chat("waits"), harness.Chat("runs"), harness.Chat("failed")
	cancelled.Model, waits.Model, runs.Model, failed.Model = "endless", "unserved-model", "endless", "refuses"
	waits.Deadline, runs.Deadline = time.Now().Add(2*time.Second), time.Now().Add(3*time.Second)
	a.Submit(t, cancelled, waits, runs, failed, harness.Chat("twice"))
	waitFor(t, a, "twice")

	// A duplicate from a client that bypasses the API, and two refused submissions.
	in.Produce(t, asRecord(t, harness.Chat("twice")))
	require.Equal(t, http.StatusUnprocessableEntity, a.Do(t, http.MethodPost, "/v1/tasks", `{"model":"m","input":{}}x`).Status)
	refused := a.Do(t, http.MethodPost, "/v1/tasks", `{"task_id":"refused","input":{"messages":[]}}`)
	require.Equal(t, http.StatusUnprocessableEntity, refused.Status)

	harness.Eventually(t, harness.Patience, "the task is running", func() bool { return a.Status(t, "cancelled").State == task.Running })
	require.Equal(t, http.StatusAccepted, a.Do(t, http.MethodPost, "/v1/tasks/cancelled/cancel", nil).Status)
	require.Equal(t, task.Cancelled, waitFor(t, a, "cancelled").State)
	require.Equal(t, task.Expired, waitFor(t, a, "waits").State)
	require.Equal(t, task.Expired, waitFor(t, a, "runs").State)
	require.Equal(t, task.Failed, waitFor(t, a, "failed").State)

	history := historyOf(t, in, "cancelled")
	asked := only(t, history, task.TaskCancelRequested)
	require.Equal(t, "user", asked.ActorType)
	require.NotEmpty(t, value(t, "source", asked.SourceAddr))
	harness.Eventually(t, harness.Patience, "the stage records that it stopped the request", func() bool {
		return harness.SQL[int](t, in, "SELECT count(*) FROM audit_log WHERE task_id = 'cancelled' AND action = 'task.cancelled'") == 1
	})

	history = historyOf(t, in, "waits")
	require.NotContains(t, actions(history), "task.assigned")
	require.True(t, strings.HasPrefix(only(t, history, task.TaskExpired).ActorID, "router@"))
	history = historyOf(t, in, "runs")
	require.Contains(t, actions(history), "attempt.started")
	require.True(t, strings.HasPrefix(only(t, history, task.TaskExpired).ActorID, "workers@"))

	history = historyOf(t, in, "failed")
	end := only(t, history, task.TaskFailed)
	require.Equal(t, "failed", end.Outcome)
	require.NotEmpty(t, value(t, "class", end.ErrorClass))
	require.NotContains(t, actions(history), "task.requeued", "a 400 is not retried")

	harness.Eventually(t, harness.Patience, "the duplicate is recorded", func() bool {
		return harness.SQL[int](t, in, "SELECT count(*) FROM audit_log WHERE action = 'task.duplicate' AND task_id = 'twice' AND outcome = 'refused' AND source_addr LIKE 'kafka:%tasks.normal/%'") == 1
	})
	require.Equal(t, 1, f.Device("a").Seen("twice"))
	harness.Eventually(t, harness.Patience, "the refusals are recorded", func() bool {
		return harness.SQL[int](t, in, "SELECT count(*) FROM audit_log WHERE action = 'task.refused' AND outcome = 'refused' AND actor_type = 'user' AND source_addr IS NOT NULL") == 2
	})
	require.Equal(t, 1, harness.SQL[int](t, in, "SELECT count(*) FROM audit_log WHERE action = 'task.refused' AND detail::text LIKE '%model%'"), "the detail names the field")
	in.CheckPromises(t, []string{"cancelled", "waits", "runs", "failed", "twice"}, nil)
	in.VerifyLog(t)
}
