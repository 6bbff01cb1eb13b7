package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/fuzzing"
	"github.com/batchyard/batchyard/status"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

const oneTask = `{"task_id":"a","model":"m","input":{"messages":[]}}`

func TestSubmitOneThenAsk(t *testing.T) {
	b := start(t, Config{})
	trace := strings.Repeat("ab", 16)
	a := b.do(t, "POST", "/v1/tasks", oneTask, "Content-Type", "application/json", "User-Agent", "test/1",
		"traceparent", "00-"+trace+"-00f067aa0ba902b7-01")
	require.Equal(t, http.StatusAccepted, a.status, a.body)
	require.JSONEq(t, `{"task_id":"a","tenant":"default","state":"PENDING"}`, a.body)
	require.Equal(t, "/v1/tasks/a", a.header.Get("Location"))
	require.Len(t, b.records(t, stream.TasksNormal), 1)
	es := b.events(t, task.TaskAccepted)
	require.Len(t, es, 1)
	require.Equal(t, "test/1", es[0].UserAgent)
	require.Equal(t, trace, es[0].TraceID)
	require.Contains(t, es[0].SourceAddr, "127.0.0.1:")

	// Postgres has not heard of it: PENDING, never 404.
	var st Status
	a = b.do(t, "GET", "/v1/tasks/a", "")
	require.Equal(t, http.StatusOK, a.status, a.body)
	a.into(t, &st)
	require.Equal(t, task.Pending, st.State)
	require.Equal(t, "m", st.Model)

	// Postgres away: still known.
	b.store.goAway(errors.New("connection refused"))
	a = b.do(t, "GET", "/v1/tasks/a", "")
	require.Equal(t, http.StatusOK, a.status, a.body)
	b.do(t, "GET", "/v1/tasks/other", "").problem(t, http.StatusServiceUnavailable)
	b.store.goAway(nil)
	b.do(t, "GET", "/v1/tasks/other", "").problem(t, http.StatusNotFound)
	b.do(t, "GET", "/v1/tasks/a", "", tenantHeader, "acme").problem(t, http.StatusNotFound)

	b.store.set(status.TaskRow{Tenant: "default", ID: "a", State: task.Success, Device: "d", Attempt: 1,
		Result: &task.Result{Output: task.Input(`{"answer":42}`), Status: 200, Usage: task.Usage{InputTokens: 1}}})
	a = b.do(t, "GET", "/v1/tasks/a?wait=1s", "")
	require.Equal(t, http.StatusOK, a.status, a.body)
	a.into(t, &st)
	require.Equal(t, task.Success, st.State)
	require.JSONEq(t, `{"answer":42}`, string(st.Output))
}

func TestSubmitArrayAndMessagePack(t *testing.T) {
	b := start(t, Config{})
	a := b.do(t, "POST", "/v1/tasks", `[{"model":"m","input":{}},{"task_id":"b/2","model":"m","input":{},"priority":"high"}]`, tenantHeader, "acme")
	require.Equal(t, http.StatusAccepted, a.status, a.body)
	var l AcceptedList
	a.into(t, &l)
	require.Len(t, l.Tasks, 2)
	require.Len(t, l.Tasks[0].ID, 36)
	require.Equal(t, Accepted{"b/2", "acme", task.Pending}, l.Tasks[1])
	a = b.do(t, "GET", "/v1/tasks/b%2F2", "", tenantHeader, "acme")
	require.Equal(t, http.StatusOK, a.status, a.body)

	packed, err := wire.EncodeTask(&task.Task{ID: "mp", Model: "m", Input: task.Input(`{}`)}, wire.ContentMsgpack)
	require.NoError(t, err)
	a = b.do(t, "POST", "/v1/tasks", string(packed), "Content-Type", "application/msgpack")
	require.Equal(t, http.StatusAccepted, a.status, a.body)
	require.JSONEq(t, `{"task_id":"mp","tenant":"default","state":"PENDING"}`, a.body)
}

