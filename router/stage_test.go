package router

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/embedded"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
	"github.com/batchyard/batchyard/test/testenv"
)

// yard is the topics and the Redis of one test, and collects what routers write.
type yard struct {
	t     *testing.T
	log   *stream.Client
	redis *embedded.Redis
	deps  Deps

	mu       sync.Mutex
	changed  chan struct{}            // closed at each change
	assigned map[string]int           // by task id
	leases   []device.Release         // of assignments that are not finished
	hold     bool                     // assignments stay in flight
	events   map[task.Action][]string // task or record ids
	results  map[string]*task.Result
	dead     []*stream.Record
}

func newYard(t *testing.T, partitions int) *yard {
	t.Helper()
	return newYardWith(t, stream.Config{Partitions: partitions})
}

func newYardWith(t *testing.T, cfg stream.Config) *yard {
	t.Helper()
	cfg.Brokers = testenv.Brokers(t)
	return newYardAt(t, cfg)
}

func newYardAt(t *testing.T, cfg stream.Config) *yard {
	t.Helper()
	r, err := embedded.StartRedis(t.Context(), embedded.RedisOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	cfg.TopicPrefix, cfg.HeartbeatInterval, cfg.CommitInterval, cfg.FetchWait = testenv.TopicPrefix(), 100*time.Millisecond, 20*time.Millisecond, 50*time.Millisecond
	l, err := stream.Open(t.Context(), cfg, testenv.Logger(t), nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	_, err = l.CreateTopics(t.Context())
	require.NoError(t, err)
	y := &yard{
		t: t, log: l, redis: r, deps: depsOn(t, testenv.RedisAt(t, r.Addr()), "t:", "router@test"), changed: make(chan struct{}),
		assigned: map[string]int{}, events: map[task.Action][]string{}, results: map[string]*task.Result{},
	}
	y.deps.Log = l
	settings, err := l.Settings(t.Context())
	require.NoError(t, err)
	y.deps.Retention = func(topic string) time.Duration { return settings[topic].Retention }
	y.watch(stream.Assignments, y.onAssignments)
	y.watch(stream.Events, func(rec *stream.Record) error {
		es, err := wire.DecodeFrame[task.Event](wire.FrameEvents, rec.Value)
		for _, e := range es {
			y.events[e.Action] = append(y.events[e.Action], e.ResourceID)
		}
		return err
	})
	y.watch(stream.Results, func(rec *stream.Record) error {
		res, err := wire.DecodeResult(rec.Value, "")
		if err == nil {
			y.results[res.TaskID] = res
		}
		return err
	})
	y.watch(stream.DLQ, func(rec *stream.Record) error { y.dead = append(y.dead, rec); return nil })
	return y
}

// onAssignments plays the workers: assignments finish at once, unless y.hold.
func (y *yard) onAssignments(rec *stream.Record) error {
	as, err := wire.DecodeFrame[task.Assignment](wire.FrameAssignments, rec.Value)
	for _, a := range as {
		y.assigned[a.Task.ID]++
		y.leases = append(y.leases, device.Release{Pool: a.Lease.Pool, Lease: a.Lease.ID, N: 1})
	}
	if !y.hold {
		return y.finish()
	}
	return err
}

func (y *yard) finish() error {
	rel := y.leases
	y.leases = nil
	return y.deps.Credits.Release(context.Background(), rel)
}

// watch reads a topic until the test ends.
func (y *yard) watch(topic string, f func(*stream.Record) error) {
	y.run(func(ctx context.Context, ready func()) error {
		return y.log.Consume(ctx, stream.ConsumerConfig{Group: "test", Topic: topic, DrainTimeout: time.Second}, func(_ context.Context, recs []*stream.Record) {
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

// run runs something until the test ends or stop is called; both wait until it has returned.
func (y *yard) run(f func(ctx context.Context, ready func()) error) (stop func()) {
	y.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- f(ctx, func() { close(ready) }) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(y.t, testenv.Receive(y.t, done, "a stage to stop"))
	})
	y.t.Cleanup(stop)
	testenv.Receive(y.t, ready, "a stage to be ready")
	return stop
}

func (y *yard) router(cfg Config, instance string) (stop func()) {
	y.t.Helper()
	deps := y.deps
	deps.Instance = instance
	r, err := New(cfg, deps)
	require.NoError(y.t, err)
	return y.run(r.Run)
}

// until waits for a condition on what was collected.
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
			for a, ids := range y.events {
				counts[a] = len(ids)
			}
			require.FailNow(y.t, "timed out waiting for "+what, "%d tasks assigned, %d results, %d dead letters, events %v", len(y.assigned), len(y.results), len(y.dead), counts)
		}
	}
}

func (y *yard) all(ids []string) func() bool {
	return func() bool {
		for _, id := range ids {
			if y.assigned[id] == 0 {
				return false
			}
		}
		return true
	}
}

func (y *yard) beat(ds ...device.Device) {
	y.t.Helper()
	for _, d := range ds {
		_, err := y.deps.Registry.Beat(y.t.Context(), d)
		require.NoError(y.t, err)
	}
}

func chat(id, model string) *task.Task {
	return &task.Task{ID: id, Model: model, Input: task.Input(`{"messages":[{"role":"user","content":"x"}]}`)}
}

func (y *yard) message(tk *task.Task, contentType string) stream.Message {
	y.t.Helper()
	b, err := wire.EncodeTask(tk, contentType)
	require.NoError(y.t, err)
	return stream.Message{Topic: stream.TasksTopic(tk.Priority), Key: tk.ID, Value: b}
}

func (y *yard) produce(tasks ...*task.Task) (ids []string) {
	y.t.Helper()
	msgs := make([]stream.Message, 0, len(tasks))
	for _, tk := range tasks {
		msgs = append(msgs, y.message(tk, wire.ContentJSON))
		ids = append(ids, tk.ID)
	}
	require.NoError(y.t, y.log.Produce(y.t.Context(), msgs...))
	return ids
}

func many(prefix string, n int, model string) []*task.Task {
	out := make([]*task.Task, n)
	for i := range out {
		out[i] = chat(fmt.Sprint(prefix, "-", i), model)
		out[i].Priority = task.Priorities[i%len(task.Priorities)]
	}
	return out
}

// committed waits until every record of a topic is done and committed.
func (y *yard) committed(topic string) {
	y.t.Helper()
	require.Eventually(y.t, func() bool {
		n, err := y.log.Lag(y.t.Context(), Stage, topic)
		return err == nil && n == 0
	}, testenv.Patience, 20*time.Millisecond, "%s has records that are not done", topic)
}

func TestTasksBecomeAssignments(t *testing.T) {
	y := newYard(t, 3)
	y.beat(dev("d1", 4, "m"), dev("d2", 1, "m", "n"))
	y.router(testConfig(), "router@test")
	ids := y.produce(many("task", 100, "m")...)

	other := chat("", "n") // as another client sends it: MessagePack, without an id, with a trace
	b, err := wire.EncodeTask(other, wire.ContentMsgpack)
	require.NoError(t, err)
	const trace = "0af7651916cd43dd8448eb211c80319c"
	late := chat("late", "m")
	late.Deadline = time.Now().Add(-time.Second)
	require.NoError(t, y.log.Produce(t.Context(),
		stream.Message{Topic: stream.TasksHigh, Key: "by-key", Value: b, Headers: []stream.Header{{Key: "traceparent", Value: []byte("00-" + trace + "-b7ad6b7169203331-01")}}},
		stream.Message{Topic: stream.TasksNormal, Key: "g", Value: []byte("\xff\x00garbage"), Headers: []stream.Header{{Key: "mine", Value: []byte("kept")}}},
		stream.Message{Topic: stream.TasksNormal, Key: "h", Value: []byte(`{"task_id":"no-model","input":{}}`)},
		y.message(late, wire.ContentJSON), y.message(chat("task-7", "m"), wire.ContentJSON)))
	y.until("every task", func() bool {
		return y.all(ids)() && len(y.dead) == 2 && y.results["late"] != nil && len(y.events[task.TaskDuplicate]) == 1 &&
			len(y.events[task.TaskAssigned]) == 101 && len(y.events[task.RecordDeadLettered]) == 2
	})
	y.mu.Lock()
	require.Equal(t, task.Expired, y.results["late"].State)
	require.Equal(t, task.ClassExpired, y.results["late"].Error.Class)
	require.Equal(t, []string{"task-7"}, y.events[task.TaskDuplicate])
	require.Len(t, y.events[task.TaskAccepted], 102)
	require.Len(t, y.events[task.TaskExpired], 1)
	for id, n := range y.assigned {
		require.Equal(t, 1, n, id)
	}
	for _, d := range y.dead {
		require.Equal(t, Stage, d.Header(records.HeaderDLQStage))
		require.NotEmpty(t, d.Header(records.HeaderDLQError))
		if string(d.Key) == "g" {
			require.Equal(t, "\xff\x00garbage", string(d.Value))
			require.Equal(t, "kept", d.Header("mine"))
		}
	}
	y.mu.Unlock()
	for _, topic := range []string{stream.TasksHigh, stream.TasksNormal, stream.TasksLow} {
		y.committed(topic)
	}
}

func TestTasksThatCannotRunDelayNoOthers(t *testing.T) {
	y := newYard(t, 2)
	y.beat(dev("d", 2, "m"))
	cfg := testConfig()
	cfg.MaxPendingTasks = 64
	y.router(cfg, "router@test")
	// All in one partition: only setting them aside lets the task behind them through.
	var msgs []stream.Message
	var unknown, far []string
	for i := range 300 {
		tk := chat(fmt.Sprint("unknown-", i), "unknown")
		unknown = append(unknown, tk.ID)
		if i%3 == 0 {
			tk = chat(fmt.Sprint("far-", i), "m")
			tk.NotBefore = time.Now().Add(time.Hour)
			far = append(far, tk.ID)
			unknown = unknown[:len(unknown)-1]
		}
		m := y.message(tk, wire.ContentJSON)
		m.Key = "one"
		msgs = append(msgs, m)
	}
	m := y.message(chat("behind", "m"), wire.ContentJSON)
	m.Key = "one"
	require.NoError(t, y.log.Produce(t.Context(), append(msgs, m)...))
	y.until("the task behind", y.all([]string{"behind"}))
	y.mu.Lock()
	require.Empty(t, y.events[task.TaskParked])
	require.Len(t, y.assigned, 1)
	y.mu.Unlock()
	y.beat(dev("late", 4, "unknown"))
	y.until("the tasks that were set aside", y.all(unknown))
	y.mu.Lock()
	require.Empty(t, y.events[task.TaskParked], "no task was written again")
	for action, want := range map[task.Action]int{task.TaskAccepted: 1, task.TaskQueued: 1} {
		times := map[string]int{}
		for _, id := range y.events[action] {
			times[id]++
			require.LessOrEqual(t, times[id], want, "%s of %s", action, id)
		}
	}
	for _, id := range far {
		require.Zero(t, y.assigned[id], "%s ran before its time", id)
	}
	for id, n := range y.assigned {
		require.Equal(t, 1, n, id)
	}
	y.mu.Unlock()
}

// A record can be as large as its topic accepts, without room for the headers of a parked task.
func TestATaskTooLargeToParkFails(t *testing.T) {
	y := newYardWith(t, stream.Config{Partitions: 1, Retention: 2 * time.Second, ParkedRetention: 2 * time.Second})
	y.deps.Limits.MaxInput = 4 << 20
	y.router(testConfig(), "router@test")
	limit := 0
	for _, topic := range stream.Topics {
		if topic.Name == stream.TasksNormal {
			limit = int(topic.MaxBytes)
		}
	}
	large := chat("large", "unknown")
	large.Input = task.Input(`{"x":"` + strings.Repeat("y", 4<<20-16) + `"}`)
	m := y.message(large, wire.ContentMsgpack)
	m.Key = ""
	room := limit - 128 - 32 - len(m.Value) - 100 // minus the overhead of a batch, a record and the headers
	m.Headers = append(m.Headers, stream.Header{Key: records.HeaderActor, Value: []byte(strings.Repeat("a", room))})
	require.NoError(t, y.log.Produce(t.Context(), m))
	y.until("the result of the large task", func() bool { return y.results["large"] != nil })
	y.mu.Lock()
	require.Equal(t, task.Failed, y.results["large"].State)
	require.Equal(t, task.ClassInvalid, y.results["large"].Error.Class)
	y.mu.Unlock()
	y.until("the event of its failure", func() bool { return len(y.events[task.TaskFailed]) == 1 })
}

// A task may wait for longer than its topic keeps records, in memory or set aside.
func TestAWaitingTaskOutlivesItsRecord(t *testing.T) {
	y := newYardWith(t, stream.Config{Partitions: 1, Retention: 3 * time.Second, ParkedRetention: 3 * time.Second})
	cfg := testConfig()
	cfg.MaxPendingTasks = 64
	y.router(cfg, "router@test")
	far := chat("far", "m")
	far.NotBefore = time.Now().Add(time.Hour)
	var waiting []*task.Task
	for i := range 100 {
		waiting = append(waiting, chat(fmt.Sprint("no device ", i), "m"))
	}
	ids := y.produce(waiting...)
	y.produce(far)
	require.Eventually(t, func() bool {
		n := map[string]int{}
		err := y.log.Scan(t.Context(), stream.TasksParked, func(r *stream.Record) error {
			n[string(r.Key)]++
			return nil
		})
		for _, id := range ids {
			if n[id] < 2 {
				return false
			}
		}
		return err == nil && n["far"] >= 2
	}, testenv.Patience, 20*time.Millisecond, "each task must be rewritten, and its copy as well")
	y.committed(stream.TasksNormal)
	y.beat(dev("d", 10, "m"))
	y.until("the device", y.all(ids))
	y.mu.Lock()
	defer y.mu.Unlock()
	require.Zero(t, y.assigned["far"])
	for id, n := range y.assigned {
		require.Equal(t, 1, n, id)
	}
}

// However many tasks of one tenant fill the window, others get their turn; and when the router dies, another
// one goes on.
func TestNoBacklogHidesWhatComesBehindIt(t *testing.T) {
	y := newYard(t, 2)
	y.beat(dev("d", 4, "m"))
	y.mu.Lock()
	y.hold = true
	y.mu.Unlock()
	cfg := testConfig()
	stop := y.router(cfg, "router-a")
	var first, behind []*task.Task
	for i := range 5000 {
		tk := chat(fmt.Sprint("a-", i), "m")
		tk.Tenant = "a"
		first = append(first, tk)
	}
	for i := range 10 {
		tk, urgent := chat(fmt.Sprint("b-", i), "m"), chat(fmt.Sprint("urgent-", i), "m")
		tk.Tenant, urgent.Tenant, urgent.Level = "b", "a", 9
		behind = append(behind, tk, urgent)
	}
	ids := y.produce(first...)
	y.until("full devices", func() bool { return len(y.assigned) > 0 })
	late := y.produce(behind...)
	y.until("them in the window, although no device is free", func() bool {
		in := map[string]bool{}
		for _, id := range y.events[task.TaskQueued] {
			in[id] = true
		}
		return !slices.ContainsFunc(late, func(id string) bool { return !in[id] })
	})
	for range 20 { // the device finishes its tasks, and gets as many again
		y.mu.Lock()
		n := len(y.assigned)
		require.NoError(t, y.finish())
		done := y.all(late)()
		y.mu.Unlock()
		if done {
			break
		}
		y.until("more", func() bool { return len(y.assigned) > n })
	}
	y.mu.Lock()
	require.True(t, y.all(late)(), "they wait behind the backlog")
	require.Less(t, len(y.assigned), 1000)
	y.mu.Unlock()
	stop()
	y.mu.Lock()
	y.hold = false
	require.NoError(t, y.finish())
	y.mu.Unlock()
	y.router(cfg, "router-b")
	y.until("every task", y.all(append(ids, late...)))
	y.committed(stream.TasksNormal)
	y.mu.Lock()
	defer y.mu.Unlock()
	require.Empty(t, y.events[task.TaskParked])
	twice := 0
	for _, n := range y.assigned {
		if n > 1 {
			twice++
		}
	}
	require.LessOrEqual(t, twice, 300, "only what was in flight when the first router stopped may be assigned again")
}

// slowGrant answers the first grant of credits late, and calls stop while it is under way.
type slowGrant struct {
	once sync.Once
	stop func()
	late time.Duration
}

func (*slowGrant) DialHook(next redis.DialHook) redis.DialHook { return next }

func (*slowGrant) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (g *slowGrant) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if err != nil || !slices.ContainsFunc(cmd.Args(), isCall) {
			return err
		}
		g.once.Do(func() {
			go g.stop()
			select {
			case <-ctx.Done():
				err = ctx.Err()
			case <-time.After(g.late):
			}
		})
		return err
	}
}

