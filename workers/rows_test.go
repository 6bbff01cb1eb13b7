package workers

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
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

// playedElsewhere names the tests of rows that no device plays.
var playedElsewhere = map[verdict.Kind]string{
	verdict.Stale:       "TestARequestLostOnAKeptConnectionIsSentAgain",
	verdict.Unproven:    "TestADeviceThatCallsEverythingInvalidIsNotTrusted",
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
	more, err := filepath.Glob("payload/*_test.go")
	require.NoError(t, err)
	var source strings.Builder
	for _, f := range append(files, more...) {
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		source.Write(b)
	}
	for _, p := range fleet.Plays() {
		require.NotNil(t, verdict.Kind(p.Kind()).Row())
	}
	for kind, test := range playedElsewhere {
		require.NotNil(t, kind.Row())
		require.Contains(t, source.String(), "\nfunc "+test+"(t *testing.T) {", "%s: there is no %s", kind, test)
	}
}

// scene is a row as it is played: a device that is odd, and a task for it.
type scene struct {
	fleet.Play
	row      *verdict.Row
	id       string // of the device, and of the tasks
	endpoint string
	tasks    int // in one batch
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
	all := map[verdict.Kind][]fleet.Play{}
	for _, p := range fleet.Plays() {
		k := verdict.Kind(p.Kind())
		all[k] = append(all[k], p)
	}
	for i := range verdict.Table {
		row := &verdict.Table[i]
		if playedElsewhere[row.Kind] != "" {
			continue
		}
		require.NotEmpty(t, all[row.Kind], "nothing plays the row %s", row.Kind)
		for _, p := range all[row.Kind] {
			s := &scene{Play: p, row: row, id: strings.ReplaceAll(p.Name, "/", "-"), endpoint: p.Fault.Endpoint, tasks: 1}
			switch {
			case p.Away == fleet.AwayBlackhole && runtime.GOOS != "linux":
				continue
			case row.Next == verdict.Halves:
				s.endpoint, s.tasks = task.EndpointEmbeddings, 8
			}
			scenes, specs = append(scenes, s), append(specs, fleet.Spec{ID: s.id, Slots: 2})
		}
	}
	y := newYard(t, specs...)
	y.withRegistry()
	y.retryOn("good")
	y.workers(cfg)
	for _, s := range scenes {
		if s.row.Next == verdict.Second { // it is believed because it answers others
			y.send(s.id, chat("before-"+s.id))
			require.Equal(t, task.Success, y.only("before-"+s.id).State)
		}
		y.perform(s)
	}
	return y, scenes
}

// perform sends the tasks of a scene to its device.
func (y *yard) perform(s *scene) {
	y.t.Helper()
	d := y.fleet.Device(s.id)
	require.NoError(y.t, d.Play(s.Play))
	b := task.Batch{ID: task.NewID(), Device: task.DeviceRef{ID: s.id, URL: d.URL(), Slots: 2}, Model: "m"}
	for n := range s.tasks {
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
		t.Run(s.Name, func(t *testing.T) {
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
			require.Equal(t, s.Fault.Kind == fleet.Reply, first.Status == s.Fault.Status && first.Status > 0)
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
		require.Equal(t, s.counts(), opened[s.id], "%s: counts %s", s.Name, s.row.Counts)
		if s.row.Next == verdict.AfterPause && (s.Fault.Header["Retry-After"] != "" || s.Fault.Until > 0) {
			require.True(t, healths[s.id].ThrottledUntil.After(time.Now()), "%s is paused", s.Name)
		}
	}
}

// counts reports whether the row is a fault of the device.
func (s *scene) counts() bool {
	switch s.row.Counts {
	case verdict.CountsFault, verdict.CountsFirst, verdict.CountsTimeout:
		return true
	case verdict.CountsSuspect: // a quarter, if it answers others
		return s.row.Next != verdict.Second
	}
	return false
}
