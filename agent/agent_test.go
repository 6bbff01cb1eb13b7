package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/batchyard/batchyard/device/access"
	"github.com/batchyard/batchyard/internal/fleet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

// api is the server: it records every heartbeat and answers as configured.
type api struct {
	*httptest.Server
	beats chan map[string]any
	paths chan string

	mu     sync.Mutex
	status int
	answer string
	key    string // the last Authorization header
}

func newAPI(t *testing.T) *api {
	a := &api{beats: make(chan map[string]any, 10_000), paths: make(chan string, 10_000), status: 204}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, err := io.ReadAll(r.Body)
		if err != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
			w.WriteHeader(418)
			return
		}
		var beat map[string]any
		if json.Unmarshal(raw, &beat) != nil {
			w.WriteHeader(418)
			return
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		a.key = r.Header.Get("Authorization")
		w.WriteHeader(a.status)
		_, _ = io.WriteString(w, a.answer)
		a.paths <- r.URL.EscapedPath()
		a.beats <- beat
	}))
	t.Cleanup(a.Close)
	return a
}

func (a *api) respond(status int, answer string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status, a.answer = status, answer
}

func (a *api) next(t *testing.T) map[string]any {
	t.Helper()
	select {
	case b := <-a.beats:
		return b
	case <-time.After(patience):
		t.Fatal("no heartbeat arrived")
		return nil
	}
}

// drain discards the heartbeats received so far.
func (a *api) drain() {
	for {
		select {
		case <-a.beats:
		default:
			return
		}
	}
}

// lines is a log whose lines tests can wait for.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), text)
}

func (l *lines) await(t *testing.T, text string, n int) {
	t.Helper()
	require.Eventually(t, func() bool { return l.count(text) >= n }, patience, time.Millisecond, "log line %q", text)
	require.Equal(t, n, l.count(text), text)
}

// launch runs an agent; the returned function stops it and waits.
func launch(t *testing.T, cfg Config) (*lines, func()) {
	t.Helper()
	log := &lines{}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, cfg, slog.New(slog.NewTextHandler(log, nil))) }()
	var once sync.Once
	stop := func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-ended:
				require.NoError(t, err)
			case <-time.After(patience):
				t.Fatal("Run did not return")
			}
		})
	}
	t.Cleanup(stop)
	return log, stop
}

func quick(id, url, server string) Config {
	return Config{ID: id, URL: url, Server: server, Slots: 4, Interval: 5 * time.Millisecond, MaxBackoff: 20 * time.Millisecond, Timeout: patience}
}

func simulated(t *testing.T, spec fleet.Spec) *fleet.Device {
	t.Helper()
	f, err := fleet.Start(context.Background(), []fleet.Spec{spec})
	require.NoError(t, err)
	t.Cleanup(f.Close)
	return f.Devices()[0]
}

func TestHeartbeatDescribesTheDeviceAndTheLastOneLeaves(t *testing.T) {
	d := simulated(t, fleet.Spec{ID: "d", Models: []string{"m1", "m2"}, Slots: 4})
	a := newAPI(t)
	cfg := quick("rack 1/gpu", d.URL()+"/v1/", a.URL+"/")
	cfg.Tags, cfg.ServerKey = []string{"gpu"}, "secret"
	log, stop := launch(t, cfg)
	for range 2 {
		b := a.next(t)
		require.Equal(t, d.URL(), b["url"], "without /v1")
		require.Equal(t, []any{"m1", "m2"}, b["models"])
		require.Equal(t, []any{"gpu"}, b["tags"])
		require.EqualValues(t, 4, b["slots"])
		require.EqualValues(t, 0, b["queue"])
		require.EqualValues(t, 0, b["in_flight"])
		require.Positive(t, b["latency_ms"])
		for _, figure := range []string{"cpu", "mem", "io"} {
			require.GreaterOrEqual(t, b[figure], 0.0)
			require.LessOrEqual(t, b[figure], 1.0)
		}
		require.Positive(t, b["mem"])
		require.NotContains(t, b, "leaving")
	}
	require.Equal(t, "/v1/devices/rack%201%2Fgpu/heartbeat", <-a.paths)
	stop()
	var last map[string]any
	for len(a.beats) > 0 {
		last = <-a.beats
	}
	require.Equal(t, map[string]any{"leaving": true}, last)
	require.Equal(t, "Bearer secret", a.key)
	require.Equal(t, 1, log.count("heartbeats reach the server"))
	require.Equal(t, 1, log.count("the device has left"))
	require.Zero(t, log.count("secret"))
}

