package workers

import (
	"context"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/embedded"
	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
	"github.com/batchyard/batchyard/test/testenv"
)

// yard is a test's own topics and Redis, with simulated devices and what workers wrote so far.
type yard struct {
	t      testing.TB
	client *stream.Client
	redis  *embedded.Redis
	deps   Deps
	fleet  *fleet.Fleet

	mu       sync.Mutex    // for what follows; conditions of until run under it
	changed  chan struct{} // closed at each change
	results  map[string][]*task.Result
	requeued []*task.Task
	events   []task.Event
	dead     int
	again    func(*task.Task) // plays the router for tasks that come back
}

func newYard(t testing.TB, specs ...fleet.Spec) *yard {
	t.Helper()
	return newYardAt(t, testenv.Brokers(t), specs...)
}

func newYardAt(t testing.TB, brokers []string, specs ...fleet.Spec) *yard {
	t.Helper()
	r, err := embedded.StartRedis(t.Context(), embedded.RedisOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	client, err := stream.Open(t.Context(), stream.Config{
		Brokers: brokers, TopicPrefix: testenv.TopicPrefix(), Partitions: 3, HeartbeatInterval: 100 * time.Millisecond,
		CommitInterval: 20 * time.Millisecond, FetchWait: 50 * time.Millisecond,
	}, testenv.Logger(t), nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	_, err = client.CreateTopics(t.Context())
	require.NoError(t, err)
	rdb := testenv.RedisAt(t, r.Addr())
	y := &yard{t: t, client: client, redis: r, fleet: startFleet(t, specs...), changed: make(chan struct{}), results: map[string][]*task.Result{}}
	y.deps = Deps{Stream: client, Credits: store.NewCredits(rdb, store.Config{}, "t:"), Rates: store.NewRates(rdb, "t:"),
		Cancels: store.NewOverrides(rdb, store.Config{}, "t:"), Finished: store.NewFinished(rdb, "t:"), Logger: testenv.Logger(t), Metrics: metrics.New(nil), Instance: "workers@test"}
	y.watch(stream.Results, func(rec *stream.Record) error {
		res, err := wire.DecodeResult(rec.Value, "")
		if err == nil {
			err = res.Validate()
			y.results[res.TaskID] = append(y.results[res.TaskID], res)
		}
		return err
	})
	for _, p := range task.Priorities {
		y.watch(stream.TasksTopic(p), func(rec *stream.Record) error {
			tk, err := wire.DecodeOwnTask(rec.Value, rec.Header(wire.HeaderContentType))
			if err != nil {
				return err
			}
			if err := tk.Validate(task.Limits{MaxInput: 1 << 20}); err != nil {
				return err
			}
			y.requeued = append(y.requeued, tk)
			if y.again != nil {
				y.again(tk)
			}
			return nil
		})
	}
	y.watch(stream.Events, func(rec *stream.Record) error {
		es, err := wire.DecodeFrame[task.Event](wire.FrameEvents, rec.Value)
		y.events = append(y.events, es...)
		return err
	})
	y.watch(stream.DLQ, func(*stream.Record) error { y.dead++; return nil })
	return y
}

func (y *yard) watch(topic string, f func(*stream.Record) error) {
	y.run(func(ctx context.Context, ready func()) error {
		return y.client.Consume(ctx, stream.ConsumerConfig{Group: "test", Topic: topic, DrainTimeout: time.Second}, func(_ context.Context, recs []*stream.Record) {
			y.mu.Lock()
			defer y.mu.Unlock()
			for _, r := range recs {
				if err := f(r); err != nil {
					y.t.Errorf("reading %s: %v", topic, err)
				}
				r.Done()
			}
			close(y.changed)
			y.changed = make(chan struct{})
		}, ready)
	})
}

func (y *yard) run(f func(ctx context.Context, ready func()) error) (stop func()) {
	y.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- f(ctx, func() { close(ready) }) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(y.t, testenv.Receive(y.t, done, "the end of a stage"))
	})
	y.t.Cleanup(stop)
	testenv.Receive(y.t, ready, "a stage to be ready")
	return stop
}

func (y *yard) workers(cfg Config) (s *Workers, stop func()) {
	y.t.Helper()
	s, err := New(cfg, y.deps)
	require.NoError(y.t, err)
	return s, y.run(s.Run)
}

