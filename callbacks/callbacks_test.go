package callbacks

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/migrations"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
	"github.com/batchyard/batchyard/test/testenv"
)

const (
	oldKey = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="
	newKey = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
)

func TestMain(m *testing.M) { testenv.Main(m) }

// rig is a database and the topics of a test.
type rig struct {
	t      *testing.T
	pool   *pgxpool.Pool
	client *stream.Client
}

func newRig(t *testing.T) *rig {
	t.Helper()
	env := testenv.Get(t)
	pool, err := pgxpool.New(t.Context(), env.DatabaseFrom(t, "batchyard schema", migrations.Up))
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	client, err := stream.Open(t.Context(), stream.Config{Brokers: env.Brokers, TopicPrefix: env.Prefix(t), Partitions: 1}, testenv.Logger(t), nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	_, err = client.CreateTopics(t.Context())
	require.NoError(t, err)
	return &rig{t, pool, client}
}

func (r *rig) deps(instance string) Deps {
	return Deps{Stream: r.client, Pool: r.pool, Logger: testenv.Logger(r.t), Metrics: metrics.New(nil), Instance: instance}
}

// start runs a stage.
func (r *rig) start(cfg Config, name string) (stop func()) {
	r.t.Helper()
	s, err := New(cfg, r.deps("callbacks@"+name))
	require.NoError(r.t, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, nil) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(r.t, <-done)
	})
	r.t.Cleanup(stop)
	return stop
}

// due makes a callback due, like the recorder does.
func (r *rig) due(id, to string) {
	r.t.Helper()
	r.dueOf("acme", id, to)
}

func (r *rig) dueOf(tenant, id, to string) {
	r.t.Helper()
	u, err := url.Parse(to)
	require.NoError(r.t, err)
	var b pgx.Batch
	b.Queue(`INSERT INTO results (tenant, task_id, state, status, output, attempt, input_tokens, output_tokens, model, job_id, labels, finished_at)
		VALUES ($2, $1, 'SUCCESS', 200, '{"answer": 42}', 1, 3, 4, 'm', 'j', '{"k":"v"}', '2026-01-31T12:00:00Z')`, id, tenant)
	b.Queue(`INSERT INTO callbacks (callback_id, tenant, task_id, url, host) VALUES ('evt_' || $1, $4, $1, $2, $3)`, id, to, u.Host, tenant)
	b.Queue(`SELECT pg_notify('batchyard_callbacks', '')`)
	require.NoError(r.t, r.pool.SendBatch(r.t.Context(), &b).Close())
}

func (r *rig) one(sql string, args ...any) string {
	r.t.Helper()
	var s string
	require.NoError(r.t, r.pool.QueryRow(r.t.Context(), sql, args...).Scan(&s))
	return s
}

// until waits until the query returns a value.
func (r *rig) until(want, sql string, args ...any) {
	r.t.Helper()
	require.Eventually(r.t, func() bool { return r.one(sql, args...) == want }, testenv.Patience, 5*time.Millisecond, "%s to be %s", sql, want)
}

// events returns the events of a callback.
func (r *rig) events(id string) (out []task.Event) {
	r.t.Helper()
	require.NoError(r.t, r.client.Scan(r.t.Context(), stream.Events, func(rec *stream.Record) error {
		es, err := wire.DecodeFrame[task.Event](wire.FrameEvents, rec.Value)
		for _, e := range es {
			if e.ResourceID == id {
				out = append(out, e)
			}
		}
		return err
	}))
	return out
}

func local() Config {
	return Config{Unsigned: true, AllowPrivate: true, SecretEnv: "BATCHYARD_TEST_NO_SECRET", Retries: []string{"5ms", "5ms"}}
}

type request struct {
	header http.Header
	body   []byte
}

// endpoint gives the answers in turn, and then repeats the last one.
func endpoint(t *testing.T, answers ...func(w http.ResponseWriter)) (url string, got chan request) {
	t.Helper()
	got = make(chan request, 1000)
	var n atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		b, _ := io.ReadAll(req.Body)
		got <- request{req.Header.Clone(), b}
		answers[min(int(n.Add(1)), len(answers))-1](w)
	}))
	t.Cleanup(s.Close)
	return s.URL, got
}

func status(code int) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) { w.WriteHeader(code) }
}

