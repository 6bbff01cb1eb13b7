package producer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
	"github.com/batchyard/batchyard/test/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// bench is a producer on a real broker and an embedded Redis.
type bench struct {
	*Producer
	client *stream.Client
	rdb    redis.UniversalClient
	cfg    stream.Config
}

func newBench(t *testing.T, cfg Config) *bench {
	t.Helper()
	env := testenv.Get(t)
	sc := stream.Config{Brokers: env.Brokers, TopicPrefix: env.Prefix(t), Partitions: 3, Replication: 1}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client, err := stream.Open(ctx, sc, nil, metrics.New(nil))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	_, err = client.CreateTopics(ctx)
	require.NoError(t, err)
	rdb := testenv.RedisAt(t, miniredis.RunT(t).Addr())
	p := New(cfg, Deps{Stream: client, Redis: rdb, Cancels: store.NewOverrides(rdb, store.Config{}, ""), Instance: "producer@test"})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		require.NoError(t, p.Close(ctx))
	})
	return &bench{Producer: p, client: client, rdb: rdb, cfg: sc}
}

func (b *bench) records(t *testing.T, topic string) (out []*stream.Record) {
	t.Helper()
	require.NoError(t, b.client.Scan(t.Context(), topic, func(r *stream.Record) error {
		out = append(out, r)
		return nil
	}))
	return out
}

func (b *bench) events(t *testing.T) (out []task.Event) {
	t.Helper()
	for _, r := range b.records(t, stream.Events) {
		es, err := wire.DecodeFrame[task.Event](wire.FrameEvents, r.Value)
		require.NoError(t, err)
		out = append(out, es...)
	}
	return out
}

func newTask(id string) *task.Task {
	return &task.Task{ID: id, Model: "m", Input: task.Input(`{"messages":[]}`)}
}

func TestSubmitWritesTasksAndEvents(t *testing.T) {
	b := newBench(t, Config{RecentTTL: time.Minute})
	high := newTask("b")
	high.Priority = task.High
	o := task.Origin{Actor: "acme", Addr: "203.0.113.7:4711", UserAgent: "curl"}
	require.NoError(t, b.Submit(t.Context(), []*task.Task{newTask("a"), high}, o))

	rs := append(b.records(t, stream.TasksNormal), b.records(t, stream.TasksHigh)...)
	require.Len(t, rs, 2)
	for i, id := range []string{"a", "b"} {
		r := rs[i]
		require.Equal(t, id, string(r.Key))
		require.Equal(t, "1", r.Header(records.HeaderAccepted))
		require.Equal(t, "acme", r.Header(records.HeaderActor))
		require.Equal(t, "203.0.113.7:4711", r.Header(records.HeaderAddr))
		got, err := wire.DecodeTask(r.Value, r.Header(wire.HeaderContentType))
		require.NoError(t, err)
		require.Equal(t, id, got.ID)
		require.Equal(t, task.DefaultTenant, got.Tenant)
		require.JSONEq(t, `{"messages":[]}`, string(got.Input))
	}
	es := b.events(t)
	require.Len(t, es, 2)
	for _, e := range es {
		require.Equal(t, task.TaskAccepted, e.Action)
		require.Equal(t, "acme", e.ActorID)
		require.Equal(t, int64(15), e.InputSize)
	}

	// Remembered here, and by other processes through Redis.
	key := task.Key{Tenant: task.DefaultTenant, ID: "a"}
	r, ok, err := b.Recent(t.Context(), key)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, "m", r.Model)
	other := recentIndex{rdb: b.rdb, ttl: time.Minute}
	got, ok, err := other.get(t.Context(), key)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, *r, got)
	_, ok, err = b.Recent(t.Context(), task.Key{Tenant: "other", ID: "a"})
	require.NoError(t, err)
	require.False(t, ok, "another tenant's task of the same id is another task")
}

func TestOneInvalidTaskRefusesTheSubmit(t *testing.T) {
	b := newBench(t, Config{MaxTasks: 5})
	bad := newTask("x")
	bad.Model = ""
	again := newTask("a")
	progress := newTask("y")
	progress.Progress = &task.Progress{Requeues: 3}
	err := b.Submit(t.Context(), []*task.Task{newTask("a"), bad, again, progress}, task.Origin{})
	var refused *RefusedError
	require.ErrorAs(t, err, &refused)
	require.Equal(t, []int{1, 2, 3}, []int{refused.Refusals[0].Index, refused.Refusals[1].Index, refused.Refusals[2].Index})
	require.Equal(t, "model", refused.Refusals[0].Err.Field)
	require.Equal(t, "task_id", refused.Refusals[1].Err.Field)
	require.Equal(t, "progress", refused.Refusals[2].Err.Field)
	require.Empty(t, b.records(t, stream.TasksNormal))
	require.Empty(t, b.events(t))
	_, ok, err := b.Recent(t.Context(), task.Key{Tenant: task.DefaultTenant, ID: "a"})
	require.NoError(t, err)
	require.False(t, ok)

	many := make([]*task.Task, 6)
	for i := range many {
		many[i] = newTask(fmt.Sprint(i))
	}
	require.ErrorAs(t, b.Submit(t.Context(), many, task.Origin{}), &refused)
}

func TestRefusalsAreBounded(t *testing.T) {
	b := newBench(t, Config{})
	many := make([]*task.Task, 100)
	for i := range many {
		many[i] = &task.Task{Input: task.Input(strings.Repeat("x", 10))}
	}
	var refused *RefusedError
	require.ErrorAs(t, b.Check(many), &refused)
	require.Len(t, refused.Refusals, maxRefusals)
	require.Equal(t, 80, refused.More)
}

