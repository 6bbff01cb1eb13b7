package api

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/api/openai/envelope"
	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/status"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

const (
	chatPath = "/v1/chat/completions"
	chatBody = `{"model":"m","messages":[]}`
)

// withDevice registers a device, so that there is a model.
func (b *bench) withDevice(t *testing.T) *bench {
	t.Helper()
	registry, ok := b.deps.Registry.(*store.Registry)
	require.True(t, ok)
	d := device.Device{ID: "d", URL: "http://127.0.0.1:1", Models: []string{"m"}}
	d.Normalize()
	_, err := registry.Beat(t.Context(), d)
	require.NoError(t, err)
	return b
}

// wrong checks that an answer is an error in OpenAI's form.
func (a answer) wrong(t *testing.T, status int, code string) envelope.ErrorReason {
	t.Helper()
	require.Equal(t, status, a.status, a.body)
	require.Equal(t, "application/json", a.header.Get("Content-Type"))
	require.Equal(t, a.header.Get("X-Trace-Id"), a.header.Get("X-Request-Id"))
	var e envelope.ErrorEnvelope
	a.into(t, &e)
	require.NotNil(t, e.Error.Code, a.body)
	require.Equal(t, code, *e.Error.Code, a.body)
	require.NotEmpty(t, e.Error.Message)
	return e.Error
}

// plainly sends a request that waits, ends its task with a result in Postgres, and returns the answer.
func (b *bench) plainly(t *testing.T, res *task.Result, headers ...string) answer {
	t.Helper()
	got := make(chan answer, 1)
	go func() {
		a, err := b.send("POST", chatPath, chatBody, append(headers, "Content-Type", "application/json")...)
		if err != nil {
			a.body = err.Error()
		}
		got <- a
	}()
	key := <-b.store.waiting
	b.store.set(status.TaskRow{Tenant: key.Tenant, ID: key.ID, State: res.State, Result: res})
	b.store.mu.Lock()
	close(b.store.ended)
	b.store.ended = make(chan struct{})
	b.store.mu.Unlock()
	a := <-got
	require.NoError(t, b.spec.promised("POST", chatPath, a))
	return a
}

// Nothing is heard from Kafka here, so the results come from Postgres.
func TestPlainRequestsAreAnsweredFromPostgres(t *testing.T) {
	b := start(t, Config{}).withDevice(t)
	a := b.plainly(t, &task.Result{State: task.Success, Status: 200, Output: task.Input(`{"answer":42}`)}, "User-Agent", "test/1")
	require.Equal(t, 200, a.status, a.body)
	require.Equal(t, `{"answer":42}`, a.body)
	require.NotEmpty(t, a.header.Get("X-Batchyard-Task-Id"))
	require.Len(t, b.records(t, stream.TasksHigh), 1)
	es := b.events(t, task.TaskAccepted)
	require.Len(t, es, 1)
	require.Equal(t, "test/1", es[0].UserAgent)

	words := `{"error":{"message":"its own words"},"more":1}`
	a = b.plainly(t, &task.Result{State: task.Failed, Status: 422, Output: task.Input(words), Error: &task.Error{Class: task.ClassInvalid}})
	require.Equal(t, 422, a.status)
	require.Equal(t, words, a.body)
	for _, c := range []struct {
		class          task.ErrorClass
		device, status int
	}{
		{task.ClassInvalid, 400, 400}, {task.ClassInvalid, 404, 404}, {task.ClassInvalid, 500, 400}, {task.ClassInvalid, 200, 502}, {task.ClassInvalid, 0, 400},
		{task.ClassDevice, 500, 500}, {task.ClassDevice, 503, 503}, {task.ClassDevice, 200, 502}, {task.ClassThrottled, 429, 429}, {task.ClassTimeout, 0, 504},
		{task.ClassAuth, 401, 502}, {task.ClassConnect, 0, 503}, {task.ClassInternal, 0, 500}, {task.ClassLost, 0, 500},
	} {
		a := b.plainly(t, &task.Result{State: task.Failed, Status: c.device, Output: task.Input(`{"detail":"no envelope"}`), Error: &task.Error{Class: c.class, Message: "because"}})
		require.Equal(t, "because", a.wrong(t, c.status, string(c.class)).Message)
		require.Equal(t, c.status == 429 || c.status == 503, a.header.Get("Retry-After") != "", c)
		require.Empty(t, a.header.Get("X-Should-Retry"))
	}
	a = b.plainly(t, &task.Result{State: task.Failed, Error: &task.Error{Class: task.ClassConnect, Message: "because"}}, "Idempotency-Key", "k")
	a.wrong(t, 503, "connect")
	require.Equal(t, "false", a.header.Get("X-Should-Retry"), "the answer of this key will not change")
	require.Equal(t, "k", a.header.Get("X-Batchyard-Task-Id"))
	require.Empty(t, b.events(t, task.TaskRefused), "every task was accepted, and its events say what became of it")
}