func (y *yard) until(what string, cond func() bool) {
	y.t.Helper()
	timeout := time.After(testenv.Patience)
	for {
		y.mu.Lock()
		ok, changed := cond(), y.changed
		y.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			y.mu.Lock()
			defer y.mu.Unlock()
			counts := map[task.Action]int{}
			for _, e := range y.events {
				counts[e.Action]++
			}
			require.FailNow(y.t, "timed out waiting for "+what, "%d results, %d requeued, events %v", len(y.results), len(y.requeued), counts)
		}
	}
}

// eventually waits for a condition of a device or a worker.
func (y *yard) eventually(what string, cond func() bool) {
	y.t.Helper()
	require.Eventually(y.t, cond, testenv.Patience, 2*time.Millisecond, what)
}

func (y *yard) committed() {
	y.t.Helper()
	y.eventually("batches are finished", func() bool {
		n, err := y.client.Lag(y.t.Context(), Stage, stream.Batches)
		return err == nil && n == 0
	})
}

func (y *yard) count(a task.Action) (n int) {
	for _, e := range y.events {
		if e.Action == a {
			n++
		}
	}
	return n
}

// written returns the events of an action.
func (y *yard) written(a task.Action) (es []task.Event) {
	y.mu.Lock()
	defer y.mu.Unlock()
	for _, e := range y.events {
		if e.Action == a {
			es = append(es, e)
		}
	}
	return es
}

// answers returns the results so far, by task.
func (y *yard) answers() map[string][]*task.Result {
	y.mu.Lock()
	defer y.mu.Unlock()
	return maps.Clone(y.results)
}

// returned returns the tasks that came back to the router so far.
func (y *yard) returned() []*task.Task {
	y.mu.Lock()
	defer y.mu.Unlock()
	return slices.Clone(y.requeued)
}

// only returns the only result of a task.
func (y *yard) only(id string) *task.Result {
	y.t.Helper()
	y.until("the result of "+id, func() bool { return len(y.results[id]) > 0 })
	y.mu.Lock()
	defer y.mu.Unlock()
	require.Len(y.t, y.results[id], 1)
	return y.results[id][0]
}

// back waits until a task came back for the n-th time, and returns it.
func (y *yard) back(id string, n int) (tk *task.Task) {
	y.t.Helper()
	y.until(id+" to come back", func() bool {
		seen := 0
		for _, r := range y.requeued {
			if r.ID == id {
				seen++
				tk = r
			}
		}
		return seen >= n
	})
	return tk
}

func chat(id string) *task.Task {
	return &task.Task{ID: id, Model: "m", Input: task.Input(`{"messages":[{"role":"user","content":"hello ` + id + `"}]}`)}
}

func embed(id, input string) *task.Task {
	return &task.Task{ID: id, Model: "m", Endpoint: task.EndpointEmbeddings, Input: task.Input(`{"input":` + input + `}`)}
}

func frameOf(t require.TestingT, d *fleet.Device, credits *store.Credits, tasks ...*task.Task) []byte {
	return frameFor(t, task.DeviceRef{ID: d.ID(), URL: d.URL(), Slots: d.Spec().Slots}, credits, tasks...)
}

func frameFor(t require.TestingT, ref task.DeviceRef, credits *store.Credits, tasks ...*task.Task) []byte {
	b := task.Batch{ID: task.NewID(), Device: ref}
	pool := device.Pool(ref.ID, device.ClassSingle)
	grants, err := credits.Acquire(context.Background(), "router", []device.Want{{Pool: pool, N: len(tasks), Limit: 1 << 20}})
	require.NoError(t, err)
	for _, tk := range tasks {
		tk.Normalize(time.Now())
		b.Endpoint, b.Model = tk.Endpoint, tk.Model
		b.Assignments = append(b.Assignments, task.Assignment{Task: *tk, Device: b.Device, Attempt: tk.Tried() + 1,
			Lease: task.Lease{Pool: pool, ID: grants[0].Lease}, AssignedAt: time.Now()})
	}
	frame, err := wire.EncodeFrame(wire.FrameBatches, []task.Batch{b})
	require.NoError(t, err)
	return frame
}

// send writes a batch as a batcher does.
func (y *yard) send(deviceID string, tasks ...*task.Task) {
	y.t.Helper()
	frame := frameOf(y.t, y.fleet.Device(deviceID), y.deps.Credits, tasks...)
	require.NoError(y.t, y.client.Produce(y.t.Context(), stream.Message{Topic: stream.Batches, Key: deviceID, Value: frame}))
}

func (y *yard) creditsUsed(deviceID string) int {
	used, err := y.deps.Credits.Used(context.Background(), []string{device.Pool(deviceID, device.ClassSingle)})
	require.NoError(y.t, err)
	return used[0]
}
