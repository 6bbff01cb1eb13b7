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
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device/learn"
	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/testenv"
)

func newTestEngine(t *testing.T, cfg Config) *engine {
	t.Helper()
	e, err := newEngine(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.close(context.Background())) })
	return e
}

func startFleet(t *testing.T, specs ...fleet.Spec) *fleet.Fleet {
	t.Helper()
	f, err := fleet.Start(context.Background(), specs)
	require.NoError(t, err)
	t.Cleanup(f.Close)
	return f
}

func chatRequest(d *fleet.Device) request {
	return request{device: task.DeviceRef{ID: d.ID(), URL: d.URL()}, endpoint: task.EndpointChat, ids: []string{"id-1"}, tasks: 1,
		body: []byte(`{"model":"m","messages":[{"role":"user","content":"hi"}]}`), traceID: strings.Repeat("ab", 16)}
}

// Who is to blame for an answer, over real connections.
func TestTheEngineClassifiesFaults(t *testing.T) {
	d := startFleet(t, fleet.Spec{ID: "d"}).Device("d")
	e := newTestEngine(t, testConfig())
	for name, c := range map[string]struct {
		fault   fleet.Fault
		class   task.ErrorClass
		status  int
		message string
	}{
		"well":      {fleet.Fault{}, task.ClassNone, 200, ""},
		"500":       {fleet.Fault{Kind: fleet.Fail}, task.ClassDevice, 500, "answered 500"},
		"503":       {fleet.Fault{Kind: fleet.Fail, Status: 503}, task.ClassDevice, 503, "answered 503"},
		"400":       {fleet.Fault{Kind: fleet.Fail, Status: 400}, task.ClassInvalid, 400, "server_error"},
		"401":       {fleet.Fault{Kind: fleet.Fail, Status: 401}, task.ClassAuth, 401, "device_key_env"},
		"403":       {fleet.Fault{Kind: fleet.Fail, Status: 403}, task.ClassAuth, 403, ""},
		"404":       {fleet.Fault{Kind: fleet.Fail, Status: 404}, task.ClassInvalid, 404, ""},
		"408":       {fleet.Fault{Kind: fleet.Fail, Status: 408}, task.ClassDevice, 408, ""},
		"409":       {fleet.Fault{Kind: fleet.Fail, Status: 409}, task.ClassDevice, 409, ""},
		"429":       {fleet.Fault{Kind: fleet.RateLimit, RetryAfter: 7 * time.Second}, task.ClassThrottled, 429, "too many requests"},
		"bad JSON":  {fleet.Fault{Kind: fleet.BadJSON}, task.ClassDevice, 200, "invalid body"},
		"truncated": {fleet.Fault{Kind: fleet.Truncate}, task.ClassDevice, 200, "unexpected EOF"},
		"reset":     {fleet.Fault{Kind: fleet.Reset}, task.ClassConnect, 0, "sending a request to device d"},
	} {
		t.Run(name, func(t *testing.T) {
			d.SetFault(c.fault)
			answer, status, f := e.do(t.Context(), chatRequest(d))
			require.Equal(t, c.status, status)
			if c.class == task.ClassNone {
				require.Nil(t, f)
				require.NoError(t, task.CheckJSON(answer))
				require.Positive(t, d.Seen("id-1"))
				return
			}
			require.NotNil(t, f)
			require.Equal(t, c.class, f.Class)
			require.Contains(t, f.Message, c.message)
			require.Equal(t, c.class == task.ClassInvalid, f.Body != nil, "the device's explanation is kept if the task is to blame")
			if c.class == task.ClassThrottled {
				require.Equal(t, 7*time.Second, f.RetryAfter)
			}
			require.Equal(t, c.class == task.ClassDevice || c.class == task.ClassConnect || c.class == task.ClassAuth, deviceOutcome(f) == learn.Fault)
		})
	}
	d.Stop()
	_, _, f := e.do(t.Context(), chatRequest(d))
	require.Equal(t, task.ClassConnect, f.Class)
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
		require.Equal(t, learn.Neutral, deviceOutcome(f))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	_, _, f := e.do(ctx, chatRequest(d))
	require.Equal(t, task.ClassTimeout, f.Class)
	require.Equal(t, learn.TimedOut, deviceOutcome(f), "a device that hangs is not healthy")
	ctx, cancel = context.WithDeadlineCause(t.Context(), time.Now().Add(30*time.Millisecond), errExpired)
	defer cancel()
	_, _, f = e.do(ctx, chatRequest(d))
	require.Equal(t, task.ClassExpired, f.Class)
	require.Equal(t, learn.Neutral, deviceOutcome(f), "a task's deadline says nothing about the device")
}