// What clients write around a task is understood, as over Kafka.
func TestSubmitsOfManyClients(t *testing.T) {
	b := start(t, Config{})
	const bom = "\xef\xbb\xbf"
	packed, err := wire.EncodeTask(&task.Task{Model: "m", Input: task.Input(`{}`)}, wire.ContentMsgpack)
	require.NoError(t, err)
	for name, c := range map[string]struct{ body, contentType string }{
		"BOM": {bom + oneTask, "application/json"}, "BOM and an array": {bom + "[" + oneTask + "]", "application/json"}, "suffix": {oneTask, "application/vnd.acme+json; charset=UTF-8"},
		"quoted": {oneTask, `"application/json"`}, "octets": {oneTask, "application/octet-stream"}, "an array of octets": {" [" + oneTask + "]", "application/octet-stream"},
		"octets, packed": {string(packed), "application/octet-stream"}, "capitals": {string(packed), "APPLICATION/MSGPACK"}, "none": {oneTask, ""},
	} {
		a := b.do(t, "POST", "/v1/tasks", c.body, "Content-Type", c.contentType)
		require.Equal(t, http.StatusAccepted, a.status, "%s: %s", name, a.body)
	}
	a := b.do(t, "PATCH", "/v1/tasks/a", bom+`{"priority":"high","Level":1}`, "Content-Type", "application/json")
	p := a.problem(t, http.StatusUnprocessableEntity)
	require.Equal(t, "/Level", p.Errors[0].Pointer, a.body)
	require.Contains(t, p.Errors[0].Detail, "`level`")

	a = b.do(t, "POST", "/v1/tasks", `{"task_id":"trace","model":"m","input":{},"trace_id":"0AF7651916CD43DD8448EB211C80319C"}`)
	require.Equal(t, http.StatusAccepted, a.status, a.body)
	require.Equal(t, http.StatusAccepted, b.do(t, "POST", "/v1/tasks", `{"task_id":"parent","model":"m","input":{}}`, "traceparent", "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01").status)
	traces := map[string]string{}
	for _, e := range b.events(t, task.TaskAccepted) {
		traces[e.TaskID] = e.TraceID
	}
	require.Equal(t, "0af7651916cd43dd8448eb211c80319c", traces["trace"], "W3C ids are lower-case")
	require.NotContains(t, strings.ToLower(traces["parent"]), "0af7651916cd43dd8448eb211c80319c", "an invalid traceparent is ignored")
}