func TestLoadIsReported(t *testing.T) {
	d := simulated(t, fleet.Spec{ID: "d", Slots: 1, ServiceTime: 24 * time.Hour})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	client := &http.Client{Transport: &http.Transport{}}
	for range 3 {
		wg.Go(func() {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.URL()+"/v1/embeddings", strings.NewReader(`{"model":"m","input":"x"}`))
			if err != nil {
				return
			}
			if resp, err := client.Do(req); err == nil { // cancelled in the end
				_ = resp.Body.Close()
			}
		})
	}
	require.Eventually(t, func() bool { return d.Stats().Waiting == 2 }, patience, time.Millisecond)
	a := newAPI(t)
	launch(t, quick("d", d.URL(), a.URL))
	b := a.next(t)
	require.EqualValues(t, 1, b["in_flight"])
	require.EqualValues(t, 2, b["queue"])
}

// A device that does not answer is reported as such, with the cause.
func TestADeviceThatIsDownIsReported(t *testing.T) {
	d := simulated(t, fleet.Spec{ID: "d"})
	a := newAPI(t)
	log, stop := launch(t, quick("d", d.URL(), a.URL))
	a.next(t)
	for round := 1; round <= 2; round++ {
		switch round {
		case 1:
			d.Stop()
		case 2:
			d.SetFault(fleet.Fault{Kind: fleet.Fail, Status: 503, Everything: true})
		}
		log.await(t, "the device does not answer", round)
		a.drain()
		b := a.next(t)
		require.Contains(t, b["problem"], []string{"", "connection refused", "status 503"}[round])
		require.NotContains(t, b["problem"], "http://", "the heartbeat has the URL")
		require.Equal(t, []any{"*"}, b["models"], "of before")
		require.NoError(t, d.Start())
		d.ClearFault()
		for b["problem"] != nil {
			b = a.next(t)
		}
		log.await(t, "heartbeats reach the server", round+1)
	}
	stop()
	require.Equal(t, 2, log.count("the device does not answer"))
}

func TestHangingDeviceTimesOut(t *testing.T) {
	d := simulated(t, fleet.Spec{ID: "d"})
	d.SetFault(fleet.Fault{Kind: fleet.Hang, Everything: true})
	a := newAPI(t)
	cfg := quick("d", d.URL(), a.URL)
	cfg.Timeout = 50 * time.Millisecond
	log, stop := launch(t, cfg)
	log.await(t, "the device does not answer", 1)
	require.Contains(t, a.next(t)["problem"], "deadline exceeded")
	stop()
}

func TestServerIsRetried(t *testing.T) {
	d := simulated(t, fleet.Spec{ID: "d"})
	a := newAPI(t)
	a.respond(503, "")
	log, stop := launch(t, quick("d", d.URL(), a.URL))
	for range 5 {
		a.next(t)
	}
	log.await(t, "the server does not accept heartbeats", 1)
	a.respond(422, `{"title":"Unprocessable Entity","detail":"validation failed","errors":[{"detail":"too long","pointer":"/models"}]}`)
	log.await(t, "the server rejects the heartbeats", 1)
	require.Equal(t, 1, log.count("validation failed; /models: too long"))
	a.respond(200, "{}")
	log.await(t, "heartbeats reach the server", 1)
	a.CloseClientConnections()
	a.Close()
	log.await(t, "the server does not accept heartbeats", 2)
	stop()
	require.Equal(t, 1, log.count("could not tell the server"))
}

func TestServerThatNeverAnswers(t *testing.T) {
	d := simulated(t, fleet.Spec{ID: "d"})
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, ln.Close())
	log, stop := launch(t, quick("d", d.URL(), "http://"+ln.Addr().String()))
	log.await(t, "the server does not accept heartbeats", 1)
	stop()
	require.Zero(t, log.count("could not tell"))
}

// engine is a device that has only the given paths.
func engine(t *testing.T, pages map[string]string) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		page, ok := pages[r.URL.Path]
		if !ok {
			w.WriteHeader(404)
			return
		}
		if page == "keyed" && r.Header.Get("Authorization") != "Bearer k" {
			w.WriteHeader(401)
			return
		}
		_, _ = io.WriteString(w, page)
	}))
	t.Cleanup(s.Close)
	return s
}

func TestServersWithoutHealthOrMetrics(t *testing.T) {
	s := engine(t, map[string]string{"/v1/models": `{"data":[{"id":"m"},{"id":"m"},{"id":""}]}`})
	a := newAPI(t)
	launch(t, quick("d", s.URL, a.URL))
	b := a.next(t)
	require.Equal(t, []any{"m"}, b["models"])
	require.NotContains(t, b, "queue")
	require.NotContains(t, b, "in_flight")
}

