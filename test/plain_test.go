package test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/harness"
)

const (
	chatPath  = "/v1/chat/completions"
	chatBody  = `{"model":"llama-3","messages":[{"role":"user","content":"Say hello."}],"max_tokens":8}`
	otherChat = `{"model":"llama-3","messages":[{"role":"user","content":"Say goodbye."}]}`
	noRetry   = "X-Should-Retry"
	taskID    = "X-Batchyard-Task-Id"
)

// plainly sends a request as an SDK of OpenAI does.
func plainly(ctx context.Context, base, path, body string, headers ...string) (harness.Answer, error) {
	method := http.MethodPost
	if body == "" {
		method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(ctx, method, base+path, strings.NewReader(body))
	if err != nil {
		return harness.Answer{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Authorization", "Bearer sk-none")
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return harness.Answer{}, err
	}
	defer func() { _ = resp.Body.Close() }() // read to the end
	text, err := io.ReadAll(resp.Body)
	return harness.Answer{Status: resp.StatusCode, Header: resp.Header, Body: text}, err
}

// askPlainly is plainly that needs an answer, in the form that SDKs expect.
func askPlainly(t *testing.T, base, path, body string, headers ...string) harness.Answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	a, err := plainly(ctx, base, path, body, headers...)
	require.NoError(t, err)
	require.Equal(t, "application/json", a.Header.Get("Content-Type"))
	return a
}

// refused checks that an answer is an error in OpenAI's form.
func refused(t *testing.T, a harness.Answer, status int, param, code string) string {
	t.Helper()
	require.Equal(t, status, a.Status, string(a.Body))
	require.NotEmpty(t, a.Header.Get("X-Request-Id"))
	var e struct {
		Error map[string]any `json:"error"`
	}
	a.Into(t, &e)
	require.Len(t, e.Error, 4, "message, type, param and code, null or not: %s", a.Body)
	for name, want := range map[string]string{"param": param, "code": code} {
		if want == "" {
			require.Nil(t, e.Error[name], string(a.Body))
		} else {
			require.Equal(t, want, e.Error[name], string(a.Body))
		}
	}
	return fmt.Sprint(e.Error["message"])
}

// later sends a request and hands over its answer; cancel makes the client go away.
func later(t *testing.T, base, path, body string, headers ...string) (answer <-chan harness.Answer, cancel context.CancelFunc) {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	got := make(chan harness.Answer, 1)
	go func() {
		a, err := plainly(ctx, base, path, body, headers...)
		if err != nil {
			a.Body = []byte(err.Error())
		}
		got <- a
	}()
	return got, cancel
}

// awaitWaiting returns once so many requests wait for their answers.
func awaitWaiting(t *testing.T, base string, n int) {
	t.Helper()
	harness.Eventually(t, harness.Patience, fmt.Sprint(n, " requests wait"), func() bool {
		return strings.Contains(string(harness.NewAPI(base).Do(t, http.MethodGet, "/metrics", nil).Body), fmt.Sprintf("batchyard_api_waiting_requests %d\n", n))
	})
}

// ranker is a device that scores and ranks, as vLLM does.
func ranker(t *testing.T) string {
	mux := http.NewServeMux()
	for path, answer := range map[string]string{
		"/v1/score":  `{"id":"score-1","object":"list","model":"ranker","data":[{"index":0,"object":"score","score":0.5}]}`,
		"/v1/rerank": `{"id":"rerank-1","model":"ranker","results":[{"index":1,"relevance_score":0.9},{"index":0,"relevance_score":0.1}]}`,
	} {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, answer)
		})
	}
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s.URL
}

