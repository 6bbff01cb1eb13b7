package workers

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
	"github.com/batchyard/batchyard/test/testenv"
	"github.com/batchyard/batchyard/workers/verdict"
)

// play is how a simulated device plays a row of the table.
type play struct {
	name     string
	fault    fleet.Fault
	spec     fleet.Spec
	endpoint string                                     // "": chat
	change   func(t *testing.T, d *fleet.Device) string // returns the URL to use, "" for the device's
	tasks    int                                        // in one batch; 0: 1
}

func reply(status int, body string, header ...string) play {
	h := map[string]string{}
	for i := 0; i+1 < len(header); i += 2 {
		h[header[i]] = header[i+1]
	}
	return play{name: strconv.Itoa(status), fault: fleet.Fault{Kind: fleet.Reply, Status: status, Body: body, Header: h}}
}

func (p play) at(endpoint string) play { p.endpoint = endpoint; return p }

func (p play) called(name string) play { p.name = name; return p }

// blackhole returns the URL of a port that takes no more connections: its queue of them is full.
func blackhole(t *testing.T, _ *fleet.Device) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = syscall.Close(fd) })
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	require.NoError(t, syscall.Listen(fd, 0))
	name, err := syscall.Getsockname(fd)
	require.NoError(t, err)
	for range 4 { // fill it; those that do not fit go on trying
		c, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK, 0)
		require.NoError(t, err)
		t.Cleanup(func() { _ = syscall.Close(c) })
		_ = syscall.Connect(c, name) // in progress
	}
	return "http://127.0.0.1:" + strconv.Itoa(name.(*syscall.SockaddrInet4).Port)
}

func stopped(_ *testing.T, d *fleet.Device) string { d.Stop(); return "" }

func asTLS(_ *testing.T, d *fleet.Device) string {
	return strings.Replace(d.URL(), "http:", "https:", 1)
}

// plays has at least one play for each row, except for those that other tests play.
func plays() map[verdict.Kind][]play {
	date := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(http.TimeFormat) }
	choice := func(reason string) string {
		return `{"choices":[{"index":0,"message":{"role":"assistant","content":""},"finish_reason":"` + reason + `"}]}`
	}
	resp := task.EndpointResponses
	return map[verdict.Kind][]play{
		verdict.Refused:        {{name: "stopped", change: stopped}},
		verdict.ConnectTimeout: {{name: "blackhole", change: blackhole}},
		verdict.TLS:            {{name: "no TLS", change: asTLS}},
		verdict.Reset:          {{name: "reset", fault: fleet.Fault{Kind: fleet.Reset}}},
		verdict.NoFirstByte:    {{name: "hang", fault: fleet.Fault{Kind: fleet.Hang}}},
		verdict.SlowBody:       {{name: "stall", fault: fleet.Fault{Kind: fleet.Stall}}},
		verdict.Cut:            {{name: "truncate", fault: fleet.Fault{Kind: fleet.Truncate}}},

		verdict.Redirect:         {reply(301, "", "Location", "/elsewhere"), reply(307, "", "Location", "/elsewhere"), reply(304, "")},
		verdict.Invalid:          {reply(400, `{"error":{"message":"no","type":"BadRequestError"}}`), reply(422, `{"detail":[]}`), reply(418, ""), reply(402, "")},
		verdict.Auth:             {reply(401, ""), reply(403, "")},
		verdict.NoEndpoint:       {reply(404, "404 page not found"), reply(405, ""), reply(410, ""), reply(501, "")},
		verdict.NoModel:          {reply(404, `{"error":{"message":"The model m does not exist.","code":404}}`), reply(400, `{"error":{"message":"Invalid model name passed in model=m"}}`)},
		verdict.TooLong:          {{name: "llama.cpp", spec: fleet.Spec{Context: 1}}, reply(500, `{"error":{"code":500,"message":"the request exceeds the available context size. try increasing the context size"}}`)},
		verdict.BodyTooLarge:     {reply(413, "<html>"), {name: "body", spec: fleet.Spec{MaxBody: 10}}},
		verdict.BatchTooLarge:    {{name: "TEI", spec: fleet.Spec{MaxItems: 2}, endpoint: task.EndpointEmbeddings, tasks: 8}},
		verdict.HeadersTooLarge:  {{name: "hyper", spec: fleet.Spec{MaxHeaders: 2}}},
		verdict.NotNow:           {reply(408, ""), reply(409, ""), reply(425, ""), reply(499, "")},
		verdict.GenerationFailed: {reply(424, `{"error":"Request failed during generation","error_type":"generation"}`)},
		verdict.TooMany:          {reply(429, ""), reply(429, "", "Retry-After", "3600").called("429 for an hour")},
		verdict.Overloaded:       {reply(529, "")},
		verdict.Paused: {reply(503, "", "Retry-After", "20"), reply(503, "", "Retry-After", date(time.Hour)).called("503 until then"),
			reply(529, "", "Retry-After", "20"), reply(503, "", "Retry-After", "100000").called("503 for a day")},
		verdict.Loading:        {reply(503, `{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}`)},
		verdict.Unavailable:    {reply(503, "")},
		verdict.ServerError:    {reply(500, ""), reply(505, ""), reply(599, "")},
		verdict.BadGateway:     {reply(502, "")},
		verdict.GatewayTimeout: {reply(504, "")},

		verdict.BrokenJSON:  {{name: "broken", fault: fleet.Fault{Kind: fleet.BadJSON}}, reply(200, "").called("empty")},
		verdict.ErrorObject: {reply(200, `{"error":{"message":"worker limit reached","code":502}}`)},
		verdict.NoAnswer:    {reply(200, `null`).called("null"), reply(200, `[]`).called("list"), reply(200, `{"choices":[]}`).called("choices")},
		verdict.Aborted:     {reply(200, choice("abort"))},
		verdict.Unfinished:  {reply(200, `{"status":"queued","output":[]}`).at(resp).called("queued"), reply(200, `{"status":"in_progress","output":[]}`).at(resp).called("in progress")},
		verdict.Unsuccess:   {reply(200, `{"status":"failed","output":[]}`).at(resp).called("failed"), reply(200, `{"status":"cancelled","output":[]}`).at(resp).called("cancelled")},
		verdict.Endless:     {{name: "endless", fault: fleet.Fault{Kind: fleet.Endless}}},
		verdict.Unsplit:     {{name: "partial", fault: fleet.Fault{Kind: fleet.Partial}, endpoint: task.EndpointEmbeddings, tasks: 8}},
	}
}

