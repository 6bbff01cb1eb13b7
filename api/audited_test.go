package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/api/trail"
	"github.com/batchyard/batchyard/status"
	"github.com/batchyard/batchyard/task"
)

// A new operation has to say how the audit log learns of it.
func TestEveryOperationIsAudited(t *testing.T) {
	b := start(t, Config{})
	var described []string
	for _, item := range b.server.api.OpenAPI().Paths {
		for _, op := range operations(item) {
			described = append(described, op.OperationID)
		}
	}
	slices.Sort(described)
	require.Equal(t, described, slices.Sorted(maps.Keys(trail.Operations)))
	for id, op := range trail.Operations {
		ways := 0
		for _, way := range []bool{op.Change != "", op.Reads, op.Exempt != ""} {
			if way {
				ways++
			}
		}
		require.Equal(t, 1, ways, "%s: it is a change, a reading, or exempt", id)
		require.Equal(t, op.Exempt == "", op.Resource != "", id)
		require.True(t, op.Change == "" || op.Change.Listed(), id)
	}
}

func TestWhatIsRefusedIsRecorded(t *testing.T) {
	b := start(t, Config{})
	b.store.set(status.TaskRow{Tenant: "default", ID: "done", State: task.Success})
	long := strings.Repeat("x", 200)
	for _, c := range []struct {
		method, path, body string
		headers            []string
		action             task.Action
		status             int
		resource, field    string
	}{
		{"POST", "/v1/tasks", `{}`, nil, task.TaskRefused, 422, "", "/model"},
		{"POST", "/v1/tasks/done/cancel", "", nil, task.TaskCancelRequested, 409, "done", ""},
		{"POST", "/v1/tasks/none/cancel", "", nil, task.TaskCancelRequested, 404, "none", ""},
		{"PATCH", "/v1/tasks/none", `{"priority":"high"}`, nil, task.TaskReprioritized, 404, "none", ""},
		{"PATCH", "/v1/tasks/none", `{"priority":"highest"}`, nil, task.TaskReprioritized, 422, "none", "/priority"},
		{"POST", "/v1/tasks/none/retry", `{}`, nil, task.TaskRetried, 404, "none", ""},
		{"PUT", "/v1/jobs/j", `{"tasks":1}`, nil, task.JobSubmitted, 422, "j", "/sha256"},
		{"POST", "/v1/jobs/j/cancel", "", nil, task.JobCancelRequested, 404, "j", ""},
		{"POST", "/v1/devices/d/heartbeat", `{"url":"ftp://x","models":["m"]}`, nil, task.DeviceRefused, 422, "d", "/url"},
		{"POST", "/v1/devices/d/drain", "", nil, task.DeviceDrained, 404, "d", ""},
		{"POST", "/v1/devices/d/undrain", "", nil, task.DeviceUndrained, 404, "d", ""},
		{"PUT", "/v1/router/policy", `{"policy":"best"}`, nil, task.PolicyChanged, 422, "", "/policy"},
		{"DELETE", "/v1/router/policy", "", []string{tenantHeader, "a\tb"}, task.PolicyChanged, 400, "", tenantHeader},
		{"GET", "/v1/tasks/none", "", nil, task.DataRead, 404, "none", ""},
		{"GET", "/v1/tasks/" + "%00", "", nil, task.DataRead, 400, "", "task_id"},
		{"GET", "/v1/tasks?cursor=x&cursor=y", "", nil, task.DataRead, 422, "", "cursor"},
		{"GET", "/v1/jobs", "", []string{tenantHeader, long}, task.DataRead, 400, "", tenantHeader},
	} {
		before := len(b.events(t, c.action))
		require.Equal(t, c.status, b.do(t, c.method, c.path, c.body, append(c.headers, "User-Agent", "test/1")...).status, c)
		es := b.events(t, c.action)
		require.Len(t, es, before+1, "%s %s", c.method, c.path)
		e := es[len(es)-1]
		require.Equal(t, task.OutcomeRefused, e.Outcome, c)
		require.Equal(t, c.resource, e.ResourceID, c)
		require.Empty(t, e.TaskID, "it is not known to be a task: %v", c)
		require.Equal(t, "test/1", e.UserAgent)
		require.NotEmpty(t, e.SourceAddr)
		var detail struct {
			Operation, Reason string
			Status            int
			Errors            []string
		}
		require.NoError(t, json.Unmarshal(e.Detail, &detail), string(e.Detail))
		require.Equal(t, c.status, detail.Status)
		require.NotEmpty(t, detail.Operation)
		if c.field != "" {
			require.Contains(t, detail.Errors, c.field, c)
		} else {
			require.NotEmpty(t, detail.Reason, c)
		}
	}
}

