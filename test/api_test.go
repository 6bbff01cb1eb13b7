package test

import (
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/api"
	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/harness"
)

// A task is PENDING on every API process as soon as one has accepted it. Only the API
// is running, so the status can only come from the submission.
func TestPendingRightAfterAcceptance(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), nil)
	in.Fleet(t, fleet.Spec{ID: "a", Slots: 8, ServiceTime: time.Millisecond})
	one, two := in.Process(t, "serve", "api").API(), in.Process(t, "serve", "api").API()
	tasks, ids := harness.Chats("p", 200)
	var clients sync.WaitGroup
	for c := range 4 {
		clients.Go(func() {
			for i := c; i < len(tasks); i += 4 {
				took, other := one, two
				if i%2 == 1 {
					took, other = two, one
				}
				answer, err := took.Try(t.Context(), http.MethodPost, "/v1/tasks", tasks[i])
				if err != nil || answer.Status != http.StatusAccepted {
					t.Errorf("submitting %s: %v %d %s", ids[i], err, answer.Status, answer.Body)
					return
				}
				for _, a := range []*harness.API{other, took} {
					if answer, err = a.Try(t.Context(), http.MethodGet, "/v1/tasks/"+ids[i], nil); err != nil || answer.Status != http.StatusOK {
						t.Errorf("getting the status of %s: %v %d %s", ids[i], err, answer.Status, answer.Body)
						return
					}
					var st api.Status
					answer.Into(t, &st)
					if st.State != task.Pending || st.ID != ids[i] || st.SubmittedAt == nil {
						t.Errorf("%s is %+v", ids[i], st)
					}
				}
			}
		})
	}
	clients.Wait()
	require.False(t, t.Failed())

	// The same with all stages running: never 404, and ?wait returns the final state.
	in.Process(t, "serve", "router", "batcher", "workers", "audit")
	for i := range 20 {
		id := fmt.Sprintf("w-%d", i)
		one.Submit(t, harness.Chat(id))
		two.Status(t, id)
		st := waitFor(t, two, id)
		require.Equal(t, task.Success, st.State)
		require.NotEmpty(t, st.Output)
		require.Equal(t, "a", st.DeviceID)
		require.NotNil(t, st.FinishedAt)
		require.Equal(t, 1, st.Attempt)
		ids = append(ids, id)
	}
	in.Await(t, ids, harness.Patience)
	in.CheckPromises(t, ids, nil)
}

// waitFor waits for a task to end, using ?wait.
func waitFor(t *testing.T, a *harness.API, id string) api.Status {
	t.Helper()
	var st api.Status
	a.Get(t, "/v1/tasks/"+id+"?wait=30s", &st)
	require.Truef(t, st.State.Terminal(), "%s has not ended: %+v", id, st)
	return st
}

func TestListsAndTenants(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), nil)
	in.Fleet(t, fleet.Spec{ID: "a", Slots: 8, ServiceTime: time.Millisecond})
	a := in.Process(t, "serve").API()
	tasks, ids := harness.Chats("l", 57)
	for i, one := range tasks {
		one.JobID = []string{"even", "odd"}[i%2]
	}
	a.Submit(t, tasks...)
	in.Await(t, ids, harness.Patience)
	other := *a
	other.Tenant = "another-tenant"
	other.Submit(t, harness.Chat("l-0000"), harness.Chat("theirs"))
	waitFor(t, &other, "theirs")
	waitFor(t, &other, "l-0000")

	page := func(a *harness.API, query url.Values) (got []string) {
		for {
			var list api.List
			a.Get(t, "/v1/tasks?"+query.Encode(), &list)
			for _, st := range list.Tasks {
				got = append(got, st.ID)
			}
			if list.Next == "" {
				return got
			}
			require.NotEmpty(t, list.Tasks)
			query.Set("cursor", list.Next)
		}
	}
	require.ElementsMatch(t, ids, page(a, url.Values{"state": {"SUCCESS"}, "limit": {"10"}}), "each once over six pages")
	require.Len(t, page(a, url.Values{"job_id": {"even"}, "limit": {"7"}}), 29)
	require.Empty(t, page(a, url.Values{"state": {"FAILED"}}))
	require.ElementsMatch(t, []string{"l-0000", "theirs"}, page(&other, url.Values{}))
	require.Equal(t, http.StatusNotFound, a.Do(t, http.MethodGet, "/v1/tasks/theirs", nil).Status, "of another tenant")
}