// isCall finds the name that a router gives to each of its calls for credits.
func isCall(arg any) bool {
	s, ok := arg.(string)
	return ok && strings.HasPrefix(s, "router@test.")
}

// A router that stops while Redis grants it credits uses them or gives them back: no device looks busy until the
// leases expire.
func TestNoCreditsAreLostWhenARouterStops(t *testing.T) {
	y := newYard(t, 1)
	y.beat(dev("d", 4, "m"))
	rdb := testenv.RedisAt(t, y.redis.Addr())
	stopped := make(chan struct{})
	var stop func()
	rdb.AddHook(&slowGrant{late: time.Second, stop: func() { stop(); close(stopped) }})
	deps := y.deps
	y.deps.Credits = store.NewCredits(rdb, store.Config{Timeout: time.Hour, LeaseTTL: time.Hour}, "t:")
	stop = y.router(testConfig(), "router@test")
	y.deps = deps
	y.produce(many("task", 10, "m")...)
	testenv.Receive(t, stopped, "the router to stop")
	require.Eventually(t, func() bool {
		used, err := y.deps.Credits.Used(t.Context(), []string{device.Pool("d", device.ClassSingle)})
		return err == nil && used[0] == 0
	}, testenv.Patience, 5*time.Millisecond, "credits are in use that no task holds")
}

