package api

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/fuzzing"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/testenv"
	"github.com/batchyard/batchyard/producer"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const patience = 30 * time.Second

// memory is a store whose rows a test sets. The real one is tested with its
// package; here it must also be able to be away, and to be slow.
type memory struct {
	mu      sync.Mutex
	rows    map[task.Key]*audit.TaskRow
	told    map[string][]audit.EventRow
	results []*task.Result
	broken  error // after the results
	away    error
	waiting chan task.Key // hears who waits
	ended   chan struct{} // closed: waits end
}

func newMemory() *memory {
	return &memory{rows: map[task.Key]*audit.TaskRow{}, told: map[string][]audit.EventRow{}, waiting: make(chan task.Key, 100), ended: make(chan struct{})}
}

func (m *memory) set(r audit.TaskRow) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rows[task.Key{Tenant: r.Tenant, ID: r.ID}] = &r
}

func (m *memory) goAway(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.away = err
}

func (m *memory) Task(_ context.Context, k task.Key) (*audit.TaskRow, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.away != nil {
		return nil, m.away
	}
	if r, ok := m.rows[k]; ok {
		return r, nil
	}
	return nil, fmt.Errorf("reading task %s: %w", k, audit.ErrNotFound)
}

func (m *memory) WaitTask(ctx context.Context, k task.Key) (*audit.TaskRow, error) {
	m.waiting <- k
	select {
	case <-m.ended:
	case <-ctx.Done():
	}
	return m.Task(ctx, k)
}

func (m *memory) Tasks(_ context.Context, f audit.Filter) ([]audit.TaskRow, string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f.Cursor == "bad" {
		return nil, "", audit.ErrBadCursor
	}
	var out []audit.TaskRow
	for _, r := range m.rows {
		if r.Tenant == f.Tenant && (f.State == "" || f.State == r.State) && len(out) < f.Limit {
			out = append(out, *r)
		}
	}
	return out, "more", m.away
}

func (m *memory) JobCounts(_ context.Context, tenant, job string) (audit.JobCounts, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := audit.JobCounts{ByState: map[task.State]int64{}}
	for _, r := range m.rows {
		if r.Tenant == tenant && r.Job == job {
			c.ByState[r.State]++
		}
	}
	return c, m.away
}

func (m *memory) JobResults(_ context.Context, _, _ string, fn func(*task.Result) error) error {
	m.mu.Lock()
	results, broken := m.results, m.broken
	m.mu.Unlock()
	for _, r := range results {
		if err := fn(r); err != nil {
			return err
		}
	}
	return broken
}

func (m *memory) setResults(broken error, rs ...*task.Result) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.results, m.broken = rs, broken
}

func (m *memory) tell(events ...task.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range events {
		m.told[e.TaskID] = append(m.told[e.TaskID], audit.EventRow{Event: e})
	}
}

func (m *memory) Events(_ context.Context, k task.Key) ([]audit.EventRow, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if rows := m.told[k.ID]; rows != nil {
		return rows, m.away
	}
	if k.ID != "told" {
		return nil, m.away
	}
	e := task.Event{Time: time.Unix(1, 0), Action: task.TaskAccepted, ActorID: "acme", Duration: time.Second}
	return []audit.EventRow{{Event: e}}, m.away
}