func TestCancel(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), nil)
	f := in.Fleet(t, fleet.Spec{ID: "quick", Models: []string{"m"}, Slots: 2, ServiceTime: time.Millisecond},
		fleet.Spec{ID: "endless", Models: []string{"endless"}, Slots: 2, ServiceTime: time.Hour})
	a := in.Process(t, "serve").API()

	pending, running, done := harness.Chat("pending"), harness.Chat("running"), harness.Chat("done")
	pending.Model, running.Model = "unserved-model", "endless"
	a.Submit(t, pending, running, done)
	require.Equal(t, task.Success, waitFor(t, a, "done").State)
	harness.Eventually(t, harness.Patience, "the task is running", func() bool {
		return a.Status(t, "running").State == task.Running && f.Device("endless").Stats().Running == 1
	})
	for _, id := range []string{"pending", "running"} {
		answer := a.Do(t, http.MethodPost, "/v1/tasks/"+id+"/cancel", nil)
		require.Equalf(t, http.StatusAccepted, answer.Status, "%s", answer.Body)
		require.Equal(t, task.Cancelled, waitFor(t, a, id).State)
	}
	harness.Eventually(t, harness.Patience, "the device is free again", func() bool { return f.Device("endless").Stats().InFlight == 0 })

	again := a.Do(t, http.MethodPost, "/v1/tasks/running/cancel", nil)
	require.Equal(t, http.StatusConflict, again.Status)
	finished := a.Do(t, http.MethodPost, "/v1/tasks/done/cancel", nil)
	require.Equal(t, http.StatusConflict, finished.Status)
	var p api.Problem
	finished.Into(t, &p)
	require.Equal(t, task.Success, p.State)
	require.Equal(t, http.StatusNotFound, a.Do(t, http.MethodPost, "/v1/tasks/unknown/cancel", nil).Status)

	// The freed slot can be used again.
	after := harness.Chat("after")
	a.Submit(t, after)
	require.Equal(t, task.Success, waitFor(t, a, "after").State)
	in.CheckPromises(t, []string{"pending", "running", "done", "after"}, nil)
}

func TestProblemsNameTheField(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), map[string]any{"task.max_input": 4096, "task.max_tasks": 10})
	a := in.Process(t, "serve", "api").API()
	hello := `{"messages":[{"role":"user","content":"hello"}]}`
	for name, c := range map[string]struct {
		method, path, body string
		status             int
		pointer, detail    string
	}{
		"no model":        {"POST", "/v1/tasks", `{"input":` + hello + `}`, 422, "/model", "missing"},
		"in an array":     {"POST", "/v1/tasks", `[{"model":"m","input":` + hello + `},{"model":"m"}]`, 422, "/1/input", "missing"},
		"priority":        {"POST", "/v1/tasks", `{"model":"m","input":` + hello + `,"priority":"urgent"}`, 422, "/priority", "high"},
		"wrong type":      {"POST", "/v1/tasks", `{"model":7,"input":` + hello + `}`, 422, "/model", "number"},
		"unknown field":   {"POST", "/v1/tasks", `{"model":"m","input":` + hello + `,"modle":"m"}`, 422, "/modle", "unknown field"},
		"endpoint":        {"POST", "/v1/tasks", `{"model":"m","input":` + hello + `,"endpoint":"/v1/files"}`, 422, "/endpoint", "/v1/chat/completions"},
		"callback":        {"POST", "/v1/tasks", `{"model":"m","input":` + hello + `,"callback":{"url":"ftp://x"}}`, 422, "/callback/url", "http"},
		"too large":       {"POST", "/v1/tasks", `{"model":"m","input":{"x":"` + fmt.Sprintf("%05000d", 0) + `"}}`, 422, "/input", "4"},
		"invalid JSON":    {"POST", "/v1/tasks", `{"model"`, 422, "", ""},
		"state":           {"GET", "/v1/tasks?state=DONE", "", 422, "state", "PENDING"},
		"cursor":          {"GET", "/v1/tasks?cursor=abc", "", 422, "cursor", "invalid cursor"},
		"limit":           {"GET", "/v1/tasks?limit=0", "", 422, "limit", ""},
		"wait":            {"GET", "/v1/tasks/x?wait=soon", "", 422, "wait", "30s"},
		"unknown task":    {"GET", "/v1/tasks/x", "", 404, "", ""},
		"unknown path":    {"GET", "/v2/tasks", "", 404, "", ""},
		"wrong method":    {"DELETE", "/v1/tasks/x", "", 405, "", ""},
		"heartbeat slots": {"POST", "/v1/devices/d/heartbeat", `{"url":"http://127.0.0.1:1","models":["m"],"slots":5000}`, 422, "/slots", "4096"},
		"heartbeat url":   {"POST", "/v1/devices/d/heartbeat", `{"models":["m"],"slots":1}`, 422, "/url", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var body any
			if c.body != "" {
				body = c.body
			}
			answer := a.Do(t, c.method, c.path, body)
			require.Equalf(t, c.status, answer.Status, "%s", answer.Body)
			require.Equal(t, "application/problem+json", answer.Header.Get("Content-Type"))
			var p api.Problem
			answer.Into(t, &p)
			require.Equal(t, c.status, p.Status)
			require.NotEmpty(t, p.Title)
			require.NotEmpty(t, p.Detail)
			require.NotContains(t, string(answer.Body), "hello", "problems must not quote the input")
			if c.pointer != "" {
				require.NotEmptyf(t, p.Errors, "%s", answer.Body)
				require.Equal(t, c.pointer, p.Errors[0].Pointer)
				require.Contains(t, p.Errors[0].Detail, c.detail)
			}
		})
	}
}