func TestDeliveredAndSignedWithEverySecret(t *testing.T) { // not parallel: the environment
	t.Setenv("BATCHYARD_TEST_SECRETS", newKey+", "+oldKey)
	r := newRig(t)
	to, got := endpoint(t, status(503), status(204))
	cfg := local()
	cfg.SecretEnv, cfg.Unsigned = "BATCHYARD_TEST_SECRETS", false
	r.due("t1", to+"/hook?token=secret") // before the start
	r.start(cfg, "one-1")
	var ids []string
	var bodies []string
	for range 2 {
		req := <-got
		ids, bodies = append(ids, req.header.Get("webhook-id")), append(bodies, string(req.body))
		for _, key := range []string{oldKey, newKey} {
			w, err := standardwebhooks.NewWebhook(key)
			require.NoError(t, err)
			require.NoError(t, w.Verify(req.body, req.header))
		}
	}
	require.Equal(t, []string{"evt_t1", "evt_t1"}, ids)
	require.Equal(t, bodies[0], bodies[1])
	var p Payload
	require.NoError(t, json.Unmarshal([]byte(bodies[0]), &p))
	require.Equal(t, []any{"evt_t1", "event", "task.completed", int64(1769860800), "t1", "acme", task.Success, `{"answer":42}`, "v", int64(4)},
		[]any{p.ID, p.Object, p.Type, p.CreatedAt, p.Data.ID, p.Data.Tenant, p.Data.State, string(p.Data.Output), p.Data.Labels["k"], p.Data.Usage.OutputTokens})
	r.until("DELIVERED 2 204", "SELECT state || ' ' || attempts || ' ' || last_status FROM callbacks WHERE delivered_at IS NOT NULL UNION ALL SELECT '' LIMIT 1")
	es := r.events("evt_t1")
	require.Len(t, es, 2)
	require.Equal(t, []task.Action{task.CallbackFailed, task.CallbackSent}, []task.Action{es[0].Action, es[1].Action})
	require.NotContains(t, string(es[0].Detail), "secret")
}

func TestFailuresAreRetriedAndThenGivenUp(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(local(), "one-1")
	broken, got := endpoint(t, status(500))
	gone, gotGone := endpoint(t, status(410))
	elsewhere, gotElsewhere := endpoint(t, status(200))
	redirect, _ := endpoint(t, func(w http.ResponseWriter) { w.Header().Set("Location", elsewhere); w.WriteHeader(307) })
	later, gotLater := endpoint(t, func(w http.ResponseWriter) { w.Header().Set("Retry-After", "3600"); w.WriteHeader(429) })
	r.due("broken", broken)
	r.due("gone", gone)
	r.due("redirect", redirect)
	r.due("later", later)
	r.due("unreachable", "http://127.0.0.1:1/?token=secret")
	r.until("GIVEN_UP 3 500 status 500", "SELECT state || ' ' || attempts || ' ' || coalesce(last_status, 0) || ' ' || coalesce(last_error, '') FROM callbacks WHERE task_id = 'broken'")
	r.until("GIVEN_UP 1 410 status 410", "SELECT state || ' ' || attempts || ' ' || coalesce(last_status, 0) || ' ' || coalesce(last_error, '') FROM callbacks WHERE task_id = 'gone'")
	r.until("GIVEN_UP status 307: redirects are not followed", "SELECT state || ' ' || coalesce(last_error, '') FROM callbacks WHERE task_id = 'redirect'")
	r.until("GIVEN_UP", "SELECT state FROM callbacks WHERE task_id = 'unreachable'")
	require.NotContains(t, r.one("SELECT last_error FROM callbacks WHERE task_id = 'unreachable'"), "secret")
	r.until("true", "SELECT (state = 'DUE' AND last_status = 429 AND next_at > now() + interval '50 minutes')::text FROM callbacks WHERE task_id = 'later'")
	require.Len(t, got, 3)
	for range 3 {
		require.Equal(t, "evt_broken", (<-got).header.Get("webhook-id"), "the id must be the same every time")
	}
	require.Len(t, gotGone, 1)
	require.Len(t, gotLater, 1)
	require.Empty(t, gotElsewhere)
	es := r.events("evt_broken")
	require.Equal(t, task.CallbackGivenUp, es[len(es)-1].Action)
	for _, e := range es {
		require.Equal(t, task.ClassReceiver, e.ErrorClass, "it was reached, and failed")
	}
	es = r.events("evt_unreachable")
	require.Equal(t, task.ClassConnect, es[len(es)-1].ErrorClass)
}