// bench is a running API on a real broker, an embedded Redis and a store in memory.
type bench struct {
	url   string
	store *memory
	log   *stream.Log
	redis *miniredis.Miniredis
	stop  context.CancelFunc
	done  chan error
	logs  *logBuffer
	flush func(context.Context) error // until the events that were recorded are in Kafka
	deps  Deps
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func start(t *testing.T, cfg Config, change ...func(*Deps)) *bench {
	t.Helper()
	env := testenv.Get(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	log, err := stream.Open(ctx, stream.Config{Brokers: env.Brokers, TopicPrefix: env.Prefix(t), Partitions: 3, Replication: 1}, nil, metrics.New(nil))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, log.Close()) })
	_, err = log.CreateTopics(ctx)
	require.NoError(t, err)
	m := miniredis.RunT(t)
	rdb := redis.NewUniversalClient(&redis.UniversalOptions{Addrs: []string{m.Addr()}, MaxRetries: -1})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	marks := device.NewCancels(rdb, device.Config{}, "")
	p := producer.New(producer.Config{MaxInput: 64 << 10, MaxTasks: 10, MaxBody: 1 << 20, RecentTTL: time.Minute},
		producer.Deps{Log: log, Redis: rdb, Cancels: marks})
	b := &bench{store: newMemory(), log: log, redis: m, done: make(chan error, 1), logs: &logBuffer{}, flush: p.Flush}
	reg := prometheus.NewRegistry()
	b.deps = Deps{
		Producer: p, Store: b.store, Registry: device.NewRegistry(rdb, device.Config{}, ""), Gatherer: reg, Metrics: metrics.New(reg),
		Control: device.NewControl(rdb, device.Config{}, ""), Marks: marks, Rates: device.NewRates(rdb, ""), Credits: device.NewCredits(rdb, device.Config{}, ""),
		Policy: func() device.PolicySetting { return device.PolicySetting{Name: "round_robin", Binding: "late"} },
		Logger: slog.New(slog.NewTextHandler(b.logs, nil)),
		Checks: []Check{{"redis", func(ctx context.Context) error { return rdb.Ping(ctx).Err() }}, {"kafka", log.Ping}},
	}
	for _, f := range change {
		f(&b.deps)
	}
	cfg.Listen = cmp.Or(cfg.Listen, "127.0.0.1:0")
	s, err := New(b.deps, cfg)
	require.NoError(t, err)
	runCtx, stop := context.WithCancel(context.Background())
	b.stop = stop
	ready := make(chan struct{})
	go func() { b.done <- s.Run(runCtx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-b.done:
		require.NoError(t, err)
	case <-time.After(patience):
		require.FailNow(t, "the API does not get ready")
	}
	b.url = "http://" + s.Addr().String()
	t.Cleanup(func() {
		b.end(t)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		require.NoError(t, p.Close(ctx))
	})
	return b
}

func (b *bench) end(t *testing.T) {
	t.Helper()
	b.stop()
	select {
	case err := <-b.done:
		require.NoError(t, err)
		b.done <- nil
	case <-time.After(patience):
		require.FailNow(t, "the API does not stop")
	}
}

// answer is what a request got.
type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) into(t *testing.T, v any) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(a.body), v), a.body)
}

// problem checks that the answer is a problem document and returns it.
func (a answer) problem(t *testing.T, status int) Problem {
	t.Helper()
	require.Equal(t, status, a.status, a.body)
	require.Equal(t, problemType, a.header.Get("Content-Type"))
	var p Problem
	a.into(t, &p)
	require.Equal(t, status, p.Status)
	require.NotEmpty(t, p.Title)
	require.NotEmpty(t, p.Detail)
	require.Len(t, p.TraceID, 32)
	require.Equal(t, p.TraceID, a.header.Get("X-Trace-Id"))
	if status == http.StatusServiceUnavailable {
		require.NotEmpty(t, a.header.Get("Retry-After"))
	}
	return p
}

func (b *bench) do(t *testing.T, method, path, body string, headers ...string) answer {
	t.Helper()
	a, err := b.send(method, path, body, headers...)
	require.NoError(t, err)
	return a
}

// later asks and hands the answer over when it is there; its status is 0 when
// there is none.
func (b *bench) later(path string) <-chan answer {
	got := make(chan answer, 1)
	go func() {
		a, err := b.send("GET", path, "")
		if err != nil {
			a.body = err.Error()
		}
		got <- a
	}()
	return got
}

func (b *bench) send(method, path, body string, headers ...string) (answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, b.url+path, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	if body == "" {
		req.Body, req.ContentLength = http.NoBody, 0
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(got)}, err
}

// get is for answers that break off.
func (b *bench) get(t *testing.T, path string) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.url+path, nil)
	require.NoError(t, err)
	return http.DefaultClient.Do(req)
}

func (b *bench) records(t *testing.T, topic string) (out []*stream.Record) {
	t.Helper()
	require.NoError(t, b.log.Scan(t.Context(), topic, func(r *stream.Record) error {
		out = append(out, r)
		return nil
	}))
	return out
}