// TestPlainRequests sends every kind of plain request. The answers are those of the devices.
func TestPlainRequests(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), nil)
	f := in.Fleet(t, fleet.Spec{ID: "gpu-1", Slots: 4, Models: []string{"llama-3", "org/embed"}, ServiceTime: time.Millisecond})
	engine := f.Devices()[0]
	rank := ranker(t)
	in.Device(t, device.Device{ID: "rank-1", URL: rank, Models: []string{"ranker"}, Aliases: map[string]string{"rerank-1": "ranker"}, Slots: 1})
	base := in.Process(t, "serve").URL()

	without := func(body []byte) map[string]any { // what is not the same each time
		var m map[string]any
		require.NoError(t, json.Unmarshal(body, &m), string(body))
		delete(m, "created")
		delete(m, "created_at")
		return m
	}
	var ids []string
	for _, c := range []struct{ path, body, device string }{
		{chatPath, chatBody, engine.URL()},
		{"/v1/completions", `{"model":"llama-3","prompt":"Once upon a time","max_tokens":8}`, engine.URL()},
		{"/v1/embeddings", `{"model":"org/embed","input":["a","b"],"encoding_format":"base64"}`, engine.URL()},
		{"/v1/responses", `{"model":"llama-3","input":"Say hello.","stream":false}`, engine.URL()},
		{"/v1/moderations", `{"model":"llama-3","input":"hello"}`, engine.URL()},
		{"/v1/score", `{"model":"ranker","text_1":"a","text_2":"b"}`, rank},
		{"/v1/rerank", `{"model":"rerank-1","query":"a","documents":["b","c"]}`, rank},
	} {
		a := askPlainly(t, base, c.path, c.body)
		require.Equal(t, http.StatusOK, a.Status, "%s: %s", c.path, a.Body)
		require.NotEmpty(t, a.Header.Get("X-Request-Id"))
		direct := askPlainly(t, c.device, c.path, c.body)
		require.Equal(t, without(direct.Body), without(a.Body), c.path)
		ids = append(ids, a.Header.Get(taskID))
	}
	in.Await(t, ids, harness.Patience)
	require.Equal(t, len(ids), harness.SQL[int](t, in, "SELECT count(*) FROM tasks WHERE priority = 'high' AND state = 'SUCCESS'"))
	require.Equal(t, len(ids), harness.SQL[int](t, in, "SELECT count(*) FROM audit_log WHERE action = 'task.accepted' AND actor_type = 'user' AND actor_id = 'default' AND source_addr <> ''"))

	var list struct {
		Object string
		Data   []struct {
			ID, Object string
			Created    int64
		}
	}
	askPlainly(t, base, "/v1/models", "").Into(t, &list)
	var names []string
	for _, m := range list.Data {
		require.Equal(t, "model", m.Object)
		require.Positive(t, m.Created)
		names = append(names, m.ID)
	}
	require.Equal(t, []string{"llama-3", "org/embed", "ranker", "rerank-1"}, names)
	for _, path := range []string{"/v1/models/org/embed", "/v1/models/org%2Fembed", "/v1/models/rerank-1"} {
		require.Equal(t, http.StatusOK, askPlainly(t, base, path, "").Status, path)
	}
	refused(t, askPlainly(t, base, "/v1/models/gpt-9", ""), 404, "model", "model_not_found")

	// What becomes no task.
	before := engine.Stats().Requests
	require.Contains(t, refused(t, askPlainly(t, base, chatPath, `{"model":"lama-3","messages":[]}`), 404, "model", "model_not_found"), "did you mean `llama-3`?")
	require.Contains(t, refused(t, askPlainly(t, base, chatPath, strings.Replace(chatBody, "{", `{"stream":true,`, 1)), 400, "stream", "unsupported_parameter"), "streaming is not supported")
	refused(t, askPlainly(t, base, "/v1/responses", `{"model":"llama-3","input":"a","background":true}`), 400, "background", "unsupported_parameter")
	refused(t, askPlainly(t, base, chatPath, `{"messages":[]}`), 400, "model", "missing_required_parameter")
	refused(t, askPlainly(t, base, chatPath, `{"model":`), 400, "", "invalid_json")
	refused(t, askPlainly(t, base, chatPath, `{"model":"llama-3","a":1,"a":2}`), 400, "", "invalid_request")
	refused(t, askPlainly(t, base, chatPath, `[]`), 400, "", "invalid_json")
	refused(t, askPlainly(t, base, chatPath, chatBody, "Content-Type", "text/plain"), 415, "", "unsupported_content_type")
	refused(t, askPlainly(t, base, chatPath, chatBody, "Idempotency-Key", strings.Repeat("k", 129)), 400, "Idempotency-Key", "invalid_idempotency_key")
	refused(t, askPlainly(t, base, chatPath, chatBody, "X-Batchyard-Timeout", "soon"), 400, "X-Batchyard-Timeout", "invalid_timeout")
	refused(t, askPlainly(t, base, chatPath, chatBody, "X-Batchyard-Tenant", strings.Repeat("t", 129)), 400, "X-Batchyard-Tenant", "bad_request")
	refused(t, askPlainly(t, base, chatPath+"?n=1", chatBody), 422, "n", "unprocessable_entity")
	refused(t, askPlainly(t, base, chatPath, ""), 405, "", "method_not_allowed")
	require.Equal(t, before, engine.Stats().Requests)

	// What the device refuses is its answer, word for word.
	bad := `{"model":"llama-3","messages":[{"content":"no role"}]}`
	a, direct := askPlainly(t, base, chatPath, bad), askPlainly(t, engine.URL(), chatPath, bad)
	require.Equal(t, http.StatusBadRequest, a.Status)
	require.JSONEq(t, string(direct.Body), string(a.Body))
	engine.SetFault(fleet.Fault{Kind: fleet.Fail, Status: 500, Containing: "goodbye"})
	refused(t, askPlainly(t, base, chatPath, otherChat), 500, "", "device")
	engine.ClearFault()
	in.VerifyLog(t)
}

