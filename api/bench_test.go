package api

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
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

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/producer"
	"github.com/batchyard/batchyard/status"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
	"github.com/batchyard/batchyard/test/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const patience = 30 * time.Second

// memory is a store whose rows a test sets. The real one is tested with its
// package; here it must also be able to be away, and to be slow.
type memory struct {
	mu      sync.Mutex
	rows    map[task.Key]*status.TaskRow
	jobs    map[string]task.Job // announced
	told    map[string][]status.EventRow
	prints  map[task.Key]task.Fingerprint
	places  map[task.Key][]status.Position
	results []*task.Result
	broken  error // after the results
	away    error
	waiting chan task.Key // hears who waits
	ended   chan struct{} // closed: waits end
}

func newMemory() *memory {
	return &memory{rows: map[task.Key]*status.TaskRow{}, jobs: map[string]task.Job{}, told: map[string][]status.EventRow{}, prints: map[task.Key]task.Fingerprint{}, places: map[task.Key][]status.Position{}, waiting: make(chan task.Key, 100), ended: make(chan struct{})}
}

func (m *memory) set(r status.TaskRow) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rows[task.Key{Tenant: r.Tenant, ID: r.ID}] = &r
}

func (m *memory) goAway(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.away = err
}

func (m *memory) Task(_ context.Context, k task.Key) (*status.TaskRow, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.away != nil {
		return nil, m.away
	}
	if r, ok := m.rows[k]; ok {
		return r, nil
	}
	return nil, fmt.Errorf("reading task %s: %w", k, status.ErrNotFound)
}

func (m *memory) WaitTask(ctx context.Context, r task.Run) (*status.TaskRow, error) {
	m.mu.Lock()
	ended := m.ended
	m.mu.Unlock()
	m.waiting <- r.Key
	select {
	case <-ended:
	case <-ctx.Done():
	}
	return m.Task(ctx, r.Key)
}

// Known says what the rows say.
func (m *memory) Known(_ context.Context, keys []task.Key) ([]task.Known, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]task.Known, len(keys))
	for i, k := range keys {
		if r, ok := m.rows[k]; ok {
			out[i] = task.Known{State: r.State, Generation: r.Generation, Fingerprint: m.prints[k]}
		}
	}
	return out, m.away
}

// Records says where the records of a task are.
func (m *memory) Records(_ context.Context, k task.Key) ([]status.Position, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.places[k], m.away
}

func (m *memory) Tasks(_ context.Context, f status.Filter) ([]status.TaskRow, string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f.Cursor == "bad" {
		return nil, "", status.ErrBadCursor
	}
	var out []status.TaskRow
	for _, r := range m.rows {
		if r.Tenant == f.Tenant && (f.State == "" || f.State == r.State) && len(out) < f.Limit {
			out = append(out, *r)
		}
	}
	return out, "more", m.away
}

// Job counts the rows of the job, and adds what announce said of it.
func (m *memory) Job(_ context.Context, tenant, job string) (*task.Job, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.away != nil {
		return nil, m.away
	}
	j := task.Job{JobID: job, Tenant: tenant, State: task.JobRunning, Tasks: map[task.State]int64{}}
	if known, ok := m.jobs[job]; ok {
		j.SHA256, j.Total, j.At = known.SHA256, known.Total, known.At
	}
	for _, r := range m.rows {
		if r.Tenant == tenant && r.Job == job {
			j.Tasks[r.State]++
			j.Known++
			if r.State.Terminal() {
				j.Done++
			}
		}
	}
	if j.Known == 0 && j.SHA256 == "" {
		return nil, status.ErrNoJob
	}
	if j.Total = max(j.Total, j.Known); j.Done == j.Total {
		j.State = task.JobFinished
	}
	return &j, nil
}

func (m *memory) Jobs(ctx context.Context, f status.JobFilter) (jobs []task.Job, next string, err error) {
	if f.Cursor == "bad" {
		return nil, "", status.ErrBadCursor
	}
	for name := range m.jobs {
		j, err := m.Job(ctx, f.Tenant, name)
		if err != nil {
			return nil, "", err
		}
		if strings.HasPrefix(name, f.Prefix) && (f.State == "" || f.State == j.State) && (f.Since.IsZero() || !j.At.Before(f.Since)) && (f.Until.IsZero() || j.At.Before(f.Until)) {
			jobs = append(jobs, *j)
		}
	}
	return jobs, "", m.away
}