// Callers go away at any moment; submits that were started are carried out, tasks and events.
func TestAStartedSubmitIsCarriedOut(t *testing.T) {
	b := newBench(t, Config{})
	var wg sync.WaitGroup
	for i := range 40 {
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() {
			if err := b.Submit(ctx, []*task.Task{newTask(fmt.Sprint("a", i)), newTask(fmt.Sprint("b", i))}, task.Origin{}); err != nil {
				assert.ErrorIs(t, err, context.Canceled)
			}
		})
		wg.Go(cancel)
	}
	wg.Wait()
	closeCtx, done := context.WithTimeout(context.Background(), 30*time.Second)
	defer done()
	require.NoError(t, b.Close(closeCtx))
	tasks, events := len(b.records(t, stream.TasksNormal)), len(b.events(t))
	require.Equal(t, tasks, events, "no task without its event, no event without its task")
	require.ErrorIs(t, b.Submit(t.Context(), []*task.Task{newTask("late")}, task.Origin{}), ErrClosed)
}

func TestCancel(t *testing.T) {
	b := newBench(t, Config{})
	submitted := newTask("a")
	submitted.Callback = &task.Callback{URL: "https://example.com/cb"}
	require.NoError(t, b.Submit(t.Context(), []*task.Task{submitted}, task.Origin{}))
	r, ok, err := b.Recent(t.Context(), submitted.Key())
	require.NoError(t, err)
	require.True(t, ok)
	require.NoError(t, b.Cancel(t.Context(), r, task.Origin{Actor: "acme", Addr: "203.0.113.7:1"}))

	rs := b.records(t, stream.Results)
	require.Len(t, rs, 1)
	res, err := wire.DecodeResult(rs[0].Value, rs[0].Header(wire.HeaderContentType))
	require.NoError(t, err)
	require.NoError(t, res.Validate())
	require.Equal(t, task.Cancelled, res.State)
	require.Equal(t, "https://example.com/cb", res.Callback.URL)
	es := b.events(t)
	require.Len(t, es, 2)
	last := es[0]
	if last.Action == task.TaskAccepted {
		last = es[1]
	}
	require.Equal(t, task.TaskCancelRequested, last.Action)
	require.Equal(t, "203.0.113.7:1", last.SourceAddr)
	marked, err := b.cancels.Cancelled(t.Context(), submitted.Key())
	require.NoError(t, err)
	require.Equal(t, []bool{true}, marked)
}

// Without Redis, submits work, and this process remembers its own.
func TestSubmitWithoutRedis(t *testing.T) {
	b := newBench(t, Config{RecentTTL: time.Minute})
	dead := redis.NewUniversalClient(&redis.UniversalOptions{Addrs: []string{"127.0.0.1:1"}, MaxRetries: -1})
	defer dead.Close()
	b.shared.rdb = dead
	require.NoError(t, b.Submit(t.Context(), []*task.Task{newTask("a")}, task.Origin{}))
	_, ok, err := b.Recent(t.Context(), task.Key{Tenant: task.DefaultTenant, ID: "a"})
	require.NoError(t, err)
	require.True(t, ok)
	_, ok, err = b.Recent(t.Context(), task.Key{Tenant: task.DefaultTenant, ID: "unknown"})
	require.Error(t, err, "only Redis could know")
	require.False(t, ok)
}

type knows map[string]task.Known

func (k knows) Known(_ context.Context, keys []task.Key) ([]task.Known, error) {
	out := make([]task.Known, len(keys))
	for i, key := range keys {
		out[i] = k[key.ID]
	}
	return out, nil
}

// What has ended is not written again. But if it was cancelled before a router read it, Postgres does not know what
// it asked, and this may be another request under its id: the router has to compare the records.
func TestAFinishedTaskIsOnlyTheSameIfItsRequestIsKnown(t *testing.T) {
	b := newBench(t, Config{})
	done := newTask("done")
	done.Normalize(time.Now())
	b.known = knows{"done": {State: task.Success, Fingerprint: done.Fingerprint()}, "cancelled": {State: task.Cancelled}}
	states, err := b.Accept(t.Context(), []*task.Task{newTask("done"), newTask("cancelled")}, task.Origin{})
	require.NoError(t, err)
	require.Equal(t, []task.State{task.Success, task.Pending}, states)
	recs := b.records(t, stream.TasksNormal)
	require.Len(t, recs, 1)
	require.Equal(t, "cancelled", string(recs[0].Key))
}

func TestRingForgetsTheOldest(t *testing.T) {
	r := newRing(3)
	for i := range 5 {
		tk := newTask(fmt.Sprint(i))
		tk.Normalize(time.Now())
		r.put([]*task.Task{tk})
		r.put([]*task.Task{tk}) // the same task takes one slot
	}
	for i := range 5 {
		_, ok := r.get(task.Key{Tenant: task.DefaultTenant, ID: fmt.Sprint(i)})
		require.Equal(t, i >= 2, ok, i)
	}
	require.Len(t, r.at, 3)
}

func TestRefusedErrorText(t *testing.T) {
	var e RefusedError
	e.add(3, &task.FieldError{Field: "model", Problem: "it is missing", Remedy: "name it"})
	e.add(4, errors.New("odd"))
	require.Equal(t, "task 3: model: it is missing; name it (and 1 more)", e.Error())
}
