package workers

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device/access"
	"github.com/batchyard/batchyard/device/learn"
	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/testenv"
	"github.com/batchyard/batchyard/workers/verdict"
)

func newTestEngine(t *testing.T, cfg Config, devices ...access.Device) *engine {
	t.Helper()
	e, err := newEngine(cfg, devices)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.close(context.Background())) })
	return e
}

func startFleet(t testing.TB, specs ...fleet.Spec) *fleet.Fleet {
	t.Helper()
	f, err := fleet.Start(context.Background(), specs)
	require.NoError(t, err)
	t.Cleanup(f.Close)
	return f
}

func chatRequest(d *fleet.Device) request {
	return request{device: task.DeviceRef{ID: d.ID(), URL: d.URL()}, endpoint: task.EndpointChat, id: "id-1", tasks: 1,
		body: []byte(`{"model":"m","messages":[{"role":"user","content":"hi"}]}`), traceID: strings.Repeat("ab", 16)}
}

// Why we hang up decides who is to blame.
func TestTheEngineKnowsWhyItHungUp(t *testing.T) {
	d := startFleet(t, fleet.Spec{ID: "d"}).Device("d")
	d.SetFault(fleet.Fault{Kind: fleet.Hang})
	e := newTestEngine(t, testConfig())
	for cause, class := range map[error]task.ErrorClass{errCancelled: task.ClassCancelled, errDraining: task.ClassDraining, errLost: task.ClassDraining} {
		ctx, cancel := context.WithCancelCause(t.Context())
		done := make(chan *Failure, 1)
		go func() { _, _, f := e.do(ctx, chatRequest(d)); done <- f }()
		require.Eventually(t, func() bool { return d.Stats().InFlight > 0 }, testenv.Patience, time.Millisecond)
		cancel(cause)
		f := testenv.Receive(t, done, "the end of the request")
		require.Eventually(t, func() bool { return d.Stats().InFlight == 0 }, testenv.Patience, time.Millisecond)
		require.Equal(t, class, f.Class)
		require.Equal(t, learn.Neutral, outcomeOf(f, false))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	_, _, f := e.do(ctx, chatRequest(d))
	require.Equal(t, task.ClassTimeout, f.Class)
	require.Equal(t, learn.TimedOut, outcomeOf(f, false), "a device that hangs is not healthy")
	ctx, cancel = context.WithDeadlineCause(t.Context(), time.Now().Add(30*time.Millisecond), errExpired)
	defer cancel()
	_, _, f = e.do(ctx, chatRequest(d))
	require.Equal(t, task.ClassExpired, f.Class)
	require.Equal(t, learn.Neutral, outcomeOf(f, false), "a task's deadline says nothing about the device")
}

func TestTheEngineBoundsAnswersAndFollowsNoRedirects(t *testing.T) {
	var followed bool
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/chat/completions", func(w http.ResponseWriter, r *http.Request) {
		switch r.Header.Get("X-Request-Id") {
		case "redirect":
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		case "key":
			_, _ = fmt.Fprintf(w, `{"choices":[{}],"auth":%q,"trace":%q}`, r.Header.Get("Authorization"), r.Header.Get("Traceparent"))
		default:
			_, _ = fmt.Fprintf(w, `{"choices":[{}],"x":%q}`, strings.Repeat("y", 2<<20))
		}
	})
	mux.HandleFunc("/elsewhere", func(http.ResponseWriter, *http.Request) { followed = true })
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	t.Setenv("TEST_DEVICE_KEY", "s3cret")
	e := newTestEngine(t, testConfig(), access.Device{Name: access.Others, KeyEnv: "TEST_DEVICE_KEY"})
	r := request{device: task.DeviceRef{ID: "d", URL: srv.URL + "/v1/"}, endpoint: task.EndpointChat, body: []byte(`{}`), tasks: 1, traceID: strings.Repeat("0af7", 8)}

	_, status, f := e.do(t.Context(), r)
	require.Equal(t, 200, status)
	require.Equal(t, task.ClassInvalid, f.Class)
	require.Contains(t, f.Message, "workers.max_answer")
	require.Nil(t, f.Body)
	r.tasks = 3
	_, _, f = e.do(t.Context(), r)
	require.Nil(t, f, "a batched answer may be as large as the answers of its tasks together")

	r.id = "redirect"
	_, status, f = e.do(t.Context(), r)
	require.Equal(t, 307, status)
	require.Equal(t, verdict.Redirect, f.Kind)
	require.False(t, followed)

	r.id = "key"
	answer, _, f := e.do(t.Context(), r)
	require.Nil(t, f)
	require.Contains(t, string(answer), "Bearer s3cret")
	require.Contains(t, string(answer), "00-"+r.traceID)
}

// The message of a failure becomes a part of the task, which must still fit into its topic whatever a
// broken device sends.
func TestFailureMessagesAreShort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.CopyN(io.Discard, c, 10)
			_, _ = io.WriteString(c, strings.Repeat("\xff", 1<<20)+"\r\n")
			_ = c.Close()
		}
	}()
	e := newTestEngine(t, testConfig())
	_, _, f := e.do(t.Context(), request{device: task.DeviceRef{ID: "d", URL: "http://" + l.Addr().String()}, endpoint: task.EndpointChat, body: []byte(`{}`), tasks: 1})
	require.NotNil(t, f)
	require.NotEmpty(t, f.Message)
	require.LessOrEqual(t, len(f.Message), 1024)
}

func TestJoinURL(t *testing.T) {
	for base, want := range map[string]string{
		"http://d": "http://d/v1/embeddings", "http://d/": "http://d/v1/embeddings", "http://d/v1": "http://d/v1/embeddings",
		"http://d/api/v1/": "http://d/api/v1/embeddings", "http://d/x": "http://d/x/v1/embeddings",
	} {
		require.Equal(t, want, joinURL(base, task.EndpointEmbeddings))
	}
}