// TestPlainRequestsOfClientsThatLeave: a task is cancelled once no one waits for it, and the device stops working.
func TestPlainRequestsOfClientsThatLeave(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), map[string]any{"api.max_waiting_requests": 2})
	f := in.Fleet(t, fleet.Spec{ID: "gpu-1", Slots: 4, Models: []string{"llama-3"}, ServiceTime: time.Millisecond})
	engine := f.Devices()[0]
	base := in.Process(t, "serve").URL()
	hang := func() { engine.SetFault(fleet.Fault{Kind: fleet.Hang}) }
	atWork := func(n int) {
		t.Helper()
		harness.Eventually(t, harness.Patience, fmt.Sprint(n, " requests at the device"), func() bool { return engine.Stats().InFlight == n })
	}
	ended := func(id string) task.State {
		t.Helper()
		in.Await(t, []string{id}, harness.Patience)
		return harness.SQL[task.State](t, in, "SELECT state FROM tasks WHERE task_id = $1", id)
	}

	hang()
	_, leave := later(t, base, chatPath, chatBody, "Idempotency-Key", "left")
	atWork(1)
	leave()
	atWork(0)
	require.Equal(t, task.Cancelled, ended("left"))
	require.EqualValues(t, 1, engine.Stats().Cancelled, "its connection was closed")

	// A client that comes back wants an answer.
	engine.ClearFault()
	a := askPlainly(t, base, chatPath, chatBody, "Idempotency-Key", "left")
	require.Equal(t, http.StatusOK, a.Status, string(a.Body))
	// The same key: the same answer, without another request to a device.
	asked := engine.Stats().Requests
	require.JSONEq(t, string(a.Body), string(askPlainly(t, base, chatPath, chatBody, "Idempotency-Key", "left").Body))
	in.Await(t, []string{"left"}, harness.Patience)
	require.JSONEq(t, string(a.Body), string(askPlainly(t, base, chatPath, chatBody, "Idempotency-Key", "left").Body))
	require.Equal(t, 1, harness.SQL[int](t, in, "SELECT generation FROM tasks WHERE task_id = 'left' AND state = 'SUCCESS'"))
	require.Equal(t, asked, engine.Stats().Requests)
	other := askPlainly(t, base, chatPath, otherChat, "Idempotency-Key", "left")
	refused(t, other, 409, "Idempotency-Key", "idempotency_key_reused")
	require.Equal(t, "false", other.Header.Get(noRetry))
	require.Equal(t, http.StatusOK, askPlainly(t, base, chatPath, otherChat, "Idempotency-Key", "left", "X-Batchyard-Tenant", "other").Status, "keys are a tenant's own")

	// Two wait for one task; one leaves.
	hang()
	first, leave := later(t, base, chatPath, chatBody, "Idempotency-Key", "shared")
	atWork(1)
	second, _ := later(t, base, chatPath, chatBody, "Idempotency-Key", "shared")
	awaitWaiting(t, base, 2)
	busy := askPlainly(t, base, chatPath, chatBody)
	refused(t, busy, 429, "", "too_many_requests")
	require.Equal(t, "1", busy.Header.Get("Retry-After"))
	leave()
	<-first
	awaitWaiting(t, base, 1)
	engine.ClearFault()
	late := askPlainly(t, base, chatPath, chatBody, "X-Batchyard-Timeout", "20")
	require.Equal(t, http.StatusOK, late.Status, string(late.Body))
	atWork(1)
	require.Empty(t, second)
	_, err := plainly(t.Context(), base, "/v1/tasks/shared/cancel", "{}")
	require.NoError(t, err)
	cancelled := <-second
	refused(t, cancelled, 409, "", "task_cancelled")
	require.Equal(t, "false", cancelled.Header.Get(noRetry))

	// The time is over.
	hang()
	a = askPlainly(t, base, chatPath, chatBody, "X-Stainless-Read-Timeout", "1.0")
	refused(t, a, 504, "", "timeout")
	require.Equal(t, "false", a.Header.Get(noRetry))
	atWork(0)
	require.Contains(t, []task.State{task.Expired, task.Cancelled}, ended(a.Header.Get(taskID)))
	in.VerifyLog(t)
}