func TestTheEngineBoundsAnswersAndFollowsNoRedirects(t *testing.T) {
	var followed bool
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/chat/completions", func(w http.ResponseWriter, r *http.Request) {
		switch r.Header.Get("X-Request-Id") {
		case "redirect":
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		case "key":
			_, _ = fmt.Fprintf(w, `{"auth":%q,"trace":%q}`, r.Header.Get("Authorization"), r.Header.Get("Traceparent"))
		default:
			_, _ = fmt.Fprintf(w, `{"x":%q}`, strings.Repeat("y", 2<<20))
		}
	})
	mux.HandleFunc("/elsewhere", func(http.ResponseWriter, *http.Request) { followed = true })
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	t.Setenv("TEST_DEVICE_KEY", "s3cret")
	cfg := testConfig()
	cfg.DeviceKeyEnv = map[string]string{"*": "TEST_DEVICE_KEY"}
	e := newTestEngine(t, cfg)
	r := request{device: task.DeviceRef{ID: "d", URL: srv.URL + "/v1/"}, endpoint: task.EndpointChat, body: []byte(`{}`), tasks: 1, traceID: strings.Repeat("0af7", 8)}

	_, status, f := e.do(t.Context(), r)
	require.Equal(t, 200, status)
	require.Equal(t, task.ClassInvalid, f.Class)
	require.Contains(t, f.Message, "workers.max_answer")
	require.Nil(t, f.Body)
	r.tasks = 3
	_, _, f = e.do(t.Context(), r)
	require.Nil(t, f, "a batched answer may be as large as the answers of its tasks together")

	r.ids = []string{"redirect"}
	_, status, f = e.do(t.Context(), r)
	require.Equal(t, 307, status)
	require.Equal(t, task.ClassDevice, f.Class)
	require.False(t, followed)

	r.ids = []string{"key"}
	answer, _, f := e.do(t.Context(), r)
	require.Nil(t, f)
	require.Contains(t, string(answer), "Bearer s3cret")
	require.Contains(t, string(answer), "00-"+r.traceID)

	cfg.DeviceKeyEnv = map[string]string{"d": "TEST_NO_SUCH_KEY"}
	_, err := newEngine(cfg)
	require.ErrorContains(t, err, "TEST_NO_SUCH_KEY")
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
	require.LessOrEqual(t, len(f.Message), maxMessage)

	long := errorText([]byte(`{"error":{"type":"` + strings.Repeat("x", 199) + `é"}}`))
	require.True(t, utf8.ValidString(long))
	require.LessOrEqual(t, len(long), 200)
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	for v, want := range map[string]time.Duration{
		"": 0, "3": 3 * time.Second, "0.5": 500 * time.Millisecond, "-1": 0, "soon": 0, "NaN": 0, "1e300": 0, "Inf": 0,
		"Sat, 31 Jan 2026 12:00:09 GMT": 9 * time.Second, "Sat, 31 Jan 2026 11:00:00 GMT": 0,
	} {
		require.Equal(t, want, retryAfter(http.Header{"Retry-After": {v}}, now), v)
	}
	require.Equal(t, 250*time.Millisecond, retryAfter(http.Header{"Retry-After-Ms": {"250"}, "Retry-After": {"9"}}, now))
}

func TestJoinURL(t *testing.T) {
	for base, want := range map[string]string{
		"http://d": "http://d/v1/embeddings", "http://d/": "http://d/v1/embeddings", "http://d/v1": "http://d/v1/embeddings",
		"http://d/api/v1/": "http://d/api/v1/embeddings", "http://d/x": "http://d/x/v1/embeddings",
	} {
		require.Equal(t, want, joinURL(base, task.EndpointEmbeddings))
	}
}
