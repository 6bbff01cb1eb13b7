package test

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/harness"
)

// TestMisbehavingDevices runs tasks on a fleet of 12, of which 4 misbehave in different ways, drawn by seed from the
// table of docs/failures.md. No task is lost, none fails, as eight devices could run each, none gets an answer that
// is not its own, and few requests are made beside one for each task.
func TestMisbehavingDevices(t *testing.T) {
	t.Parallel()
	seeds, tasks := []uint64{1, 2}, 1200
	if harness.Long() {
		seeds, tasks = []uint64{1, 2, 3, 4, 5}, 20_000
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			plays := drawPlays(seed, 4)
			var names []string
			for _, p := range plays {
				names = append(names, p.Name)
			}
			t.Log(strings.Join(names, ", "))
			p99 := runMixed(t, plays, tasks)
			if harness.Long() {
				alone := runMixed(t, nil, tasks)
				t.Logf("p99 %s, without them %s", p99, alone)
				require.LessOrEqual(t, p99, alone*3/2)
			}
		})
	}
}

// drawPlays draws plays of different kinds.
func drawPlays(seed uint64, n int) (out []fleet.Play) {
	rng := rand.New(rand.NewPCG(seed, 0))
	all := fleet.Plays()
	drawn := map[string]bool{}
	for len(out) < n {
		p := all[rng.IntN(len(all))]
		if !drawn[p.Kind()] && (p.Away != fleet.AwayBlackhole || runtime.GOOS == "linux") {
			drawn[p.Kind()] = true
			out = append(out, p)
		}
	}
	return out
}

// runMixed runs tasks on eight devices that answer well, and on others that play, and returns the p99 of the times
// from their submission to their end.
func runMixed(t *testing.T, plays []fleet.Play, tasks int) time.Duration {
	in := harness.Install(t, harness.Get(t, harness.Shared), map[string]any{
		"workers.request_timeout": "3s", "workers.connect_timeout": "1s", "workers.breaker_open": "2s",
	})
	var specs []fleet.Spec
	for i := range 8 {
		specs = append(specs, fleet.Spec{ID: fmt.Sprint("good-", i), Slots: 4, ServiceTime: 10 * time.Millisecond, Distribution: fleet.Exponential, Seed: uint64(i)})
	}
	for i := range plays {
		specs = append(specs, fleet.Spec{ID: fmt.Sprint("odd-", i), Slots: 4, ServiceTime: 10 * time.Millisecond})
	}
	f, err := fleet.Start(t.Context(), specs)
	require.NoError(t, err)
	t.Cleanup(f.Close)
	for i, p := range plays {
		require.NoError(t, f.Device(fmt.Sprint("odd-", i)).Play(p))
	}
	for _, d := range f.Devices() {
		in.Device(t, device.Device{ID: d.ID(), URL: d.URL(), Models: []string{"*"}, Slots: d.Spec().Slots})
	}
	api := in.Process(t, "serve").API()
	var ids []string
	all := mixedTasks(tasks)
	for part := range slices.Chunk(all, 500) {
		ids = append(ids, api.Submit(t, part...)...)
	}
	in.Await(t, ids, 2*harness.Patience+time.Duration(tasks/100)*time.Second)
	in.AwaitRecorded(t)

	for id, st := range in.CheckAnswers(t, ids) {
		if st != task.Success {
			s := api.Status(t, id)
			require.Equal(t, task.Success, st, "%s: %+v %+v", id, s.Error, s.Attempts)
		}
	}
	for i := 0; i < len(all); i += max(1, tasks/600) {
		require.Equal(t, answerOf(t, f.Device("good-0").URL(), all[i]), essence(t, all[i].Endpoint, api.Status(t, all[i].ID).Output), all[i].ID)
	}
	attempts := harness.SQL[int](t, in, "SELECT count(*) FROM audit_log WHERE action IN ('attempt.succeeded', 'attempt.failed')")
	t.Logf("%d attempts for %d tasks", attempts, tasks)
	if attempts > tasks+tasks/10 {
		for _, d := range f.Devices() {
			t.Logf("%s %s %+v", d.ID(), d.Playing(), d.Stats())
		}
	}
	require.LessOrEqual(t, attempts, tasks+tasks/10)
	require.Zero(t, harness.SQL[int](t, in, "SELECT count(*) FROM audit_log WHERE action = 'breaker.opened' AND device_id LIKE 'good-%'"))
	seconds := harness.SQL[float64](t, in, "SELECT percentile_cont(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM finished_at - submitted_at)) FROM tasks")
	return time.Duration(seconds * float64(time.Second))
}

// mixedTasks are tasks of all endpoints.
func mixedTasks(n int) (out []*task.Task) {
	for i := range n {
		id := fmt.Sprintf("mixed-%05d", i)
		tk := harness.Chat(id)
		switch i % 10 {
		case 7:
			tk = harness.Embedding(id)
		case 8:
			tk.Endpoint, tk.Input = task.EndpointCompletions, task.Input(fmt.Sprintf(`{"prompt":%q}`, "complete "+id))
		case 9:
			tk.Endpoint, tk.Input = task.EndpointResponses, task.Input(fmt.Sprintf(`{"input":%q}`, "respond to "+id))
		}
		out = append(out, tk)
	}
	return out
}

// answerOf asks a device itself.
func answerOf(t *testing.T, url string, tk *task.Task) string {
	t.Helper()
	body := `{"model":"m",` + string(tk.Input[1:])
	resp, err := http.Post(url+tk.Endpoint, "application/json", strings.NewReader(body))
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return essence(t, tk.Endpoint, answer)
}

// essence is what an answer depends on its request for.
func essence(t *testing.T, endpoint string, answer []byte) string {
	t.Helper()
	var a map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(answer, &a), "%s", answer)
	list := map[string]string{task.EndpointEmbeddings: "data", task.EndpointResponses: "output"}[endpoint]
	if list == "" {
		list = "choices"
	}
	var v any
	require.NoError(t, json.Unmarshal(a[list], &v), "%s", answer)
	b, err := json.Marshal(v)
	require.NoError(t, err)
	return string(b)
}