func (b *bench) events(t *testing.T, a task.Action) (out []task.Event) {
	t.Helper()
	require.NoError(t, b.flush(t.Context()), "answers do not wait for the events that tell of them")
	for _, r := range b.records(t, stream.Events) {
		es, err := task.DecodeFrame[task.Event](task.FrameEvents, r.Value)
		require.NoError(t, err)
		for _, e := range es {
			if e.Action == a {
				out = append(out, e)
			}
		}
	}
	// What is of no task is in any partition.
	slices.SortStableFunc(out, func(x, y task.Event) int { return x.Time.Compare(y.Time) })
	return out
}

const oneTask = `{"id":"a","model":"m","input":{"messages":[]}}`

func TestSubmitOneThenAsk(t *testing.T) {
	b := start(t, Config{})
	trace := strings.Repeat("ab", 16)
	a := b.do(t, "POST", "/v1/tasks", oneTask, "Content-Type", "application/json", "User-Agent", "test/1",
		"traceparent", "00-"+trace+"-00f067aa0ba902b7-01")
	require.Equal(t, http.StatusAccepted, a.status, a.body)
	require.JSONEq(t, `{"id":"a","tenant":"default","state":"PENDING"}`, a.body)
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

	b.store.set(audit.TaskRow{Tenant: "default", ID: "a", State: task.Success, Device: "d", Attempt: 1,
		Result: &task.Result{Output: task.Input(`{"answer":42}`), Status: 200, Usage: task.Usage{InputTokens: 1}}})
	a = b.do(t, "GET", "/v1/tasks/a?wait=1s", "")
	require.Equal(t, http.StatusOK, a.status, a.body)
	a.into(t, &st)
	require.Equal(t, task.Success, st.State)
	require.JSONEq(t, `{"answer":42}`, string(st.Output))
}