func TestInternalAddressesAreNotReached(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	inside, got := endpoint(t, status(200))
	u, err := url.Parse(inside)
	require.NoError(t, err)
	cfg := local()
	cfg.AllowPrivate = false
	cfg.Retries = []string{"1h"}
	stop := r.start(cfg, "one-1")
	r.due("ip", inside)
	r.due("name", "http://localhost:"+u.Port())
	r.due("mapped", "http://[::ffff:127.0.0.1]:"+u.Port())
	r.due("metadata", "http://169.254.169.254/latest/meta-data")
	r.until("4", "SELECT count(*)::text FROM callbacks WHERE state = 'DUE' AND last_error LIKE 'the address is not public%'")
	require.Empty(t, got)
	stop()

	cfg.AllowNetworks = []string{"127.0.0.0/8"}
	_, err = r.pool.Exec(t.Context(), "UPDATE callbacks SET next_at = now() WHERE task_id = 'ip'")
	require.NoError(t, err)
	r.start(cfg, "two-2")
	r.until("DELIVERED", "SELECT state FROM callbacks WHERE task_id = 'ip'")
}

func TestALargeOutputIsLeftOut(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	to, got := endpoint(t, status(200))
	cfg := local()
	cfg.MaxOutput = 10
	r.due("a/b", to)
	r.start(cfg, "one-1")
	var p Payload
	require.NoError(t, json.Unmarshal((<-got).body, &p))
	require.True(t, p.Data.Truncated)
	require.Empty(t, p.Data.Output)
	require.Equal(t, "/v1/tasks/a%2Fb", p.Data.OutputURL)
}

func TestRowsOfADeadProcessComeDueAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	to, got := endpoint(t, status(200))
	r.due("t1", to)
	// A process claims it and dies; its lease is about to expire.
	dead := &table{pool: r.pool, holder: "callbacks@dead-1", cfg: local().withDefaults()}
	claimed, err := dead.claim(t.Context(), room{free: 10})
	require.NoError(t, err)
	require.Len(t, claimed, 1)
	again, err := dead.claim(t.Context(), room{free: 10})
	require.NoError(t, err)
	require.Empty(t, again, "a claimed row cannot be claimed again")
	_, err = r.pool.Exec(t.Context(), "UPDATE callbacks SET next_at = now() + interval '300 milliseconds'")
	require.NoError(t, err)
	r.start(local(), "one-1")
	<-got
	r.until("DELIVERED callbacks@one-1", "SELECT state || ' ' || holder FROM callbacks")
	// If the process was only paused, it cannot overwrite the outcome.
	require.NoError(t, dead.saveOutcome(t.Context(), claimed[0], outcome{state: stateGivenUp}))
	require.Equal(t, "DELIVERED", r.one("SELECT state FROM callbacks"))
}

// One host never answers and has more callbacks than there are slots.
func TestASlowHostDelaysNoOther(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	release := make(chan struct{})
	var inside, most atomic.Int64
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n := inside.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		<-release
		inside.Add(-1)
	}))
	t.Cleanup(slow.Close)
	quick, _ := endpoint(t, status(200))
	for i := range 20 {
		r.due(fmt.Sprintf("slow%d", i), slow.URL)
	}
	cfg := local()
	cfg.Concurrency, cfg.PerHost, cfg.Timeout = 6, 3, time.Minute
	r.start(cfg, "one-1")
	require.Eventually(t, func() bool { return inside.Load() == 3 }, testenv.Patience, time.Millisecond)
	for i := range 20 {
		r.due(fmt.Sprintf("quick%d", i), quick)
	}
	r.until("20", "SELECT count(*)::text FROM callbacks WHERE state = 'DELIVERED'")
	close(release)
	r.until("40", "SELECT count(*)::text FROM callbacks WHERE state = 'DELIVERED'")
	require.LessOrEqual(t, most.Load(), int64(3))
}

func TestSeveralProcessesShareTheWork(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	to, got := endpoint(t, status(200))
	r.start(local(), "one-1")
	stop := r.start(local(), "two-2")
	const n = 100
	for i := range n {
		r.due(fmt.Sprintf("t%d", i), to)
		if i == n/2 {
			stop() // finishes what it has claimed
		}
	}
	r.until(fmt.Sprint(n), "SELECT count(*)::text FROM callbacks WHERE state = 'DELIVERED'")
	require.Len(t, got, n, "each once, because no process died")
}