func TestSubmitsThatAreRefused(t *testing.T) {
	b := start(t, Config{})
	secret := strings.Repeat("s3cret", 40)
	for name, c := range map[string]struct {
		body    string
		headers []string
		status  int
		pointer string
	}{
		"one of many":       {`[{"model":"m","input":{}},{"input":{}}]`, nil, 422, "/1/model"},
		"unknown field":     {`{"model":"m","input":{},"colour":"x"}`, nil, 422, "/colour"},
		"nested field":      {`{"model":"m","input":{},"callback":{"url":"ftp://` + secret + `"}}`, nil, 422, "/callback/url"},
		"list entry":        {`{"model":"m","input":{},"needs":["a",""]}`, nil, 422, "/needs/1"},
		"input of text":     {`{"model":"m","input":"` + secret + `"}`, nil, 422, "/input"},
		"input too large":   {`{"model":"m","input":{"a":"` + strings.Repeat("a", 65<<10) + `"}}`, nil, 422, "/input"},
		"same id twice":     {`[{"task_id":"a","model":"m","input":{}},{"task_id":"a","model":"m","input":{}}]`, nil, 422, "/1/task_id"},
		"bad priority":      {`{"model":"m","input":{},"priority":"` + secret + `"}`, nil, 422, "/priority"},
		"broken JSON":       {`{"model":`, nil, 422, ""},
		"broken array":      {`[{"model":"m","input":{}},`, nil, 400, ""},
		"broken element":    {`[{"model":"m","input":{}},{]`, nil, 400, "/1"},
		"empty":             {` `, nil, 400, ""},
		"empty array":       {`[]`, nil, 400, ""},
		"what follows":      {`[{"model":"m","input":{}}] x`, nil, 400, ""},
		"too many":          {`[` + strings.Repeat(`{"model":"m","input":{}},`, 10) + `{}]`, nil, 413, ""},
		"too large":         {strings.Repeat(" ", 1<<20+1), nil, 413, ""},
		"other format":      {`a=b`, []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, ""},
		"two tenants":       {`{"tenant":"a","model":"m","input":{}}`, []string{tenantHeader, "b"}, 400, "/tenant"},
		"tenant is no name": {oneTask, []string{tenantHeader, strings.Repeat("x", 129)}, 400, tenantHeader},
		"msgpack bomb":      {"\xdd\xff\xff\xff\xff", []string{"Content-Type", "application/msgpack"}, 422, ""},
		"progress":          {`{"model":"m","input":{},"progress":{"requeues":1}}`, nil, 422, "/progress"},
		"no progress":       {`[{"model":"m","input":{},"progress":null}]`, nil, 422, "/0/progress"},
		"other letters":     {`{"model":"m","input":{},"tenant":"a","Tenant":"b"}`, nil, 422, "/Tenant"},
		"twice":             {`{"model":"m","input":{},"tenant":"a","tenant":"a"}`, nil, 422, "/tenant"},
		"twice inside":      {`{"model":"m","input":{"messages":[{"role":"a","role":"b"}]}}`, nil, 422, "/input"},
		"twice, packed":     {"\x82\xa5model\xa1a\xa5model\xa1b", []string{"Content-Type", "application/msgpack"}, 422, "/model"},
		"a type, packed":    {"\x81\xa5model\x93\x01\x02\x03", []string{"Content-Type", "application/msgpack"}, 422, "/model"},
		"dependencies":      {`{"task_id":"a","model":"m","input":{},"depends_on":["a"]}`, nil, 422, "/depends_on"},
		"half a pair":       {`{"task_id":"x\ud800","model":"m","input":{}}`, nil, 422, "/task_id"},
		"half a pair, deep": {`{"model":"m","input":{"messages":[{"content":"\udfff"}]}}`, nil, 422, "/input"},
		"no trace":          {`{"model":"m","input":{},"trace_id":"` + strings.Repeat("0", 32) + `"}`, nil, 422, "/trace_id"},
		"UTF-16":            {"\xff\xfe{\x00}\x00", nil, 422, ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := b.do(t, "POST", "/v1/tasks", c.body, c.headers...)
			p := a.problem(t, c.status)
			if c.pointer != "" {
				require.NotEmpty(t, p.Errors, a.body)
				require.Equal(t, c.pointer, p.Errors[0].Pointer)
				require.NotEmpty(t, p.Errors[0].Detail)
			}
			require.NotContains(t, a.body, secret[:70])
		})
	}
	require.Empty(t, b.records(t, stream.TasksNormal))
	require.NotEmpty(t, b.events(t, task.TaskRefused))
	for _, e := range b.events(t, task.TaskRefused) {
		require.NotContains(t, string(e.Detail), "s3cret")
	}
	require.NotContains(t, b.logs.String(), "s3cret")
}

func TestWaitEndsWithTheTask(t *testing.T) {
	b := start(t, Config{})
	b.store.set(status.TaskRow{Tenant: "default", ID: "a", State: task.Running})
	got := b.later("/v1/tasks/a?wait=60")
	require.Equal(t, "a", (<-b.store.waiting).ID)
	b.store.set(status.TaskRow{Tenant: "default", ID: "a", State: task.Failed, ErrorClass: task.ClassDevice, ErrorMessage: "broke"})
	close(b.store.ended)
	a := <-got
	require.Equal(t, http.StatusOK, a.status)
	var st Status
	a.into(t, &st)
	require.Equal(t, task.Failed, st.State)
	require.Equal(t, "broke", st.Error.Message)
	require.Equal(t, http.StatusUnprocessableEntity, b.do(t, "GET", "/v1/tasks/a?wait=soon", "").status)
}

