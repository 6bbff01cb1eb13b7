package batcher

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/embedded"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
	"github.com/batchyard/batchyard/test/testenv"
)

// yard is a test's own topics and Redis, with what batchers wrote so far.
type yard struct {
	t      *testing.T
	client *stream.Client
	deps   Deps

	mu      sync.Mutex
	changed chan struct{} // closed at each change
	batches []task.Batch
	seen    map[string]int // by task id
	events  map[task.Action]int
	dead    int
}

func newYard(t *testing.T) *yard {
	t.Helper()
	return newYardAt(t, testenv.Brokers(t))
}

func newYardAt(t *testing.T, brokers []string) *yard {
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
	y := &yard{t: t, client: client, changed: make(chan struct{}), seen: map[string]int{}, events: map[task.Action]int{}}
	y.deps = Deps{Stream: client, Metrics: metrics.New(nil), Logger: testenv.Logger(t), Instance: "batcher@test",
		Credits: store.NewCredits(testenv.RedisAt(t, r.Addr()), store.Config{LeaseTTL: time.Second}, "t:")}
	y.watch(stream.Batches, func(rec *stream.Record) error {
		bs, err := wire.DecodeFrame[task.Batch](wire.FrameBatches, rec.Value)
		for _, b := range bs {
			y.batches = append(y.batches, b)
			if string(rec.Key) != b.Device.ID {
				err = errors.New("a batch under another key than its device")
			}
			for _, a := range b.Assignments {
				y.seen[a.Task.ID]++
			}
		}
		return err
	})
	y.watch(stream.Events, func(rec *stream.Record) error {
		es, err := wire.DecodeFrame[task.Event](wire.FrameEvents, rec.Value)
		for _, e := range es {
			y.events[e.Action]++
		}
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
			require.FailNow(y.t, "timed out waiting for "+what, "%d batches with %d tasks, events %v", len(y.batches), len(y.seen), y.events)
		}
	}
}

// sent returns the batches so far, and how often each task was in one.
func (y *yard) sent() ([]task.Batch, map[string]int) {
	y.mu.Lock()
	defer y.mu.Unlock()
	return slices.Clone(y.batches), maps.Clone(y.seen)
}

func (y *yard) committed() {
	y.t.Helper()
	require.Eventually(y.t, func() bool {
		n, err := y.client.Lag(y.t.Context(), Stage, stream.Assignments)
		return err == nil && n == 0
	}, testenv.Patience, 20*time.Millisecond, "assignments are not finished")
}

// assign writes frames of assignments as a router does.
func (y *yard) assign(deviceID, endpoint string, idle int, ids ...string) {
	y.t.Helper()
	var as []task.Assignment
	for _, id := range ids {
		tk := task.Task{ID: id, Model: "m", Endpoint: endpoint, Input: task.Input(`{"input":"x"}`)}
		tk.Normalize(time.Now())
		as = append(as, task.Assignment{Task: tk, Device: task.DeviceRef{ID: deviceID, URL: "http://" + deviceID, Slots: 2}, Attempt: 1, IdleSlots: idle, AssignedAt: time.Now()})
	}
	frame, err := wire.EncodeFrame(wire.FrameAssignments, as)
	require.NoError(y.t, err)
	require.NoError(y.t, y.client.Produce(y.t.Context(), stream.Message{Topic: stream.Assignments, Key: deviceID, Value: frame}))
}

func ids(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprint(prefix, "-", i)
	}
	return out
}

// patient is a config with which no batch closes by time.
func patient() Config {
	cfg := testConfig()
	cfg.Batched.MaxWait, cfg.Single.MaxWait, cfg.Rules = time.Hour, time.Hour, nil
	cfg.Batched.MaxBytes, cfg.Single.MaxBytes = 1<<20, 1<<20
	cfg.Batched.MaxTokens = 1 << 20
	return cfg
}

func TestAssignmentsBecomeBatches(t *testing.T) {
	y := newYard(t)
	b := New(testConfig(), y.deps)
	y.run(b.Run)
	for i, id := range ids("frame", 20) {
		y.assign(fmt.Sprint("d", i%3), task.Endpoints[i%3], i%2, id+"-a", id+"-b")
	}
	require.NoError(t, y.client.Produce(t.Context(),
		stream.Message{Topic: stream.Assignments, Key: "d", Value: []byte("garbage")},
		stream.Message{Topic: stream.Assignments, Key: "d", Value: []byte("\xdd\xff\xff\xff\xff")}))
	y.until("every assignment", func() bool {
		return len(y.seen) == 40 && y.dead == 2 && y.events[task.BatchClosed] == 40 && y.events[task.RecordDeadLettered] == 2
	})
	batches, seen := y.sent()
	for id, n := range seen {
		require.Equal(t, 1, n, id)
	}
	for _, batch := range batches {
		require.NotEmpty(t, batch.ID)
		for _, a := range batch.Assignments {
			require.Equal(t, batch.Device, a.Device)
			require.Equal(t, batch.Endpoint, a.Task.Endpoint)
		}
	}
	y.committed()
}