// TestPlainRequestsOutliveTheAPI: the process that a request waits in dies, and its task ends all the same.
func TestPlainRequestsOutliveTheAPI(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), map[string]any{"api.drain_timeout": "1s"})
	f := in.Fleet(t, fleet.Spec{ID: "gpu-1", Slots: 4, Models: []string{"llama-3"}, ServiceTime: time.Millisecond})
	engine := f.Devices()[0]
	in.Process(t, "serve", "router", "batcher", "workers", "audit")
	api, other := in.Process(t, "serve", "api"), in.Process(t, "serve", "api")
	atWork := func(n int) {
		t.Helper()
		harness.Eventually(t, harness.Patience, fmt.Sprint(n, " requests at the device"), func() bool { return engine.Stats().InFlight == n })
	}

	engine.SetFault(fleet.Fault{Kind: fleet.Fail, Status: 503, After: time.Second, Times: 1}) // then it answers
	got, _ := later(t, api.URL(), chatPath, chatBody, "Idempotency-Key", "killed")
	atWork(1)
	api.Kill(t)
	require.Zero(t, (<-got).Status)
	in.Await(t, []string{"killed"}, harness.Patience)
	api = api.Restart(t)
	asked := engine.Stats().Requests
	for _, base := range []string{api.URL(), other.URL()} {
		a := askPlainly(t, base, chatPath, chatBody, "Idempotency-Key", "killed")
		require.Equal(t, http.StatusOK, a.Status, string(a.Body))
	}
	require.Equal(t, asked, engine.Stats().Requests)

	// A drain: the client is told to come again, and the next API has the answer of a task with a key.
	engine.SetFault(fleet.Fault{Kind: fleet.Hang, Times: 2})
	keyed, _ := later(t, api.URL(), chatPath, chatBody, "Idempotency-Key", "drained")
	atWork(1)
	keyless, _ := later(t, api.URL(), chatPath, chatBody)
	atWork(2)
	require.Zero(t, api.Term(t))
	for _, got := range []<-chan harness.Answer{keyed, keyless} {
		a := <-got
		refused(t, a, 503, "", "server_stopping")
		require.Equal(t, "1", a.Header.Get("Retry-After"))
	}
	atWork(1)
	again, _ := later(t, other.URL(), chatPath, chatBody, "Idempotency-Key", "drained")
	awaitWaiting(t, other.URL(), 1)
	f.Devices()[0].Stop()
	require.NoError(t, f.Devices()[0].Start())
	a := <-again
	require.Equal(t, http.StatusOK, a.Status, string(a.Body))
}