// What middleware refuses has OpenAI's form too, and is recorded.
func TestPlainRequestsThatAreRefused(t *testing.T) {
	b := start(t, Config{MaxBodies: 1 << 20, MaxHeader: 4096}).withDevice(t)
	const json = "application/json"
	long := `{"model":"m","a":"` + strings.Repeat("a", 1<<20) + `"}`
	for name, c := range map[string]struct {
		method, path, body string
		headers            []string
		status             int
		code               string
	}{
		"too large":       {"POST", chatPath, long, nil, 413, "body_too_large"},
		"input too large": {"POST", chatPath, long[:70<<10] + `"}`, nil, 400, "invalid_request"},
		"headers":         {"POST", chatPath, chatBody, []string{"X-Long", strings.Repeat("x", 5000)}, 431, "request_header_fields_too_large"},
		"accept":          {"POST", chatPath, chatBody, []string{"Accept", "text/html"}, 406, "not_acceptable"},
		"query":           {"GET", "/v1/models?limit=1", "", nil, 422, "unprocessable_entity"},
		"method":          {"DELETE", "/v1/models/m", "", nil, 405, "method_not_allowed"},
		"no such model":   {"GET", "/v1/models/n", "", nil, 404, "model_not_found"},
		"another model":   {"POST", chatPath, `{"model":"n"}`, nil, 404, "model_not_found"},
		"a number":        {"POST", chatPath, `{"model":5}`, nil, 400, "invalid_type"},
		"no tenant":       {"POST", chatPath, chatBody, []string{tenantHeader, "a\tb"}, 400, "bad_request"},
		"no time":         {"POST", chatPath, chatBody, []string{"X-Batchyard-Timeout", "0"}, 400, "invalid_timeout"},
		"not a time":      {"POST", chatPath, chatBody, []string{"X-Batchyard-Timeout", "NaN"}, 400, "invalid_timeout"},
	} {
		a := b.do(t, c.method, c.path, c.body, append([]string{"Content-Type", json}, c.headers...)...)
		t.Log(name, a.body)
		a.wrong(t, c.status, c.code)
	}
	b.redis.SetError("away")
	b.do(t, "GET", "/v1/models", "").wrong(t, 503, "unavailable")
	b.redis.SetError("")
	require.Empty(t, b.records(t, stream.TasksHigh))
	reasons := 0
	for _, e := range b.events(t, task.TaskRefused) {
		require.Equal(t, task.OutcomeRefused, e.Outcome)
		require.Empty(t, e.TaskID)
		reasons += strings.Count(string(e.Detail), `"reason"`) + strings.Count(string(e.Detail), `"errors"`)
	}
	require.GreaterOrEqual(t, reasons, 8)
}

func TestPlainRequestsWithoutKafka(t *testing.T) {
	b := start(t, Config{SubmitTimeout: time.Second}).withDevice(t)
	require.NoError(t, b.log.Close())
	a := b.do(t, "POST", chatPath, chatBody, "Content-Type", "application/json")
	a.wrong(t, http.StatusServiceUnavailable, "unavailable")
	require.NotEmpty(t, a.header.Get("Retry-After"))
}

// The read deadline of the connection must not end a request that waits. No stage runs here that could end its task.
func TestPlainRequestsOutliveTheReadDeadline(t *testing.T) {
	b := start(t, Config{BodyTimeout: 200 * time.Millisecond, HeaderTimeout: 200 * time.Millisecond}).withDevice(t)
	began := time.Now()
	a := b.do(t, "POST", chatPath, chatBody, "Content-Type", "application/json", "X-Batchyard-Timeout", "1")
	a.wrong(t, http.StatusGatewayTimeout, "timeout")
	require.Equal(t, "false", a.header.Get("X-Should-Retry"))
	require.GreaterOrEqual(t, time.Since(began), time.Second)
	require.Len(t, b.made(t, task.TaskCancelRequested), 1)
}

func TestModelsAreListed(t *testing.T) {
	b := start(t, Config{}).withDevice(t)
	a := b.do(t, "GET", "/v1/models", "")
	require.Equal(t, 200, a.status, a.body)
	var list struct{ Data []json.RawMessage }
	a.into(t, &list)
	require.Len(t, list.Data, 1)
	a = b.do(t, "GET", "/v1/models/m", "")
	require.Equal(t, 200, a.status, a.body)
	require.JSONEq(t, string(list.Data[0]), a.body)
}
