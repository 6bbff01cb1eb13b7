package recorder

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/embedded"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/migrations"
	"github.com/batchyard/batchyard/status"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/testenv"
)

// startRecorder runs a recorder; stop ends it and returns its error.
func startRecorder(t testing.TB, deps Deps) (stop func() error) {
	t.Helper()
	return startRecorderWith(t, Config{CheckpointDir: t.TempDir()}, deps)
}

func startRecorderWith(t testing.TB, cfg Config, deps Deps) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ready, done := make(chan struct{}), make(chan error, 1)
	deps.Logger = audittest.Quiet()
	if deps.Metrics == nil {
		deps.Metrics = metrics.New(nil)
	}
	go func() { done <- New(cfg, deps).Run(ctx, func() { close(ready) }) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { _ = stop() })
	select {
	case <-ready:
	case <-time.After(audittest.Patience):
		t.Fatal("the recorder did not become ready")
	}
	return stop
}

// write writes the events and the result of a task to the log.
func write(t testing.TB, out *stream.Outbox, wg *sync.WaitGroup, events []task.Event, r *task.Result) {
	t.Helper()
	u := stream.Unit{Events: events}
	if r != nil {
		m, err := records.ResultMessage(r)
		require.NoError(t, err)
		u.Messages = append(u.Messages, m)
	}
	wg.Add(1)
	u.Acked = func(err error) {
		defer wg.Done()
		if err != nil {
			t.Errorf("writing: %v", err)
		}
	}
	require.NoError(t, out.Put(t.Context(), u))
}

// TestExactlyOnceWhileRecordersComeAndGo writes tasks while recorders stop and start and their
// sessions with Postgres are cut: each event and each result is recorded once.
func TestExactlyOnceWhileRecordersComeAndGo(t *testing.T) {
	t.Parallel()
	pool, l := audittest.NewPool(t), audittest.OpenLog(t, 3)
	out := l.NewOutbox("test", 1000, 8<<20)
	stop := startRecorder(t, Deps{Log: l, Pool: pool, Instance: "audit@one-1"})

	const tasks = 600
	var wg sync.WaitGroup
	for i := range tasks {
		s := audittest.NewStory(fmt.Sprintf("t%d", i))
		s.Task.Callback = &task.Callback{URL: "https://example.com/"}
		write(t, out, &wg, []task.Event{s.Accepted(), s.Event(task.TaskQueued, 0, ""), s.Event(task.TaskAssigned, 1, "d1"), s.Event(task.AttemptStarted, 1, "d1")}, nil)
		write(t, out, &wg, []task.Event{s.Event(task.TaskSucceeded, 1, "d1")}, s.Result(task.Success, "d1"))
		switch i {
		case 100, 200, 300:
			pool.Reset() // so as not to use a connection that was cut the last time
			_, err := pool.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
			require.NoError(t, err)
		case 250:
			startRecorder(t, Deps{Log: l, Pool: pool, Instance: "audit@two-2"})
		case 400:
			require.NoError(t, stop())
		}
	}
	wg.Wait()
	pool.Reset()
	require.Eventually(t, func() bool {
		return audittest.One[int](t, pool, "SELECT count(*) FROM tasks WHERE state = 'SUCCESS'") == tasks &&
			audittest.One[int](t, pool, "SELECT count(*) FROM audit_log WHERE action <> 'audit.rows_recorded'") >= tasks*5
	}, audittest.Patience, 20*time.Millisecond)
	require.Equal(t, tasks*5, audittest.One[int](t, pool, "SELECT count(*) FROM audit_log WHERE action <> 'audit.rows_recorded'"))
	require.Equal(t, tasks*5, audittest.One[int](t, pool, "SELECT count(DISTINCT (src_topic, src_partition, src_offset, src_index)) FROM audit_log WHERE action <> 'audit.rows_recorded'"))
	require.Equal(t, tasks, audittest.One[int](t, pool, "SELECT count(*) FROM results"))
	require.Equal(t, tasks, audittest.One[int](t, pool, "SELECT count(*) FROM callbacks"))
	require.NoError(t, out.Close(t.Context()))
}