func (m *memory) JobTasks(_ context.Context, job task.Key, in []task.State, after string, limit int) (rows []status.TaskRow, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.rows {
		if r.Tenant == job.Tenant && r.Job == job.ID && slices.Contains(in, r.State) && r.ID > after {
			rows = append(rows, *r)
		}
	}
	slices.SortFunc(rows, func(x, y status.TaskRow) int { return strings.Compare(x.ID, y.ID) })
	return rows[:min(len(rows), limit)], m.away
}

func (m *memory) JobGroups(ctx context.Context, job task.Key, limit int) (out []status.Group, err error) {
	rows, err := m.JobTasks(ctx, job, unfinished, "", limit)
	for _, r := range rows {
		out = append(out, status.Group{TaskID: r.ID, Tasks: 7})
	}
	return out, err
}

func (m *memory) announce(job, sha256 string, tasks int64, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.jobs[job] = task.Job{SHA256: sha256, Total: tasks, At: &at}
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
		m.told[e.TaskID] = append(m.told[e.TaskID], status.EventRow{Event: e})
	}
}

func (m *memory) Events(_ context.Context, k task.Key) ([]status.EventRow, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if rows := m.told[k.ID]; rows != nil {
		return rows, m.away
	}
	if k.ID != "told" {
		return nil, m.away
	}
	e := task.Event{Time: time.Unix(1, 0), Action: task.TaskAccepted, Outcome: task.OutcomeOK, ActorType: task.ActorUser, ActorID: "acme", Duration: time.Second}
	return []status.EventRow{{Event: e}}, m.away
}

// bench is a running API on a real broker, an embedded Redis and a store in memory.
type bench struct {
	url    string
	store  *memory
	log    *stream.Client
	redis  *miniredis.Miniredis
	stop   context.CancelFunc
	done   chan error
	logs   *logBuffer
	flush  func(context.Context) error // until the events that were recorded are in Kafka
	deps   Deps
	server *Server
	spec   description // every response of do is checked against it
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
	marks := store.NewOverrides(rdb, store.Config{}, "")
	p := producer.New(producer.Config{MaxInput: 64 << 10, MaxTasks: 10, MaxBody: 1 << 20, RecentTTL: time.Minute},
		producer.Deps{Stream: log, Redis: rdb, Cancels: marks})
	b := &bench{store: newMemory(), log: log, redis: m, done: make(chan error, 1), logs: &logBuffer{}, flush: p.Flush}
	reg := prometheus.NewRegistry()
	b.deps = Deps{
		Producer: p, Store: b.store, Registry: store.NewRegistry(rdb, store.Config{}, ""), Gatherer: reg, Metrics: metrics.New(reg),
		Control: store.NewControl(rdb, store.Config{}, ""), Overrides: marks, Rates: store.NewRates(rdb, ""), Credits: store.NewCredits(rdb, store.Config{}, ""),
		Policy: func() device.PolicySetting { return device.PolicySetting{Name: "round_robin", Binding: "late"} },
		Logger: slog.New(slog.NewTextHandler(b.logs, nil)),
		Checks: []Check{{Name: "redis", Ping: func(ctx context.Context) error { return rdb.Ping(ctx).Err() }}, {Name: "kafka", Ping: log.Ping}},
	}
	for _, f := range change {
		f(&b.deps)
	}
	cfg.Listen = cmp.Or(cfg.Listen, "127.0.0.1:0")
	s, err := New(b.deps, cfg)
	b.server = s
	require.NoError(t, err)
	text, err := s.api.OpenAPI().MarshalJSON()
	require.NoError(t, err)
	b.spec = parseDescription(t, text)
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
	require.NoError(t, b.spec.promised(method, path, a))
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
		es, err := wire.DecodeFrame[task.Event](wire.FrameEvents, r.Value)
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

// made returns the events of changes that were made.
func (b *bench) made(t *testing.T, a task.Action) []task.Event {
	t.Helper()
	return slices.DeleteFunc(b.events(t, a), func(e task.Event) bool { return e.Outcome != task.OutcomeOK })
}