// Processes that claim at the same time get different rows, and none waits for another.
func TestProcessesClaimAtTheSameTime(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const n, processes = 400, 8
	for i := range n {
		r.due(fmt.Sprint("t", i), fmt.Sprintf("http://host-%d.example.com/hook", i))
	}
	claimed := make(chan string, 2*n)
	var all sync.WaitGroup
	for i := range processes {
		table := &table{pool: r.pool, holder: fmt.Sprint("callbacks@test-", i), cfg: local().withDefaults()}
		all.Go(func() {
			for misses := 0; misses < 3; { // a claim finds nothing while others hold the rows
				got, err := table.claim(t.Context(), room{free: 7})
				if err != nil {
					claimed <- err.Error()
					return
				}
				if len(got) == 0 {
					misses++
				}
				for _, c := range got {
					claimed <- c.id
				}
			}
		})
	}
	all.Wait()
	close(claimed)
	times := map[string]int{}
	for id := range claimed {
		times[id]++
	}
	for id, k := range times {
		require.Regexp(t, "^evt_t", id)
		require.Equal(t, 1, k, id)
	}
	left, err := (&table{pool: r.pool, holder: "callbacks@test-last", cfg: local().withDefaults()}).claim(t.Context(), room{free: n})
	require.NoError(t, err)
	require.Len(t, times, n-len(left))
}

// Rows that Postgres returns to a process that is stopping are delivered, not left until the lease
// expires.
func TestAClaimInFlightIsDeliveredWhenStopping(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	to, got := endpoint(t, status(200))
	r.due("t1", to)
	tx, err := r.pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "LOCK TABLE results IN ACCESS EXCLUSIVE MODE")
	require.NoError(t, err)

	s, err := New(local(), r.deps("callbacks@one-1"))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, nil) }()
	r.until("1", "SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
	cancel()
	require.NoError(t, tx.Rollback(t.Context()))
	require.NoError(t, <-done)
	require.Equal(t, "DELIVERED 1", r.one("SELECT state || ' ' || attempts FROM callbacks"))
	require.Len(t, got, 1)
}

func TestStoppingGivesBackDeliveriesInFlight(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	entered, release := make(chan struct{}), make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		entered <- struct{}{}
		<-release
	}))
	t.Cleanup(s.Close)
	t.Cleanup(func() { close(release) })
	r.due("t1", s.URL)
	cfg := local()
	cfg.DrainTimeout = 50 * time.Millisecond
	stop := r.start(cfg, "one-1")
	<-entered
	stop()
	require.Equal(t, "DUE true", r.one("SELECT state || ' ' || (next_at <= now())::text FROM callbacks"))
}

func TestInvalidSettings(t *testing.T) {
	for name, c := range map[string]struct {
		secret string
		cfg    Config
		want   string
	}{
		"no secret":   {"", Config{}, "set the environment variable BATCHYARD_TEST_SECRET"},
		"short":       {"whsec_AAAA", Config{}, "secret 1 in the environment variable"},
		"no prefix":   {oldKey + " AAAA", Config{}, "secret 2 in the environment variable"},
		"bad pause":   {oldKey, Config{Retries: []string{"soon"}}, `callbacks.retries: "soon"`},
		"bad network": {oldKey, Config{AllowNetworks: []string{"10.1"}}, `callbacks.allow_networks: "10.1"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("BATCHYARD_TEST_SECRET", c.secret)
			c.cfg.SecretEnv = "BATCHYARD_TEST_SECRET"
			_, err := New(c.cfg, Deps{Logger: testenv.Logger(t), Metrics: metrics.New(nil), Instance: "x"})
			require.ErrorContains(t, err, c.want)
			require.NotContains(t, err.Error(), "MfKQ9r8")
		})
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	for s, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, " 8 ": 8 * time.Second, "-1": 0, "soon": 0, "99999999999999999999": 0,
		"999999999999999": 365 * 24 * time.Hour, "Sat, 31 Jan 2026 12:00:30 GMT": 30 * time.Second, "Sat, 31 Jan 2026 11:00:00 GMT": 0,
	} {
		require.Equal(t, want, retryAfter(s, now), s)
	}
}
