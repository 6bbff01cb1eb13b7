package workers

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/testenv"
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
	require.Empty(t, y.written(task.BreakerOpened))

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

// A device that calls every request invalid, or answers without an end, says so of good tasks, too. Two such devices
// fail no task that another can run. Two that answer others do.
func TestADeviceThatCallsEverythingInvalidIsNotTrusted(t *testing.T) {
	specs := []fleet.Spec{{ID: "a"}, {ID: "b"}, {ID: "good"}}
	plays := func(y *yard, names ...string) {
		for i, name := range names {
			var p fleet.Play
			if name != "" {
				var err error
				p, err = fleet.FindPlay(name)
				require.NoError(t, err)
			}
			require.NoError(t, y.fleet.Device(specs[i].ID).Play(p))
		}
	}
	y := newYard(t, specs...)
	y.withRegistry()
	y.again = func(tk *task.Task) {
		for _, s := range specs {
			if !slices.Contains(tk.DeclinedBy(), s.ID) {
				d := y.fleet.Device(s.ID)
				if err := y.client.Produce(context.Background(), stream.Message{Topic: stream.Batches, Key: s.ID, Value: frameOf(t, d, y.deps.Credits, tk)}); err != nil {
					t.Error(err)
				}
				return
			}
		}
	}
	y.workers(testConfig())
	plays(y, "invalid/400", "endless")
	y.send("a", chat("doubted"))
	res := y.only("doubted")
	require.Equal(t, task.Success, res.State, "%+v", res.Attempts)
	require.Equal(t, "good", res.DeviceID)
	require.Equal(t, []task.ErrorClass{task.ClassDeclined, task.ClassDeclined, task.ClassNone}, []task.ErrorClass{res.Attempts[0].Class, res.Attempts[1].Class, res.Attempts[2].Class})

	plays(y, "", "")
	for _, id := range []string{"a", "b"} {
		y.send(id, chat("proves-"+id))
		require.Equal(t, task.Success, y.only("proves-"+id).State)
	}
	plays(y, "invalid/400", "invalid/422")
	y.send("a", chat("believed"))
	res = y.only("believed")
	require.Equal(t, task.Failed, res.State, "%+v", res.Attempts)
	require.Len(t, res.Attempts, 2)
	require.Equal(t, task.ClassInvalid, res.Error.Class)
	require.Contains(t, string(res.Output), "detail")
}

// A device that answers only with pauses is asked less and less, also if it does not say for how long.
func TestPausesGrowUntilTheDeviceAnswers(t *testing.T) {
	s := assemble(testConfig(), Deps{Logger: testenv.Logger(t), Metrics: metrics.New(nil), Credits: store.NewCredits(nil, store.Config{}, "t:")}, nil, nil)
	r := newRunner(s, task.DeviceRef{ID: "d", Slots: 1}, 0)
	pause := func(asked time.Duration) time.Duration {
		r.slowUntil = time.Time{} // it is over
		r.slowDown(asked)
		r.slowDown(asked) // the answer to a request that was sent before
		return time.Until(r.slowUntil).Round(10 * time.Millisecond)
	}
	for _, ms := range []int{100, 200, 400, 800, 1600} {
		require.Equal(t, time.Duration(ms)*time.Millisecond, pause(0))
	}
	require.Equal(t, time.Hour, pause(time.Hour).Round(time.Second), "as the device says")
	for range 10 {
		pause(time.Second)
	}
	require.Equal(t, longestOfOurs, pause(time.Second))
	r.pauseOver()
	require.Equal(t, 100*time.Millisecond, pause(0))
}
