package test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/api"
	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/harness"
)

// TestOddDevices runs all stages on devices that answer as real ones have been reported to. A task fails
// only when every device that could run it does.
func TestOddDevices(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), map[string]any{"workers.breaker_open": "2s"})
	reply := func(status int, body string) fleet.Fault {
		return fleet.Fault{Kind: fleet.Reply, Status: status, Body: body}
	}
	f := in.Fleet(t,
		fleet.Spec{ID: "good1s", Models: []string{"missing"}, Slots: 8, ServiceTime: 100 * time.Millisecond},
		fleet.Spec{ID: "n404", Models: []string{"missing"}, Slots: 4},
		fleet.Spec{ID: "n405", Models: []string{"nowhere"}}, fleet.Spec{ID: "n501", Models: []string{"nowhere"}},
		fleet.Spec{ID: "small", Models: []string{"ctx"}, Context: 2, Slots: 4}, fleet.Spec{ID: "large", Models: []string{"ctx"}, Slots: 4, ServiceTime: 20 * time.Millisecond},
		fleet.Spec{ID: "small1", Models: []string{"ctx2"}, Context: 2}, fleet.Spec{ID: "small2", Models: []string{"ctx2"}, Context: 1},
		fleet.Spec{ID: "f424", Models: []string{"f424"}},
		fleet.Spec{ID: "bg", Models: []string{"bg"}},
		fleet.Spec{ID: "p1", Models: []string{"pz"}, Slots: 2, ServiceTime: 20 * time.Millisecond},
		fleet.Spec{ID: "p2", Models: []string{"pz"}, Slots: 2, ServiceTime: 20 * time.Millisecond},
		fleet.Spec{ID: "p3", Models: []string{"pz"}, Slots: 2, ServiceTime: 20 * time.Millisecond},
		fleet.Spec{ID: "e431", Models: []string{"e431"}, MaxHeaders: 100},
		fleet.Spec{ID: "e32", Models: []string{"e32"}, MaxItems: 32},
		fleet.Spec{ID: "stale", Models: []string{"stale"}},
	)
	f.Device("n404").SetFault(reply(404, "404 page not found"))
	f.Device("n405").SetFault(reply(405, ""))
	f.Device("n501").SetFault(reply(501, ""))
	f.Device("f424").SetFault(fleet.Fault{Kind: fleet.Reply, Status: 424, Body: `{"error":"Request failed during generation","error_type":"generation"}`, Times: 3})
	for _, id := range []string{"p1", "p2", "p3"} {
		f.Device(id).SetFault(fleet.Fault{Kind: fleet.Fail, Containing: "poison"})
	}
	f.Device("stale").SetFault(fleet.Fault{Kind: fleet.CloseKept})
	none := &noAnswers{}
	noneServer := httptest.NewServer(none)
	t.Cleanup(noneServer.Close)
	loading := &paused{}
	loadingServer := httptest.NewServer(loading)
	t.Cleanup(loadingServer.Close)
	in.Device(t, device.Device{ID: "noans", URL: noneServer.URL, Models: []string{"noans"}, Slots: 2})
	in.Device(t, device.Device{ID: "loading", URL: loadingServer.URL, Models: []string{"loading"}, Slots: 4})

	p := in.Process(t, "serve")
	s := oddTasks{t: t, in: in, api: p.API(), ids: map[string][]string{}}
	s.submit("missing", 100, nil)
	s.submit("nowhere", 6, nil)
	s.submit("ctx", 20, nil)
	s.submit("ctx2", 2, nil)
	s.submit("noans", 5, func(tk *task.Task) { tk.MaxAttempts = 20 })
	s.submit("loading", 10, func(tk *task.Task) { tk.MaxAttempts = 1 })
	s.submit("f424", 1, nil)
	s.submit("bg", 1, func(tk *task.Task) {
		tk.Endpoint, tk.Input = task.EndpointResponses, task.Input(`{"input":"hello","background":true}`)
	})
	s.submit("pz", 25, func(tk *task.Task) {
		if tk.ID < "pz-0005" {
			tk.Input = task.Input(`{"messages":[{"role":"user","content":"poison"}]}`)
		}
	})
	embed := func(tk *task.Task) {
		tk.Endpoint, tk.Input = task.EndpointEmbeddings, task.Input(`{"input":"`+tk.ID+`"}`)
	}
	s.submit("e431", 300, embed)
	s.submit("e32", 960, embed)
	s.submit("stale", 12, func(tk *task.Task) { tk.MaxAttempts = 1 })

	t.Run("9101 9102 an endpoint that is missing on one device", func(t *testing.T) {
		s.all(t, "missing", task.Success)
		requests := f.Device("n404").Stats().Requests
		require.LessOrEqual(t, requests, int64(16), "it gets no more after a few")
		d := s.device(t, "n404")
		require.Len(t, d.Declines, 1)
		require.Equal(t, []any{task.EndpointChat, "missing", 404, "no_endpoint"}, []any{d.Declines[0].Endpoint, d.Declines[0].Model, d.Declines[0].Status, d.Declines[0].Why})
	})
	t.Run("and on every device", func(t *testing.T) {
		for _, st := range s.all(t, "nowhere", task.Failed) {
			require.ElementsMatch(t, []string{"n405", "n501"}, []string{st.Attempts[0].DeviceID, st.Attempts[1].DeviceID})
			require.Equal(t, task.ClassInvalid, st.Error.Class)
		}
	})
	t.Run("9103 9104 a prompt that is too long for one device", func(t *testing.T) {
		s.all(t, "ctx", task.Success)
		require.Zero(t, s.opened(t, "small"))
		require.Equal(t, 2, s.device(t, "small").Context["ctx"], "as its error says")
	})
	t.Run("and for every device", func(t *testing.T) {
		for _, st := range s.all(t, "ctx2", task.Failed) {
			require.Len(t, st.Attempts, 2)
			require.Contains(t, string(st.Output), "exceed_context_size_error", "in the device's own words")
		}
	})
	t.Run("9105 answers without an answer", func(t *testing.T) {
		for _, st := range s.all(t, "noans", task.Success) {
			require.Contains(t, string(st.Output), `"content":"ok"`)
		}
	})
	t.Run("9106 a device that asks for a pause", func(t *testing.T) {
		for _, st := range s.all(t, "loading", task.Success) {
			for _, a := range st.Attempts {
				require.Contains(t, []task.ErrorClass{task.ClassThrottled, task.ClassNone}, a.Class)
			}
		}
		loading.mu.Lock()
		defer loading.mu.Unlock()
		require.Zero(t, loading.early, "requests before the time")
	})
	t.Run("9107 a failed generation", func(t *testing.T) {
		require.Len(t, s.all(t, "f424", task.Success)[0].Attempts, 4)
	})
	t.Run("9108 a response in the background", func(t *testing.T) {
		require.Contains(t, string(s.all(t, "bg", task.Success)[0].Output), "output_text")
	})
	t.Run("9109 9110 9111 tasks that every device fails", func(t *testing.T) {
		s.in.Await(t, s.ids["pz"], 2*harness.Patience)
		for i, id := range s.ids["pz"] {
			want := task.Success
			if i < 5 {
				want = task.Failed
			}
			require.Equal(t, want, s.api.Status(t, id).State, id)
		}
		require.Zero(t, s.opened(t, "p1", "p2", "p3"))
	})
	t.Run("9113 many tasks in one request", func(t *testing.T) {
		s.all(t, "e431", task.Success)
		require.Zero(t, f.Device("e431").Stats().Errors)
	})
	t.Run("9114 a batched request that is too large", func(t *testing.T) {
		s.all(t, "e32", task.Success)
		require.LessOrEqual(t, f.Device("e32").Stats().Errors, int64(4))
		if f.Device("e32").Stats().Errors > 0 {
			require.LessOrEqual(t, s.device(t, "e32").MaxBatch["e32"], 32)
		}
	})
	t.Run("kept connections that the device closes", func(t *testing.T) {
		for _, st := range s.all(t, "stale", task.Success) {
			require.Len(t, st.Attempts, 1)
		}
		require.Zero(t, s.opened(t, "stale"))
	})
}

