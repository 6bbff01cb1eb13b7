package workers

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// Many engines close a kept connection just when the next request is on its way. The task does not notice, nor does
// the device's breaker, even with a single attempt.
func TestARequestLostOnAKeptConnectionIsSentAgain(t *testing.T) {
	y := newYard(t, fleet.Spec{ID: "d"})
	y.fleet.Device("d").SetFault(fleet.Fault{Kind: fleet.CloseKept})
	cfg := testConfig()
	cfg.MaxAttempts, cfg.BreakerFails = 1, 1
	y.workers(cfg)
	for n := range 6 {
		id := fmt.Sprint("t", n)
		y.send("d", chat(id))
		res := y.only(id)
		require.Equal(t, task.Success, res.State)
		require.Len(t, res.Attempts, 1)
	}
	require.Positive(t, y.fleet.Device("d").Stats().FaultHits, "no connection was kept")
	require.Zero(t, y.count(task.BreakerOpened))

	// A connection that breaks at the first request on it is a fault.
	y.fleet.Device("d").SetFault(fleet.Fault{Kind: fleet.Reset})
	y.send("d", chat("lost"))
	require.Equal(t, task.Failed, y.only("lost").State)
}

// idServer fails the first requests for each task, and refuses an id that it knows, as vLLM does while a request is
// running that its client gave up.
type idServer struct {
	mu    sync.Mutex
	fails int
	ids   []string
	lines []int // X-Request-Id headers of each request
}

func (s *idServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := r.Header.Get("X-Request-Id")
	s.lines = append(s.lines, len(r.Header.Values("X-Request-Id")))
	for _, had := range s.ids {
		if had == id {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = fmt.Fprintf(w, `{"error":{"message":"Request id %s already running.","type":"BadRequestError","code":400}}`, id)
			return
		}
	}
	s.ids = append(s.ids, id)
	if s.fails--; s.fails >= 0 {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	var b struct{ Input []string }
	if json.NewDecoder(r.Body).Decode(&b) != nil || b.Input == nil {
		_, _ = fmt.Fprint(w, `{"choices":[{"index":0,"message":{"content":"ok"},"finish_reason":"stop"}]}`)
		return
	}
	var data []string
	for i := range b.Input {
		data = append(data, fmt.Sprintf(`{"index":%d,"embedding":[%d]}`, i, i))
	}
	_, _ = fmt.Fprintf(w, `{"data":[%s]}`, strings.Join(data, ","))
}

// Every attempt carries an id of its own, and a batched request carries one, not one for each task.
func TestEveryRequestHasItsOwnID(t *testing.T) {
	s := &idServer{fails: 2}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	y := newYard(t, fleet.Spec{ID: "unused"})
	cfg := testConfig()
	cfg.LocalRetries, cfg.MaxAttempts = 5, 6
	y.workers(cfg)
	to := task.DeviceRef{ID: "d", URL: srv.URL, Slots: 1}
	send := func(tasks ...*task.Task) {
		require.NoError(t, y.client.Produce(t.Context(), stream.Message{Topic: stream.Batches, Key: "d", Value: frameFor(t, to, y.deps.Credits, tasks...)}))
	}
	send(chat("a-task"))
	res := y.only("a-task")
	require.Equal(t, task.Success, res.State)
	require.Len(t, res.Attempts, 3)
	send(embed("e1", `"x"`), embed("e2", `"y"`), embed("e3", `"z"`))
	for n, id := range []string{"e1", "e2", "e3"} {
		require.Contains(t, string(y.only(id).Output), fmt.Sprintf(`[%d]`, n))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	require.Len(t, s.ids, 4)
	for n, id := range s.ids[:3] {
		require.True(t, strings.HasPrefix(id, fmt.Sprintf("a-task.%d.", n+1)), id)
	}
	require.Equal(t, []int{1, 1, 1, 1}, s.lines)
	for _, id := range s.ids {
		require.LessOrEqual(t, len(id), maxRequestID)
	}
}