// Only a freed credit, which leaves the device with nothing else to do, closes these batches.
func TestAFreedCreditClosesTheBatchOfAnIdleDevice(t *testing.T) {
	y := newYard(t)
	b := New(patient(), y.deps)
	y.run(b.Run)
	pool := device.Pool("d", device.ClassBatched)
	grants, err := y.deps.Credits.Acquire(t.Context(), "router", []device.Want{{Pool: pool, N: 4, Limit: 8}})
	require.NoError(t, err)
	tk := task.Task{ID: "held", Model: "m", Endpoint: task.EndpointEmbeddings, Input: task.Input(`{}`)}
	frame, err := wire.EncodeFrame(wire.FrameAssignments, []task.Assignment{{Task: tk, Device: task.DeviceRef{ID: "d"}, Lease: task.Lease{Pool: pool, ID: grants[0].Lease}}})
	require.NoError(t, err)
	require.NoError(t, y.client.Produce(t.Context(), stream.Message{Topic: stream.Assignments, Key: "d", Value: frame}))
	// Free credits until the batcher has the assignment.
	require.Eventually(t, func() bool {
		other, err := y.deps.Credits.Acquire(t.Context(), "router", []device.Want{{Pool: pool, N: 1, Limit: 8}})
		require.NoError(t, err)
		require.NoError(t, y.deps.Credits.Release(t.Context(), []device.Release{{Pool: pool, Lease: other[0].Lease, N: 1}}))
		return y.client.Ping(t.Context()) == nil && testLen(b) == 1
	}, testenv.Patience, 20*time.Millisecond)
	none, _ := y.sent()
	require.Empty(t, none, "the device has three other tasks")
	require.NoError(t, y.deps.Credits.Release(t.Context(), []device.Release{{Pool: pool, Lease: grants[0].Lease, N: 3}}))
	y.until("the batch", func() bool { return len(y.batches) == 1 })
	batches, _ := y.sent()
	require.Equal(t, string(ReasonIdle), batches[0].Reason)
}

func TestAStoppingBatcherWritesOpenBatches(t *testing.T) {
	y := newYard(t)
	b := New(patient(), y.deps)
	stop := y.run(b.Run)
	y.assign("d1", task.EndpointChat, 0, ids("a", 2)...)
	y.assign("d2", task.EndpointEmbeddings, 0, ids("b", 3)...)
	require.Eventually(t, func() bool { return testLen(b) == 5 }, testenv.Patience, 5*time.Millisecond)
	stop()
	y.until("the open batches", func() bool { return len(y.seen) == 5 })
	batches, _ := y.sent()
	for _, batch := range batches {
		require.Equal(t, string(ReasonDrain), batch.Reason)
	}
	y.committed()
}

// A batcher that takes over partitions also gets the assignments that the other had in open batches.
// The other drops them, leases included, so each leaves once.
func TestAnotherBatcherTakesOver(t *testing.T) {
	y := newYard(t)
	first := New(patient(), y.deps)
	y.run(first.Run)
	var all []string
	for i := range 12 {
		id := ids(fmt.Sprint("d", i), 1)
		y.assign(fmt.Sprint("device-", i), task.EndpointChat, 0, id...)
		all = append(all, id...)
	}
	require.Eventually(t, func() bool { return testLen(first) == len(all) }, testenv.Patience, 5*time.Millisecond)
	deps := y.deps
	deps.Metrics, deps.Instance = metrics.New(nil), "batcher-2@test"
	second := New(patient(), deps)
	stop := y.run(second.Run)
	require.Eventually(t, func() bool { return testLen(second) > 0 && testLen(first)+testLen(second) == len(all) }, testenv.Patience, 5*time.Millisecond)
	stop()
	y.until("the second's batches", func() bool { return len(y.seen) > 0 })
	require.Eventually(t, func() bool {
		y.mu.Lock()
		defer y.mu.Unlock()
		return testLen(first)+len(y.seen) >= len(all)
	}, testenv.Patience, 5*time.Millisecond)
	for i := range 12 { // two more fill every batch
		y.assign(fmt.Sprint("device-", i), task.EndpointChat, 0, ids(fmt.Sprint("more-", i), 3)...)
	}
	y.until("every assignment", func() bool {
		for _, id := range all {
			if y.seen[id] == 0 {
				return false
			}
		}
		return true
	})
	_, seen := y.sent()
	for _, id := range all {
		require.Equal(t, 1, seen[id], id)
	}
}

// testLen returns how many tasks are in open batches, from the batcher's own metric.
func testLen(b *Batcher) int {
	return int(gauge(b.deps.Metrics.Batcher.OpenTasks))
}

// Batches that open after a change of the thresholds follow the new ones; one that is open keeps its own.
func TestThresholdsChangeWhileTheBatcherRuns(t *testing.T) {
	y := newYard(t)
	b := New(patient(), y.deps)
	y.run(b.Run)
	y.assign("d1", task.EndpointChat, 0, "waits")
	require.Eventually(t, func() bool { return testLen(b) == 1 }, testenv.Patience, 5*time.Millisecond, "it waits")
	next := patient()
	next.Rules = []Rule{{Endpoint: task.EndpointChat, Model: "m", MaxCount: 1, MaxBytes: 1 << 20, MaxTokens: 1 << 20, MaxWait: time.Hour}}
	next.MaxInFlight = 1
	b.Reload(next)
	require.NotEqual(t, 1, b.cfg.MaxInFlight)
	y.assign("d2", task.EndpointChat, 0, "leaves")
	y.until("it leaves", func() bool { return y.seen["leaves"] == 1 })
	_, seen := y.sent()
	require.Zero(t, seen["waits"])
	y.assign("d1", task.EndpointChat, 0, "joins")
	require.Eventually(t, func() bool { return testLen(b) == 2 }, testenv.Patience, 5*time.Millisecond, "it joins the batch that is open")
}