// playedElsewhere names the tests of rows that no device plays.
var playedElsewhere = map[verdict.Kind]string{
	verdict.Stale:       "TestARequestLostOnAKeptConnectionIsSentAgain",
	verdict.BreakerOpen: "TestTheBreakerOpensHalfOpensAndCloses",
	verdict.Cancelled:   "TestCancelledTasksStop",
	verdict.Draining:    "TestDrainGivesBackTasksThatDoNotEnd",
	verdict.Expired:     "TestTheBreakerStaysClosedForOtherFaults",
	verdict.Unsendable:  "TestBody",
	verdict.Oversized:   "TestTheEngineBoundsAnswersAndFollowsNoRedirects",
}

// The tests that are named instead of a play exist.
func TestEveryRowIsPlayed(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*_test.go")
	require.NoError(t, err)
	var source strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		source.Write(b)
	}
	for kind, test := range playedElsewhere {
		require.NotNil(t, kind.Row())
		require.Contains(t, source.String(), "\nfunc "+test+"(t *testing.T) {", kind)
	}
}

// scene is a row as it is played: a device that is odd, and a task for it.
type scene struct {
	play
	row *verdict.Row
	id  string // of the device, and of the tasks
}

// withRegistry registers the devices of the yard, so that workers know what else could run a task.
func (y *yard) withRegistry() {
	y.t.Helper()
	rdb := testenv.RedisAt(y.t, y.redis.Addr())
	y.deps.Registry = store.NewRegistry(rdb, store.Config{Timeout: time.Hour}, "t:")
	for _, d := range y.fleet.Devices() {
		_, err := y.deps.Registry.Beat(y.t.Context(), device.Device{ID: d.ID(), URL: d.URL(), Models: []string{"*"}, Slots: d.Spec().Slots, Queue: -1, InFlight: -1})
		require.NoError(y.t, err)
	}
}

// retryOn plays a router that sends what comes back to a device, in batches of one.
func (y *yard) retryOn(id string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.again = func(tk *task.Task) {
		d := y.fleet.Device(id)
		if err := y.client.Produce(context.Background(), stream.Message{Topic: stream.Batches, Key: id, Value: frameOf(y.t, d, y.deps.Credits, tk)}); err != nil {
			y.t.Error(err)
		}
	}
}

// stage sets up a yard in which every row is played by a device of its own, beside one that is well.
func stage(t *testing.T, cfg Config) (*yard, []*scene) {
	t.Helper()
	var scenes []*scene
	specs := []fleet.Spec{{ID: "good", Slots: 16}}
	all := plays()
	for i := range verdict.Table {
		row := &verdict.Table[i]
		if playedElsewhere[row.Kind] != "" {
			continue
		}
		require.NotEmpty(t, all[row.Kind], "nothing plays the row %s", row.Kind)
		for n, p := range all[row.Kind] {
			s := &scene{p, row, fmt.Sprintf("%s-%d", row.Kind, n)}
			if row.Kind == verdict.ConnectTimeout && runtime.GOOS != "linux" {
				continue
			}
			s.spec.ID, s.spec.Slots = s.id, 2
			scenes, specs = append(scenes, s), append(specs, s.spec)
		}
	}
	y := newYard(t, specs...)
	y.withRegistry()
	y.retryOn("good")
	y.workers(cfg)
	for _, s := range scenes {
		y.perform(s)
	}
	return y, scenes
}