func TestRedisIsEmptiedInTheMiddle(t *testing.T) {
	y := newYard(t, 3)
	devices := []device.Device{dev("d1", 2, "m"), dev("d2", 1, "m")}
	y.beat(devices...)
	y.mu.Lock()
	y.hold = true
	y.mu.Unlock()
	y.router(testConfig(), "router@test")
	ids := y.produce(many("task", 60, "m")...)
	y.until("full devices", func() bool { return len(y.assigned) == 6 })
	// The leases are lost, too, so giving them back frees nothing and sends no message.
	y.redis.Empty()
	y.beat(devices...)
	y.until("new credits", func() bool { return len(y.assigned) >= 12 })
	y.mu.Lock()
	y.hold = false
	require.NoError(t, y.finish())
	y.mu.Unlock()
	y.until("every task", y.all(ids))
	y.redis.Empty() // this time with nothing in flight
	y.beat(devices...)
	y.until("one more", y.all(y.produce(chat("last", "m"))))
}

// away is a Postgres that answers only once it knows something.
type away struct{ now atomic.Pointer[knows] }

func (a *away) Known(ctx context.Context, keys []task.Key) ([]task.Known, error) {
	if k := a.now.Load(); k != nil {
		return k.Known(ctx, keys)
	}
	return knows(nil).Known(ctx, keys)
}

