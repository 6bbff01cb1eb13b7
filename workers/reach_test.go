package workers

import (
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device/access"
	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// picky is a server with a certificate of its own, a base path, a key, and its own name of the model.
type picky struct {
	*httptest.Server
	key    atomic.Value
	caFile string
}

func newPicky(t *testing.T) *picky {
	p := &picky{caFile: filepath.Join(t.TempDir(), "ca.pem")}
	mux := http.NewServeMux()
	answer := func(body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			var in struct{ Model string }
			switch err := json.NewDecoder(r.Body).Decode(&in); {
			case r.Header.Get("Authorization") != "Bearer "+p.key.Load().(string):
				w.WriteHeader(http.StatusUnauthorized)
			case err != nil || in.Model != "own" || r.Header.Get("X-Team") != "lab":
				w.WriteHeader(http.StatusTeapot)
			default:
				_, _ = io.WriteString(w, body)
			}
		}
	}
	mux.Handle("POST /openai/v1/chat/completions", answer(`{"choices":[{"index":0,"message":{"role":"assistant","content":"yes"},"finish_reason":"stop"}]}`))
	mux.Handle("POST /openai/v1/embeddings", answer(`{"data":[{"index":0,"embedding":[1]},{"index":1,"embedding":[2]}]}`))
	p.Server = httptest.NewUnstartedServer(mux)
	p.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // clients fail on purpose
	p.StartTLS()
	t.Cleanup(p.Close)
	require.NoError(t, os.WriteFile(p.caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw}), 0o600))
	return p
}

// Requests reach a device as the configuration describes it, single and batched ones, and a change applies at once.
func TestRequestsReachDevicesAsTheyAreDescribed(t *testing.T) {
	p := newPicky(t)
	p.key.Store("first")
	t.Setenv("TEST_KEY_1", "first")
	t.Setenv("TEST_KEY_2", "second")
	d := access.Device{Name: "gpu", URL: p.URL, BasePath: "/openai", Aliases: map[string]string{"m": "own"}, KeyEnv: "TEST_KEY_1",
		Headers: map[string]string{"X-Team": "lab"}, CAFile: p.caFile}
	y := newYard(t, fleet.Spec{ID: "unused"})
	y.deps.Devices = []access.Device{d}
	s, _ := y.workers(testConfig())

	reported := d.Reported([]string{"own"})
	own, ok := reported.ModelName("m")
	require.True(t, ok)
	send := func(tasks ...*task.Task) {
		t.Helper()
		b := task.Batch{ID: task.NewID(), Device: task.DeviceRef{ID: d.Name, URL: reported.URL, Slots: 4, Model: own}}
		for _, tk := range tasks {
			tk.MaxAttempts = 1
			tk.Normalize(time.Now())
			b.Endpoint, b.Model = tk.Endpoint, tk.Model
			b.Assignments = append(b.Assignments, task.Assignment{Task: *tk, Device: b.Device, Attempt: 1, AssignedAt: time.Now()})
		}
		frame, err := wire.EncodeFrame(wire.FrameBatches, []task.Batch{b})
		require.NoError(t, err)
		require.NoError(t, y.client.Produce(t.Context(), stream.Message{Topic: stream.Batches, Key: d.Name, Value: frame}))
	}
	send(chat("chat"))
	send(embed("one", `"x"`), embed("two", `"y"`))
	for _, id := range []string{"chat", "one", "two"} {
		res := y.only(id)
		require.Equalf(t, task.Success, res.State, "%s: %v", id, res.Error)
		require.Equal(t, "m", res.Model, "users see the name that they asked for")
	}

	p.key.Store("second")
	send(chat("old key"))
	res := y.only("old key")
	require.Equal(t, task.Failed, res.State)
	require.Contains(t, res.Error.Message, "key_env")
	wrong := d
	wrong.KeyEnv = "TEST_NO_SUCH_KEY"
	require.ErrorContains(t, s.SetDevices([]access.Device{wrong}), "TEST_NO_SUCH_KEY")
	d.KeyEnv = "TEST_KEY_2"
	require.NoError(t, s.SetDevices([]access.Device{d}))
	send(chat("new key"))
	require.Equal(t, task.Success, y.only("new key").State)

	_, err := New(testConfig(), Deps{Stream: y.client, Devices: []access.Device{wrong}})
	require.ErrorContains(t, err, "TEST_NO_SUCH_KEY")
}