func TestDeadLettersOfTheRecorder(t *testing.T) {
	t.Parallel()
	pool, l := audittest.NewPool(t), audittest.OpenLog(t, 3)
	stop := startRecorder(t, Deps{Log: l, Pool: pool, Instance: "audit@one-1"})
	s := audittest.NewStory("t1")
	frame, err := wire.EncodeFrame(wire.FrameEvents, []task.Event{s.Accepted(), s.Event("task.teleported", 0, ""), s.Event(task.TaskQueued, 0, "")})
	require.NoError(t, err)
	require.NoError(t, l.Produce(t.Context(),
		stream.Message{Topic: stream.Events, Key: "0", Value: frame},
		stream.Message{Topic: stream.Results, Key: "t1", Value: []byte("nonsense")},
		stream.Message{Topic: stream.Events, Key: "1", Value: []byte{0xdd, 0xff, 0xff, 0xff, 0xff}}))
	require.Eventually(t, func() bool {
		return audittest.One[int](t, pool, "SELECT count(*) FROM audit_log WHERE action = 'record.dead_lettered'") == 3 &&
			audittest.One[int](t, pool, "SELECT count(*) FROM audit_log WHERE task_id = 't1'") == 2
	}, audittest.Patience, 20*time.Millisecond, "the events around it are recorded, too")
	require.Equal(t, 2, audittest.One[int](t, pool, "SELECT count(*) FROM audit_log WHERE task_id = 't1'"))
	require.Equal(t, 3, audittest.One[int](t, pool, "SELECT count(*) FROM refusals WHERE action = 'record.dead_lettered' AND detail->>'stage' = 'audit' AND source LIKE 'kafka:%' AND reason <> ''"))
	require.NoError(t, stop())

	letters := map[string]*stream.Record{}
	require.NoError(t, l.Scan(t.Context(), stream.DLQ, func(r *stream.Record) error {
		letters[r.Header(records.HeaderDLQTopic)+" "+r.Header(records.HeaderDLQReason)] = r
		return nil
	}))
	require.Len(t, letters, 3)
	require.Equal(t, "nonsense", string(letters["results unreadable"].Value))
	require.NotNil(t, letters["events unreadable"])
	kept, err := wire.DecodeFrame[task.Event](wire.FrameEvents, letters["events invalid"].Value)
	require.NoError(t, err)
	require.Len(t, kept, 1, "only what was not recorded")
	require.Equal(t, task.Action("task.teleported"), kept[0].Action)
	var detail struct{ Reason string }
	require.NoError(t, json.Unmarshal([]byte(audittest.One[string](t, pool, "SELECT detail::text FROM audit_log WHERE detail->>'entries' = '1'")), &detail))
	require.Equal(t, "invalid", detail.Reason)
}

func TestRecordsThatDoNotFollowAreNoticed(t *testing.T) {
	t.Parallel()
	r := newRig(t, audittest.NewPool(t))
	_, err := r.pool.Exec(t.Context(), "INSERT INTO stream_offsets (topic, partition, next_offset) VALUES ('events', 0, 1000)")
	require.NoError(t, err)
	r.own("events", 0)
	frame, err := wire.EncodeFrame(wire.FrameEvents, []task.Event{audittest.NewStory("t1").Accepted()})
	require.NoError(t, err)
	in := &intake{offsets: r.w.offsets, queue: r.w.queue, logger: audittest.Quiet()}
	take := func(offset int64) error {
		return in.take(t.Context(), []*stream.Record{{Topic: "events", Offset: offset, Value: frame}})
	}
	require.NoError(t, take(1000))
	require.NoError(t, take(1005), "what was between is gone; that is written down, and recording continues")
	c, release := r.w.queue.take(t.Context(), 100, 1<<20)
	require.Len(t, c, 3)
	r.w.slab.decode(c)
	require.NoError(t, r.w.record(t.Context(), c))
	release()
	require.Equal(t, "records_missed 1001-1004 row 1", audittest.One[string](t, r.pool, "SELECT kind || ' ' || first_offset || '-' || last_offset || ' row ' || chain_seq - 1 FROM stream_breaks"))
	require.Equal(t, "audit.records_missed", audittest.One[string](t, r.pool, "SELECT string_agg(action, ' ' ORDER BY chain_seq) FROM audit_log"))
	audittest.RequireChains(t, r.pool, map[string]int64{"events/0": 1}) // the records around it are no one's: dead letters
	require.ErrorIs(t, take(3), errAcquireAgain)
	require.Empty(t, r.w.queue.waiting)
}