// While Postgres is away and claims are lost, another request gets into the window before the one that the id belongs
// to. As soon as Postgres says whose id it is, the window holds the right one, and the other is a dead letter.
func TestTheWindowHoldsTheRequestThatOwnsTheID(t *testing.T) {
	for name, mine := range map[string]int{"the second": 1, "the first": 0} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t, 1)
			known := &away{}
			y.deps.Known = known
			y.router(testConfig(), "router@test")
			requests := []*task.Task{chat("same", "m"), chat("same", "m")}
			requests[1].Input = task.Input(`{"messages":[{"role":"user","content":"something else"}]}`)
			for i, tk := range requests {
				y.produce(tk)
				y.until("the record", func() bool { return len(y.events[task.TaskQueued]) == i+1 })
				y.redis.Empty()
			}
			requests[mine].Normalize(time.Now())
			owner := requests[mine].Fingerprint()
			known.now.Store(&knows{"same": {Fingerprint: owner, State: task.Pending}})
			y.until("the dead letter of the other", func() bool { return len(y.dead) == 1 })
			y.mu.Lock()
			require.Equal(t, int64(1-mine), offsetOf(y.dead[0]))
			require.Equal(t, records.ReasonIDReused, y.dead[0].Header(records.HeaderDLQReason))
			y.mu.Unlock()
			y.beat(dev("d", 1, "m"))
			y.until("its assignment", y.all([]string{"same"}))
			y.committed(stream.TasksNormal)
			y.mu.Lock()
			defer y.mu.Unlock()
			require.Equal(t, 1, y.assigned["same"])
			require.Len(t, y.events[task.TaskQueued], 2, "one event each")
		})
	}
}