func TestAgentJoinsDevice(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), nil)
	p := in.Process(t, "serve")
	f, err := fleet.Start(t.Context(), []fleet.Spec{{ID: "real", Models: []string{"m"}, Slots: 4, ServiceTime: time.Millisecond}})
	require.NoError(t, err)
	t.Cleanup(f.Close)
	a := p.API()
	agent := harness.Start(t, in.Dir, nil, "agent", "--device", "gpu-1="+f.Device("real").URL()+",model=m,tag=eu,tag=gpu,slots=4", "--interval", "1s", "--server", p.URL())
	find := func() *api.DeviceStatus {
		var list api.DeviceList
		a.Get(t, "/v1/devices", &list)
		for i := range list.Devices {
			if list.Devices[i].ID == "gpu-1" {
				return &list.Devices[i]
			}
		}
		return nil
	}
	harness.Eventually(t, harness.Patience, "the device has joined", func() bool { return find() != nil })
	d := find()
	require.Equal(t, []string{"m"}, d.Models)
	require.Equal(t, []string{"eu", "gpu"}, d.Tags)
	require.Equal(t, 4, d.Slots)
	require.False(t, d.Silent)
	require.Positive(t, d.Mem)
	require.NotNil(t, d.Queue, "read from its /metrics")

	needs := harness.Chat("needs")
	needs.Needs = []string{"eu"}
	a.Submit(t, needs)
	require.Equal(t, "gpu-1", waitFor(t, a, "needs").DeviceID)

	list := harness.Run(t, in.Dir, []string{"BATCHYARD_SERVER=" + p.URL()}, "", "devices", "list")
	require.Zero(t, list.Code)
	require.Contains(t, list.Stdout, "gpu-1")

	require.Zero(t, agent.Term(t))
	harness.Eventually(t, harness.Patience, "the device has left", func() bool { return find() == nil })
	harness.Eventually(t, harness.Patience, "joining and leaving are recorded", func() bool {
		return harness.SQL[int](t, in, `SELECT count(DISTINCT action) FROM audit_log WHERE device_id = 'gpu-1' AND actor_type = 'device' AND action IN ('device.joined', 'device.left')`) == 2
	})
}

// Without Postgres the API is not ready, but it still accepts tasks. It recovers when
// Postgres is back.
func TestAPIWithoutPostgres(t *testing.T) {
	harness.Parallel(t, harness.Disruptable)
	services := harness.Get(t, harness.Disruptable)
	in := harness.Install(t, services, nil)
	in.Fleet(t, fleet.Spec{ID: "a", Slots: 8, ServiceTime: time.Millisecond})
	p := in.Process(t, "serve")
	a := p.API()
	a.Submit(t, harness.Chat("before"))
	require.Equal(t, task.Success, waitFor(t, a, "before").State)

	services.StopPostgres(t)
	harness.Eventually(t, harness.Patience, "the process is not ready", func() bool { return p.Readyz(t) == http.StatusServiceUnavailable })
	var ready api.Readiness
	a.Do(t, http.MethodGet, "/readyz", nil).Into(t, &ready)
	require.False(t, ready.Ready)
	require.NotEqual(t, "ok", ready.Checks["postgres"])
	require.Equal(t, "ok", ready.Checks["kafka"])
	require.Equal(t, "ok", ready.Checks["redis"])
	require.Equal(t, http.StatusOK, a.Do(t, http.MethodGet, "/healthz", nil).Status, "the process is alive")

	tasks, ids := harness.Chats("away", 50)
	a.Submit(t, tasks...)
	require.Equal(t, task.Pending, a.Status(t, ids[0]).State, "the status of a new task is known")
	for _, path := range []string{"/v1/tasks", "/v1/tasks/never-heard-of"} {
		answer := a.Do(t, http.MethodGet, path, nil)
		require.Equalf(t, http.StatusServiceUnavailable, answer.Status, "%s: %s", path, answer.Body)
		require.NotEmpty(t, answer.Header.Get("Retry-After"))
	}
	resultsOf(t, in, append([]string{"before"}, ids...)...) // tasks run in the meantime

	services.StartPostgres(t)
	harness.Eventually(t, harness.Patience, "the process is ready again", func() bool { return p.Readyz(t) == http.StatusOK })
	ids = append(ids, "before")
	in.Await(t, ids, harness.Patience)
	in.CheckPromises(t, ids, nil)
	in.VerifyLog(t)
}