// The read deadline of the connection must not end a request that waits.
func TestWaitOutlivesTheReadDeadline(t *testing.T) {
	b := start(t, Config{BodyTimeout: 200 * time.Millisecond, HeaderTimeout: 200 * time.Millisecond})
	b.store.set(status.TaskRow{Tenant: "default", ID: "a", State: task.Running})
	began := time.Now()
	a := b.do(t, "GET", "/v1/tasks/a?wait=1s", "")
	require.Equal(t, http.StatusOK, a.status)
	require.GreaterOrEqual(t, time.Since(began), time.Second)
}

func TestDrainAnswersThoseWhoWait(t *testing.T) {
	b := start(t, Config{})
	b.store.set(status.TaskRow{Tenant: "default", ID: "a", State: task.Running})
	got := b.later("/v1/tasks/a?wait=60s")
	<-b.store.waiting
	b.end(t)
	a := <-got
	require.Equal(t, http.StatusOK, a.status)
	require.Contains(t, a.body, "RUNNING")
	resp, err := b.get(t, "/healthz")
	if err == nil {
		_ = resp.Body.Close()
	}
	require.Error(t, err)
}

func TestList(t *testing.T) {
	b := start(t, Config{})
	b.store.set(status.TaskRow{Tenant: "default", ID: "a", State: task.Failed, SubmittedAt: time.Unix(1, 0)})
	b.store.set(status.TaskRow{Tenant: "acme", ID: "b", State: task.Failed})
	a := b.do(t, "GET", "/v1/tasks?state=failed&limit=5", "")
	require.Equal(t, http.StatusOK, a.status, a.body)
	require.JSONEq(t, `{"tasks":[{"task_id":"a","tenant":"default","state":"FAILED","attempt":0,"submitted_at":"1970-01-01T00:00:01Z"}],"next":"more"}`, a.body)
	for path, pointer := range map[string]string{"state=no": "state", "limit=0": "limit", "limit=x": "limit", "cursor=bad": "cursor", "stat=FAILED": "stat"} {
		p := b.do(t, "GET", "/v1/tasks?"+path, "").problem(t, 422)
		require.NotEmpty(t, p.Errors, path)
		require.Equal(t, pointer, p.Errors[0].Pointer, path)
	}
	b.store.goAway(errors.New("away"))
	b.do(t, "GET", "/v1/tasks", "").problem(t, 503)
}

func TestCancel(t *testing.T) {
	b := start(t, Config{})
	b.do(t, "POST", "/v1/tasks/none/cancel", "").problem(t, 404)
	require.Equal(t, 202, b.do(t, "POST", "/v1/tasks", oneTask).status)
	a := b.do(t, "POST", "/v1/tasks/a/cancel", "")
	require.Equal(t, 202, a.status, a.body)
	rs := b.records(t, stream.Results)
	require.Len(t, rs, 1)
	require.Len(t, b.made(t, task.TaskCancelRequested), 1)

	b.store.set(status.TaskRow{Tenant: "default", ID: "a", State: task.Cancelled})
	p := b.do(t, "POST", "/v1/tasks/a/cancel", "").problem(t, 409)
	require.Equal(t, task.Cancelled, p.State)
	require.Len(t, b.records(t, stream.Results), 1)
}

func TestTimeline(t *testing.T) {
	b := start(t, Config{})
	a := b.do(t, "GET", "/v1/tasks/told/events", "")
	require.Equal(t, 200, a.status, a.body)
	require.Contains(t, a.body, `"action":"task.accepted"`)
	require.Contains(t, a.body, `"duration_ms":1000`)
	b.do(t, "GET", "/v1/tasks/none/events", "").problem(t, 404)
}