// TestPostgresMayGoAway stops and kills Postgres while events arrive.
func TestPostgresMayGoAway(t *testing.T) {
	t.Parallel()
	env := testenv.Get(t)
	if env.Real {
		t.Skip("it stops Postgres, which others use")
	}
	pg, err := embedded.StartPostgres(t.Context(), embedded.PostgresOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = pg.Close() })
	require.NoError(t, migrations.Up(t.Context(), pg.URL()))
	pool := audittest.PoolOn(t, pg.URL())
	l := audittest.OpenLog(t, 3)
	out := l.NewOutbox("test", 1000, 8<<20)
	reg := prometheus.NewRegistry()
	m := metrics.New(reg)
	stop := startRecorder(t, Deps{Log: l, Pool: pool, Metrics: m, Instance: "audit@one-1"})
	store := status.New(status.Config{}, status.Deps{Pool: pool, Logger: audittest.Quiet(), Metrics: m})
	t.Cleanup(store.Close)
	last := audittest.NewStory("t299")
	ended := make(chan error, 1)
	go func() {
		_, err := store.WaitTask(context.WithoutCancel(t.Context()), last.Task.Run())
		ended <- err
	}()

	var wg sync.WaitGroup
	const tasks = 300
	for i := range tasks {
		s := audittest.NewStory(fmt.Sprintf("t%d", i))
		write(t, out, &wg, []task.Event{s.Accepted(), s.Event(task.TaskQueued, 0, "")}, s.Result(task.Success, "d1"))
		switch i {
		case 100:
			require.NoError(t, pg.Kill())
		case 150:
			require.NoError(t, pg.Restart(t.Context()))
		case 200:
			require.NoError(t, pg.Stop())
		}
	}
	wg.Wait() // Kafka has everything
	require.Eventually(t, func() bool { return gauge(t, reg, "batchyard_audit_postgres_down") == 1 }, audittest.Patience, 5*time.Millisecond)
	require.NoError(t, pg.Restart(t.Context()))
	select {
	case err := <-ended: // or Postgres was away when it first asked
		if err != nil {
			_, err = store.WaitTask(t.Context(), last.Task.Run())
		}
		require.NoError(t, err)
	case <-time.After(audittest.Patience):
		t.Fatal("the task that was waited for did not finish")
	}
	require.Eventually(t, func() bool {
		return audittest.One[int](t, pool, "SELECT count(*) FROM tasks WHERE state = 'SUCCESS'") == tasks && audittest.One[int](t, pool, "SELECT count(*) FROM audit_log WHERE action <> 'audit.rows_recorded'") >= 2*tasks
	}, audittest.Patience, 20*time.Millisecond)
	require.Equal(t, 2*tasks, audittest.One[int](t, pool, "SELECT count(*) FROM audit_log WHERE action <> 'audit.rows_recorded'"))
	require.Zero(t, gauge(t, reg, "batchyard_audit_postgres_down"))
	require.NoError(t, stop())
	require.NoError(t, out.Close(t.Context()))
}

// gauge reads a metric as Prometheus would.
func gauge(t testing.TB, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}