// oddTasks are the tasks of a test, by model.
type oddTasks struct {
	t   *testing.T
	in  *harness.Installation
	api *harness.API
	ids map[string][]string
}

func (s *oddTasks) submit(model string, n int, change func(*task.Task)) {
	s.t.Helper()
	tasks, ids := harness.Chats(model, n)
	for _, tk := range tasks {
		tk.Model = model
		if change != nil {
			change(tk)
		}
	}
	require.Equal(s.t, ids, s.api.Submit(s.t, tasks...))
	s.ids[model] = ids
}

// all waits for the tasks of a model, which must end in a state.
func (s *oddTasks) all(t *testing.T, model string, state task.State) (out []api.Status) {
	t.Helper()
	s.in.Await(t, s.ids[model], 2*harness.Patience)
	for _, id := range s.ids[model] {
		st := s.api.Status(t, id)
		require.Equal(t, state, st.State, "%s: %+v %+v", id, st.Error, st.Attempts)
		out = append(out, st)
	}
	return out
}

// opened counts how often breakers of devices opened.
func (s *oddTasks) opened(t *testing.T, devices ...string) int {
	t.Helper()
	return harness.SQL[int](t, s.in, "SELECT count(*) FROM audit_log WHERE action = 'breaker.opened' AND device_id = ANY($1)", devices)
}

func (s *oddTasks) device(t *testing.T, id string) api.DeviceStatus {
	t.Helper()
	var list api.DeviceList
	s.api.Get(t, "/v1/devices", &list)
	for _, d := range list.Devices {
		if d.ID == id {
			return d
		}
	}
	require.FailNow(t, "no device "+id)
	return api.DeviceStatus{}
}

const okAnswer = `{"choices":[{"index":0,"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}]}`

// noAnswers answers 200 five times without an answer, and then well.
type noAnswers struct {
	mu sync.Mutex
	n  int
}

func (s *noAnswers) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	bad := []string{
		`{"choices":[{"index":0,"message":{"role":"assistant","content":""},"finish_reason":"abort"}]}`,
		`{"error":{"message":"worker limit reached","code":502}}`, `{"choices":[]}`, `null`, `[]`,
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n++; s.n <= len(bad) {
		_, _ = fmt.Fprint(w, bad[s.n-1])
		return
	}
	_, _ = fmt.Fprint(w, okAnswer)
}

// paused asks for a pause of three seconds with its first answer, and counts the requests that come before that
// is over, except for those that were on their way.
type paused struct {
	mu    sync.Mutex
	until time.Time
	asked int
	early int
}

func (s *paused) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	const slots = 4
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	switch {
	case s.until.IsZero():
		s.until = now.Add(3 * time.Second)
	case now.After(s.until):
		_, _ = fmt.Fprint(w, okAnswer)
		return
	}
	if s.asked++; s.asked > slots {
		s.early++
	}
	w.Header().Set("Retry-After", "3")
	w.WriteHeader(http.StatusServiceUnavailable)
	_, _ = fmt.Fprint(w, `{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}`)
}