func TestJobs(t *testing.T) {
	b := start(t, Config{})
	b.do(t, "GET", "/v1/jobs/j", "").problem(t, 404)
	b.store.set(status.TaskRow{Tenant: "default", ID: "1", Job: "j", State: task.Success})
	b.store.set(status.TaskRow{Tenant: "default", ID: "2", Job: "j", State: task.Running})
	a := b.do(t, "GET", "/v1/jobs/j", "")
	require.JSONEq(t, `{"job_id":"j","tenant":"default","state":"RUNNING","total":2,"known":2,"done":1,"tasks":{"SUCCESS":1,"RUNNING":1},"usage":{"input_tokens":0,"output_tokens":0}}`, a.body)

	results := []*task.Result{{TaskID: "1", State: task.Success, Output: task.Input(`{"a":"<b>"}`)}, {TaskID: "2", State: task.Failed}}
	b.store.setResults(nil, results...)
	a = b.do(t, "GET", "/v1/jobs/j/results", "")
	require.Equal(t, "application/jsonl", a.header.Get("Content-Type"))
	require.Equal(t, 2, strings.Count(a.body, "\n"))
	require.Contains(t, a.body, `<b>`)

	b.store.setResults(errors.New("away"), results...)
	resp, err := b.get(t, "/v1/jobs/j/results")
	if err == nil {
		defer resp.Body.Close()
		_, err = io.ReadAll(resp.Body)
	}
	require.Error(t, err, "half must not look like the whole")
	b.store.setResults(errors.New("away"))
	b.do(t, "GET", "/v1/jobs/j/results", "").problem(t, 503)
}

func TestDevices(t *testing.T) {
	b := start(t, Config{})
	beat := `{"url":"http://10.0.0.5:8000","models":["m"],"tags":["gpu"],"slots":4,"cpu":0.5,"mem":0.1,"io":0,"latency_ms":1.2,"queue":3}`
	a := b.do(t, "POST", "/v1/devices/d1/heartbeat", beat)
	require.JSONEq(t, `{"device_id":"d1","joined":true}`, a.body)
	a = b.do(t, "POST", "/v1/devices/d1/heartbeat", beat)
	require.JSONEq(t, `{"device_id":"d1","joined":false}`, a.body)
	var l DeviceList
	b.do(t, "GET", "/v1/devices", "").into(t, &l)
	require.Len(t, l.Devices, 1)
	require.Equal(t, 3, *l.Devices[0].Queue)
	require.Nil(t, l.Devices[0].InFlight)
	require.False(t, l.Devices[0].Silent)

	for body, pointer := range map[string]string{
		`{"url":"http://h","models":["m"],"cpu":35}`:   "/cpu",
		`{"models":["m"]}`:                             "/url",
		`{"url":"http://h","models":["m"],"cpus":1}`:   "/cpus",
		`{"url":"http://h","models":"m"}`:              "/models",
		`{"url":"http://h","models":["m"],"slots":-1}`: "/slots",
	} {
		p := b.do(t, "POST", "/v1/devices/d1/heartbeat", body).problem(t, 422)
		require.Equal(t, pointer, p.Errors[0].Pointer, body)
	}
	b.do(t, "POST", "/v1/devices/d1/heartbeat", "nonsense").problem(t, 422)
	b.do(t, "POST", "/v1/devices/a%20b/heartbeat", beat).problem(t, 422)
	b.do(t, "POST", "/v1/devices/d1/heartbeat", strings.Repeat(" ", maxBeat+1)).problem(t, 413)

	a = b.do(t, "POST", "/v1/devices/d1/heartbeat", `{"leaving":true}`)
	require.JSONEq(t, `{"device_id":"d1","joined":false,"left":true}`, a.body)
	joined := b.events(t, task.DeviceJoined)
	require.Len(t, joined, 1, "one joining, one event")
	require.Equal(t, "d1", joined[0].DeviceID)
	require.Len(t, b.events(t, task.DeviceLeft), 1)

	b.redis.Close()
	b.do(t, "POST", "/v1/devices/d1/heartbeat", beat).problem(t, 503)
	b.do(t, "GET", "/v1/devices", "").problem(t, 503)
	a = b.do(t, "GET", "/readyz", "")
	require.Equal(t, 503, a.status)
	require.JSONEq(t, `{"ready":false,"checks":{"redis":"does not answer","kafka":"ok"}}`, a.body)
}