// Some servers have only the endpoints of tasks.
func TestServerWithOnlyTaskEndpoints(t *testing.T) {
	s := engine(t, nil)
	a := newAPI(t)
	log, stop := launch(t, quick("d", s.URL, a.URL))
	log.await(t, "does not answer", 1) // its models are unknown
	b := a.next(t)
	require.NotContains(t, b, "models")
	require.Contains(t, b["problem"], "status 404")
	stop()
	a.drain()

	unlisted := quick("d", s.URL, a.URL)
	unlisted.AnyModel, unlisted.Stay = true, true
	_, stop = launch(t, unlisted)
	require.Equal(t, []any{"*"}, a.next(t)["models"])
	stop()
	for len(a.beats) > 0 {
		require.NotContains(t, <-a.beats, "leaving", "another agent may report it, too")
	}

	named := quick("d", s.URL, a.URL)
	named.Models = []string{"*"}
	launch(t, named)
	require.Equal(t, []any{"*"}, a.next(t)["models"])
	require.Positive(t, a.next(t)["latency_ms"])
}

func TestInvalidModelLists(t *testing.T) {
	for name, page := range map[string]string{
		"none": `{"data":[]}`, "no JSON": `<html>`, "too large": `{"data":[{"id":"` + strings.Repeat("x", maxModelsBytes) + `"}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			s := engine(t, map[string]string{"/health": "", "/v1/models": page})
			a := newAPI(t)
			log, stop := launch(t, quick("d", s.URL, a.URL))
			log.await(t, "or say which it serves, with models", 1)
			require.Contains(t, a.next(t)["problem"], "or say which it serves, with models")
			stop()
			a.drain()

			named := quick("d", s.URL, a.URL)
			named.Models = []string{"mine"}
			launch(t, named)
			require.Equal(t, []any{"mine"}, a.next(t)["models"])
		})
	}
}

// An agent takes all that describes a device, as devices.list does.
func TestDescribedDevice(t *testing.T) {
	s := engine(t, map[string]string{"/health": "keyed"})
	a := newAPI(t)
	path := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(path, []byte("wrong"), 0o600))
	d, err := access.Parse("d="+s.URL+"/v1,model=own,alias=nice=own,weight=2,slots=3,key_file="+path, 1)
	require.NoError(t, err)
	start := func() (*lines, func()) {
		book := NewBook()
		require.NoError(t, book.Load([]access.Device{d}))
		cfg := Of(&d, book)
		cfg.Server, cfg.Interval, cfg.Timeout = a.URL, 5*time.Millisecond, patience
		return launch(t, cfg)
	}
	log, stop := start()
	log.await(t, "set the key of the device in "+path, 1)
	stop()
	a.drain()
	require.NoError(t, os.WriteFile(path, []byte("k\n"), 0o600))
	start()
	beat := a.next(t)
	require.NotContains(t, beat, "problem")
	require.Equal(t, []any{s.URL, []any{"own"}, map[string]any{"nice": "own"}, 2.0, 3.0},
		[]any{beat["url"], beat["models"], beat["aliases"], beat["weight"], beat["slots"]})
}

func TestInvalidConfig(t *testing.T) {
	good := Config{ID: "d", URL: "http://localhost:1", Server: "http://localhost:2"}
	for text, change := range map[string]func(*Config){
		"device id":            func(c *Config) { c.ID = "" },
		"printable":            func(c *Config) { c.ID = "a\nb" },
		"set url":              func(c *Config) { c.URL = "localhost:8000" },
		"--server":             func(c *Config) { c.Server = "ftp://x" },
		"--advertise":          func(c *Config) { c.Advertise = "http://h?x=1" },
		"model or tag":         func(c *Config) { c.Models = []string{""} },
		"must not be negative": func(c *Config) { c.Interval = -1 },
		"http://u:xxxxx@h":     func(c *Config) { c.URL = "http://u:hunter2@h" },
	} {
		cfg := good
		change(&cfg)
		err := Run(t.Context(), cfg, slog.New(slog.DiscardHandler))
		require.ErrorContains(t, err, text)
		require.NotContains(t, err.Error(), "hunter2")
	}
	full, err := good.check()
	require.NoError(t, err)
	require.Equal(t, []any{5 * time.Second, 3 * time.Second, 30 * time.Second, 1, good.URL}, []any{full.Interval, full.Timeout, full.MaxBackoff, full.Slots, full.Advertise})
}

func TestHostFigures(t *testing.T) {
	var h host
	first := h.sample(t.Context())
	require.Zero(t, first.cpu)
	require.Zero(t, first.io)
	require.Positive(t, first.mem)
	// A lower counter and a shorter time make a known fraction.
	h.busy, h.total = h.busy-30, h.total-60
	h.at = h.at.Add(-time.Second)
	second := h.sample(t.Context())
	require.InDelta(t, 0.5, second.cpu, 0.2)
	require.Equal(t, 1.0, share(5, 2))
	require.Zero(t, share(-1, 2))
	require.Zero(t, share(1, 0))
}