func TestSubmitArrayAndMessagePack(t *testing.T) {
	b := start(t, Config{})
	a := b.do(t, "POST", "/v1/tasks", `[{"model":"m","input":{}},{"id":"b/2","model":"m","input":{},"priority":"high"}]`, tenantHeader, "acme")
	require.Equal(t, http.StatusAccepted, a.status, a.body)
	var l AcceptedList
	a.into(t, &l)
	require.Len(t, l.Tasks, 2)
	require.Len(t, l.Tasks[0].ID, 36)
	require.Equal(t, Accepted{"b/2", "acme", task.Pending}, l.Tasks[1])
	a = b.do(t, "GET", "/v1/tasks/b%2F2", "", tenantHeader, "acme")
	require.Equal(t, http.StatusOK, a.status, a.body)

	packed, err := task.EncodeTask(&task.Task{ID: "mp", Model: "m", Input: task.Input(`{}`)}, task.ContentMsgpack)
	require.NoError(t, err)
	a = b.do(t, "POST", "/v1/tasks", string(packed), "Content-Type", "application/msgpack")
	require.Equal(t, http.StatusAccepted, a.status, a.body)
	require.JSONEq(t, `{"id":"mp","tenant":"default","state":"PENDING"}`, a.body)
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
		"same id twice":     {`[{"id":"a","model":"m","input":{}},{"id":"a","model":"m","input":{}}]`, nil, 422, "/1/id"},
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

func TestRefusedEventsAreBounded(t *testing.T) {
	b := start(t, Config{RefusedEvents: 1})
	for range 20 {
		b.do(t, "POST", "/v1/tasks", `{}`).problem(t, 422)
	}
	require.Less(t, len(b.events(t, task.TaskRefused)), 20)
	require.Contains(t, b.do(t, "GET", "/metrics", "").body, "batchyard_api_refused_unrecorded_total")
}

func TestWaitEndsWithTheTask(t *testing.T) {
	b := start(t, Config{})
	b.store.set(audit.TaskRow{Tenant: "default", ID: "a", State: task.Running})
	got := b.later("/v1/tasks/a?wait=60")
	require.Equal(t, "a", (<-b.store.waiting).ID)
	b.store.set(audit.TaskRow{Tenant: "default", ID: "a", State: task.Failed, ErrorClass: task.ClassDevice, ErrorMessage: "broke"})
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
	b.store.set(audit.TaskRow{Tenant: "default", ID: "a", State: task.Running})
	began := time.Now()
	a := b.do(t, "GET", "/v1/tasks/a?wait=1s", "")
	require.Equal(t, http.StatusOK, a.status)
	require.GreaterOrEqual(t, time.Since(began), time.Second)
}

func TestDrainAnswersThoseWhoWait(t *testing.T) {
	b := start(t, Config{})
	b.store.set(audit.TaskRow{Tenant: "default", ID: "a", State: task.Running})
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
	b.store.set(audit.TaskRow{Tenant: "default", ID: "a", State: task.Failed, SubmittedAt: time.Unix(1, 0)})
	b.store.set(audit.TaskRow{Tenant: "acme", ID: "b", State: task.Failed})
	a := b.do(t, "GET", "/v1/tasks?state=failed&limit=5", "")
	require.Equal(t, http.StatusOK, a.status, a.body)
	require.JSONEq(t, `{"tasks":[{"id":"a","tenant":"default","state":"FAILED","attempt":0,"submitted_at":"1970-01-01T00:00:01Z"}],"next":"more"}`, a.body)
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
	require.Len(t, b.events(t, task.TaskCancelAsked), 1)

	b.store.set(audit.TaskRow{Tenant: "default", ID: "a", State: task.Cancelled})
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
	b.store.set(audit.TaskRow{Tenant: "default", ID: "1", Job: "j", State: task.Success})
	b.store.set(audit.TaskRow{Tenant: "default", ID: "2", Job: "j", State: task.Running})
	a := b.do(t, "GET", "/v1/jobs/j", "")
	require.JSONEq(t, `{"id":"j","tenant":"default","total":2,"done":1,"tasks":{"SUCCESS":1,"RUNNING":1}}`, a.body)

	results := []*task.Result{{TaskID: "1", Output: task.Input(`{"a":"<b>"}`)}, {TaskID: "2"}}
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
	require.JSONEq(t, `{"id":"d1","joined":true}`, a.body)
	a = b.do(t, "POST", "/v1/devices/d1/heartbeat", beat)
	require.JSONEq(t, `{"id":"d1","joined":false}`, a.body)
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
	require.JSONEq(t, `{"id":"d1","joined":false,"left":true}`, a.body)
	joined := b.events(t, task.DeviceJoined)
	require.Len(t, joined, 1, "one joining, one event")
	require.Equal(t, "d1", joined[0].Device)
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
	for _, path := range []string{"/v1/tasks", "/v1/tasks/{id}", "/v1/tasks/{id}/cancel", "/v1/tasks/{id}/events", "/v1/jobs/{id}",
		"/v1/jobs/{id}/results", "/v1/devices", "/v1/devices/{id}/heartbeat", "/v1/devices/{id}/drain", "/v1/devices/{id}/undrain", "/v1/router/policy", "/v1/tasks/{id}/why", "/healthz", "/readyz", "/metrics"} {
		require.Contains(t, spec.Paths, path)
	}
	require.Contains(t, spec.Paths["/v1/tasks"]["post"], "requestBody")
	require.Contains(t, spec.Paths["/v1/tasks/{id}"]["patch"], "requestBody")
	require.Contains(t, spec.Paths["/v1/router/policy"]["put"], "requestBody")
	require.Contains(t, spec.Paths["/v1/router/policy"], "delete")
	require.Contains(t, spec.Paths["/v1/devices/{id}/heartbeat"]["post"], "requestBody")
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
	b.store.set(audit.TaskRow{Tenant: "default", ID: "a", State: task.Running})
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
		var array bool
		var p *Problem
		fuzzing.Bound(t, len(body)+len(kind), func() { tasks, array, p = decodeTasks(body, kind, 10) })
		if p != nil {
			require.Contains(t, []int{400, 413, 415, 422}, p.Status)
			require.LessOrEqual(t, len(p.Errors), maxProblemErrors)
			return
		}
		require.NotEmpty(t, tasks)
		require.True(t, array || len(tasks) == 1)
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