func TestHealthAndNothingElse(t *testing.T) {
	b := start(t, Config{})
	require.Equal(t, 200, b.do(t, "GET", "/healthz", "").status)
	require.JSONEq(t, `{"ready":true,"checks":{"redis":"ok","kafka":"ok"}}`, b.do(t, "GET", "/readyz", "").body)
	require.Contains(t, b.do(t, "GET", "/metrics", "").body, `batchyard_api_requests_total{method="GET",route="/healthz",status="200"} 1`)
	for _, path := range []string{"/", "/docs", "/schemas/Task.json", "/v1", "/v1/tasks/a/b/c", "/openapi-3.0.json", "/debug/pprof/"} {
		b.do(t, "GET", path, "").problem(t, 404)
	}
	a := b.do(t, "DELETE", "/v1/tasks", "")
	a.problem(t, 405)
	require.Equal(t, "GET, HEAD, POST", a.header.Get("Allow"))

	var spec struct {
		OpenAPI string
		Paths   map[string]map[string]any
	}
	b.do(t, "GET", "/openapi.json", "").into(t, &spec)
	require.Equal(t, "3.1.0", spec.OpenAPI)
	for _, path := range []string{"/v1/tasks", "/v1/tasks/{task_id}", "/v1/tasks/{task_id}/cancel", "/v1/tasks/{task_id}/events", "/v1/jobs", "/v1/jobs/{job_id}",
		"/v1/jobs/{job_id}/results", "/v1/jobs/{job_id}/cancel", "/v1/jobs/{job_id}/why", "/v1/devices", "/v1/devices/{device_id}/heartbeat", "/v1/devices/{device_id}/drain", "/v1/devices/{device_id}/undrain", "/v1/router/policy", "/v1/tasks/{task_id}/why", "/healthz", "/readyz", "/metrics"} {
		require.Contains(t, spec.Paths, path)
	}
	require.Contains(t, spec.Paths["/v1/tasks"]["post"], "requestBody")
	require.Contains(t, spec.Paths["/v1/tasks/{task_id}"]["patch"], "requestBody")
	require.Contains(t, spec.Paths["/v1/router/policy"]["put"], "requestBody")
	require.Contains(t, spec.Paths["/v1/router/policy"], "delete")
	require.Contains(t, spec.Paths["/v1/devices/{device_id}/heartbeat"]["post"], "requestBody")
	require.Contains(t, b.do(t, "GET", "/openapi.yaml", "").body, "openapi: 3.1.0")
}

func TestBodiesInMemoryAreBounded(t *testing.T) {
	b := start(t, Config{MaxBodies: 300 << 10})
	require.Equal(t, 202, b.do(t, "POST", "/v1/tasks", oneTask).status)
	p := b.do(t, "POST", "/v1/tasks", strings.Repeat(" ", 400<<10)).problem(t, 503)
	require.Contains(t, p.Detail, "again")
	require.Equal(t, 202, b.do(t, "POST", "/v1/tasks", oneTask).status, "what was taken is given back")
}

func TestRequestsAtOnceAreBounded(t *testing.T) {
	b := start(t, Config{MaxRequests: 1})
	b.store.set(status.TaskRow{Tenant: "default", ID: "a", State: task.Running})
	got := b.later("/v1/tasks/a?wait=60s")
	<-b.store.waiting
	b.do(t, "GET", "/v1/devices", "").problem(t, 503)
	require.Equal(t, 200, b.do(t, "GET", "/healthz", "").status)
	close(b.store.ended)
	<-got
}

// panicking is a registry that has a fault.
type panicking struct{ Registry }