func TestReadingsAreRecordedOnceAMinute(t *testing.T) {
	b := start(t, Config{})
	for _, id := range []string{"a", "b"} {
		b.store.set(status.TaskRow{Tenant: "default", ID: id, State: task.Success})
		for range 20 {
			require.Equal(t, http.StatusOK, b.do(t, "GET", "/v1/tasks/"+id, "").status)
		}
	}
	require.Equal(t, http.StatusOK, b.do(t, "GET", "/v1/jobs/j/results", "").status)
	require.Equal(t, http.StatusOK, b.do(t, "GET", "/healthz", "").status)
	require.Len(t, b.events(t, task.DataRead), 2, "the first of each kind")
	require.Zero(t, b.server.trail.Flush(t.Context()))
	var rows []string
	for _, e := range b.events(t, task.DataRead) {
		var detail struct {
			Operation string
			Requests  int
			IDs       []string
		}
		require.NoError(t, json.Unmarshal(e.Detail, &detail))
		rows = append(rows, fmt.Sprintf("%s %s %q %d %v", detail.Operation, e.ResourceType, e.ResourceID, detail.Requests, detail.IDs))
	}
	require.ElementsMatch(t, []string{`get-task task "a" 0 []`, `get-task task "" 39 [a b]`, `list-job-results answer "j" 0 []`}, rows)
}

// What was sent before an answer broke off has been read.
func TestAnAnswerThatBreaksOffWasRead(t *testing.T) {
	b := start(t, Config{})
	res := task.NewResult(&task.Task{ID: "a", Tenant: "default"}, task.Success, time.Now())
	res.Output = task.Input(`"` + strings.Repeat("x", 1<<20) + `"`)
	b.store.setResults(errors.New("away"), res)
	resp, err := b.get(t, "/v1/jobs/j/results")
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, resp.Body)
	require.Error(t, err)
	require.NoError(t, resp.Body.Close())
	require.Eventually(t, func() bool { return len(b.events(t, task.DataRead)) == 1 }, patience, 20*time.Millisecond)
	require.Equal(t, "answer", b.events(t, task.DataRead)[0].ResourceType)
}

func TestTheSameRefusalIsCounted(t *testing.T) {
	b := start(t, Config{})
	for range 10 {
		b.do(t, "POST", "/v1/tasks", `{}`).problem(t, 422)
		b.do(t, "POST", "/v1/tasks", `{"model":"m","input":7}`).problem(t, 422)
	}
	require.Len(t, b.events(t, task.TaskRefused), 2, "one for each reason")
	require.Zero(t, b.server.trail.Flush(t.Context()))
	require.Len(t, b.events(t, task.TaskRefused), 4)
}

func TestWhatADeviceSaysOfItselfIsRecorded(t *testing.T) {
	b := start(t, Config{})
	beat := func(body string) { require.Equal(t, 200, b.do(t, "POST", "/v1/devices/d/heartbeat", body).status) }
	beat(`{"url":"http://10.0.0.5:8000","models":["m"],"slots":4,"cpu":0.1}`)
	beat(`{"url":"http://10.0.0.5:8000","models":["m"],"slots":4,"cpu":0.9}`)
	require.Empty(t, b.events(t, task.DeviceChanged), "its figures change all the time")
	beat(`{"url":"http://10.6.6.6:8000","models":["m"],"slots":4}`)
	joined, changed := b.events(t, task.DeviceJoined), b.events(t, task.DeviceChanged)
	require.Len(t, joined, 1)
	require.JSONEq(t, `{"new":{"url":"http://10.0.0.5:8000","models":["m"],"slots":4,"weight":1}}`, string(joined[0].Detail))
	require.Len(t, changed, 1)
	require.JSONEq(t, `{"old":{"url":"http://10.0.0.5:8000","models":["m"],"slots":4,"weight":1},"new":{"url":"http://10.6.6.6:8000","models":["m"],"slots":4,"weight":1}}`, string(changed[0].Detail))
	require.Equal(t, "d", changed[0].DeviceID)
}