func offsetOf(dead *stream.Record) int64 {
	n, _ := strconv.ParseInt(dead.Header(records.HeaderDLQOffset), 10, 64)
	return n
}

func TestRoutersShare(t *testing.T) {
	y := newYard(t, 6)
	y.beat(dev("d1", 3, "m"), dev("d2", 2, "m"))
	cfg := testConfig()
	stopA := y.router(cfg, "router-a")
	stopB := y.router(cfg, "router-b")
	ids := y.produce(many("both", 200, "m")...)
	y.until("the first tasks", y.all(ids))
	y.mu.Lock()
	for id, n := range y.assigned {
		require.Equal(t, 1, n, id)
	}
	y.hold = true
	y.mu.Unlock()
	more := y.produce(many("later", 200, "m")...)
	y.until("full devices", func() bool { return len(y.assigned) > 200 })
	stopB() // while tasks are in its window
	y.mu.Lock()
	y.hold = false
	require.NoError(t, y.finish())
	y.mu.Unlock()
	y.until("the tasks of the router that left", y.all(more))
	y.router(cfg, "router-c")
	stopA()
	y.until("the tasks of a third router", y.all(y.produce(many("third", 50, "m")...)))
}

func TestCancelledTasksLeaveTheWindow(t *testing.T) {
	y := newYard(t, 2)
	y.beat(dev("d", 1, "known"))
	y.router(testConfig(), "router@test")
	y.produce(chat("waits", "later"), chat("stays", "later"))
	y.until("both", func() bool { return len(y.events[task.TaskQueued]) == 2 })
	key := func(id string) task.Key { return task.Key{Tenant: task.DefaultTenant, ID: id} }
	require.NoError(t, y.deps.Cancels.Cancel(t.Context(), key("waits"), key("early")))
	y.until("the cancel", func() bool { return len(y.events[task.TaskCancelled]) == 1 })
	y.produce(chat("early", "later")) // cancelled before it was sent
	y.until("the cancel of the early task", func() bool { return len(y.events[task.TaskCancelled]) == 2 })
	y.beat(dev("new", 4, "later"))
	y.until("the task that stays", y.all([]string{"stays"}))
	y.committed(stream.TasksNormal)
	y.mu.Lock()
	defer y.mu.Unlock()
	require.Len(t, y.assigned, 1)
}

// A router that is stopped before it has joined, and one that has nothing to do, leave no goroutine
// behind (goleak checks after all tests).
func TestRouterStopsAtOnce(t *testing.T) {
	y := newYard(t, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r, err := New(testConfig(), y.deps)
	require.NoError(t, err)
	require.NoError(t, r.Run(ctx, func() {}))
	y.router(testConfig(), "router@test")()
}