func (panicking) List(context.Context) ([]device.Device, error) { panic("a fault") }

func TestPanicIsAProblem(t *testing.T) {
	b := start(t, Config{}, func(d *Deps) { d.Registry = panicking{d.Registry} })
	p := b.do(t, "GET", "/v1/devices", "").problem(t, 500)
	require.NotContains(t, p.Detail, "fault")
	require.Contains(t, b.logs.String(), p.TraceID)
	require.Contains(t, b.logs.String(), "a fault")
	require.Equal(t, 200, b.do(t, "GET", "/healthz", "").status)
}

func TestListenErrorSaysWhatToCheck(t *testing.T) {
	b := start(t, Config{})
	s, err := New(b.deps, Config{Listen: strings.TrimPrefix(b.url, "http://")})
	require.NoError(t, err)
	require.ErrorContains(t, s.Run(t.Context(), nil), "check api.listen")
}

func FuzzDecodeTasks(f *testing.F) {
	f.Add([]byte(oneTask), "application/json")
	f.Add([]byte(`[`+oneTask+`]`), "")
	f.Add([]byte("\xdd\xff\xff\xff\xff"), "application/msgpack")
	f.Fuzz(func(t *testing.T, body []byte, kind string) {
		var tasks []*task.Task
		var form bodyForm
		var p *Problem
		fuzzing.Bound(t, len(body)+len(kind), func() { tasks, form, p = decodeTasks(body, kind, 10) })
		if p != nil {
			require.Contains(t, []int{400, 413, 415, 422}, p.Status)
			require.LessOrEqual(t, len(p.Errors), maxProblemErrors)
			return
		}
		require.NotEmpty(t, tasks)
		require.True(t, form == taskArray || len(tasks) == 1)
	})
}

func FuzzDecodeBeat(f *testing.F) {
	f.Add([]byte(`{"url":"http://h","models":["m"]}`))
	f.Add([]byte(`{"models":["","",""],"tags":[]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		fuzzing.Bound(t, len(body), func() { _, _ = decodeBeat(body) })
		if h, err := decodeBeat(body); err == nil {
			d := h.device("d")
			d.Normalize()
			_ = d.Validate() // no panic
		}
	})
}

func TestWholeNumbers(t *testing.T) {
	for body, want := range map[string]string{
		`{"level":5.0,"input":{"level":5.0}}`:    `{"level":5,"input":{"level":5.0}}`,
		` { "max_attempts" : 2e0 ,"level": 1.0}`: ` { "max_attempts" : 2 ,"level": 1}`,
		`{"level":-0.0}`:                         `{"level":0}`,
		`{"level":5}`:                            "",
		`{"level":5.5}`:                          "",
		`{"level":1e300}`:                        "",
		`{"level":"5.0"}`:                        "",
		`{"model":5.0}`:                          "",
		`[{"level":5.0}]`:                        "",
		`{"level":5.0,`:                          `{"level":5,`,
		``:                                       "",
	} {
		require.Equal(t, want, string(wire.WholeNumbers([]byte(body), &task.Task{})), body)
	}
	require.JSONEq(t, `{"lines":5,"bytes":6}`, string(wire.WholeNumbers([]byte(`{"lines":5.0,"bytes":6e0}`), &task.JobSpec{})), "of any size")
	require.Equal(t, `{"id": 1.5, "context": {"a": 8192 , "b": 1.5, "c": 100},"slots":2}`, //nolint:testifylint // the rest stays as it is, byte for byte
		string(wire.WholeNumbers([]byte(`{"id": 1.5, "context": {"a": 8192.0 , "b": 1.5, "c": 1e2},"slots":2.0}`), &Heartbeat{})), "in maps, too")
	tasks, _, p := decodeTasks([]byte(`[{"model":"m","input":{},"level":7.0,"max_attempts":3}]`), "", 10)
	require.Nil(t, p)
	require.Equal(t, 7, tasks[0].Level)
}