// perform sends the tasks of a scene to its device.
func (y *yard) perform(s *scene) {
	y.t.Helper()
	d := y.fleet.Device(s.id)
	url := d.URL()
	if s.change != nil {
		if u := s.change(y.t, d); u != "" {
			url = u
		}
	}
	d.SetFault(s.fault)
	b := task.Batch{ID: task.NewID(), Device: task.DeviceRef{ID: s.id, URL: url, Slots: 2}, Model: "m"}
	for n := range max(1, s.tasks) {
		tk := chat(s.id)
		switch s.endpoint {
		case task.EndpointEmbeddings:
			tk = embed(s.id, `"x"`)
		case task.EndpointResponses:
			tk.Input = task.Input(`{"input":"hello"}`)
		}
		if s.endpoint != "" {
			tk.Endpoint = s.endpoint
		}
		if n > 0 {
			tk.ID = fmt.Sprintf("%s/%d", s.id, n)
		}
		tk.Normalize(time.Now())
		b.Endpoint = tk.Endpoint
		b.Assignments = append(b.Assignments, task.Assignment{Task: *tk, Device: b.Device, Attempt: 1, AssignedAt: time.Now()})
	}
	frame, err := wire.EncodeFrame(wire.FrameBatches, []task.Batch{b})
	require.NoError(y.t, err)
	require.NoError(y.t, y.client.Produce(y.t.Context(), stream.Message{Topic: stream.Batches, Key: s.id, Value: frame}))
}

func rowConfig() Config {
	cfg := testConfig()
	cfg.RequestTimeout, cfg.ConnectTimeout, cfg.MaxAttempts, cfg.BreakerRatio = 3*time.Second, 500*time.Millisecond, 5, 1
	cfg.HangMin, cfg.BreakerFails = time.Hour, 1000
	return cfg
}

// Every row of the table, over HTTP: where the task goes next, what its attempts say, and that it ends well
// because another device can run it.
func TestEveryRowLeadsToAnAnswer(t *testing.T) {
	y, scenes := stage(t, rowConfig())
	for _, s := range scenes {
		t.Run(string(s.row.Kind)+"/"+s.name, func(t *testing.T) {
			res := y.only(s.id)
			require.Equal(t, task.Success, res.State, "%+v", res.Attempts)
			if s.row.Next == verdict.Halves {
				for n := range s.tasks - 1 {
					require.Equal(t, task.Success, y.only(fmt.Sprintf("%s/%d", s.id, n+1)).State)
				}
				require.Len(t, res.Attempts, 1)
				require.Equal(t, s.id, res.DeviceID, "a smaller request works there")
				return
			}
			want := []string{s.id, "good"}
			if s.row.Next == verdict.Here {
				want = []string{s.id, s.id, "good"}
			}
			var went []string
			for _, a := range res.Attempts {
				went = append(went, a.DeviceID)
			}
			require.Equal(t, want, went)
			first := res.Attempts[0]
			require.Equal(t, s.row.Class, first.Class)
			read, _, _ := strings.Cut(s.row.Reads, "{why}")
			read = strings.NewReplacer("{device}", s.id, "{status}", strconv.Itoa(first.Status), "{limit}", strconv.Itoa(1<<20)).Replace(read)
			require.Contains(t, first.Message, read)
			require.Equal(t, s.fault.Kind == fleet.Reply, first.Status == s.fault.Status && first.Status > 0)
		})
	}
	y.committed()
}

// Every row of the table, over HTTP: whether it opens a breaker that opens at the first fault, and whether
// the device gets nothing while it asked for a pause.
func TestEveryRowCountsAsTheTableSays(t *testing.T) {
	cfg := rowConfig()
	cfg.BreakerFails, cfg.LocalRetries, cfg.BreakerOpen, cfg.BreakerOpenMax = 1, 0, time.Hour, time.Hour
	y, scenes := stage(t, cfg)
	opened := map[string]bool{}
	for _, s := range scenes {
		require.Equal(t, task.Success, y.only(s.id).State, s.id)
	}
	count := 0
	for _, s := range scenes {
		if s.counts() {
			count++
		}
	}
	y.until("breakers to open", func() bool { return y.count(task.BreakerOpened) >= count })
	for _, e := range y.written(task.BreakerOpened) {
		opened[e.DeviceID] = true
	}
	_, healths, err := y.deps.Rates.Load(t.Context())
	require.NoError(t, err)
	for _, s := range scenes {
		require.Equal(t, s.counts(), opened[s.id], "%s %s: counts %s", s.row.Kind, s.name, s.row.Counts)
		if s.row.Next == verdict.AfterPause && s.fault.Header["Retry-After"] != "" {
			require.True(t, healths[s.id].ThrottledUntil.After(time.Now()), "%s %s is paused", s.row.Kind, s.name)
		}
	}
}

// counts reports whether the row is a fault of the device.
func (s *scene) counts() bool {
	switch s.row.Counts {
	case verdict.CountsFault, verdict.CountsFirst, verdict.CountsTimeout, verdict.CountsSuspect:
		return true
	}
	return false
}
