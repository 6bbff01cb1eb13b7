package audit

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/testenv"
	"github.com/batchyard/batchyard/migrations"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// quiet drops what is logged.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// newPool is a pool on a database with our schema.
func newPool(t testing.TB) *pgxpool.Pool {
	t.Helper()
	return poolOn(t, testenv.Get(t).DatabaseFrom(t, "batchyard schema", migrations.Up))
}

func poolOn(t testing.TB, url string) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// fakeRecord stands for a record of the stream, which needs a broker.
type fakeRecord struct {
	mu   sync.Mutex
	done bool
	lost bool
}

func (f *fakeRecord) Done()      { f.mu.Lock(); f.done = true; f.mu.Unlock() }
func (f *fakeRecord) Lost() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.lost }
func (f *fakeRecord) isDone() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.done
}

// rig is a writer on a database, without a stream before it.
type rig struct {
	t    testing.TB
	pool *pgxpool.Pool
	w    *writer
	sent []letter // dead letters
}

func newRig(t testing.TB, pool *pgxpool.Pool) *rig {
	m := metrics.New(nil)
	cfg := Config{}.withDefaults()
	r := &rig{t: t, pool: pool}
	h := &health{pool: pool, log: quiet(), down: m.Audit.PostgresDown}
	r.w = &writer{
		db:      newDB(pool, "audit@test-1", cfg.WriteTimeout),
		offsets: &offsets{pool: pool, owner: "audit@test-1", retry: h.retry, own: map[string]*tenure{}},
		queue:   newQueue(1, cfg.ChunkRows, cfg.ChunkBytes),
		cfg:     cfg, log: quiet(), m: &m.Audit, health: h,
		bury: func(_ context.Context, ls []letter) error {
			r.sent = append(r.sent, ls...)
			return nil
		},
	}
	return r
}

// own takes a partition over.
func (r *rig) own(topic string, partition int) *tenure {
	r.t.Helper()
	_, err := r.w.offsets.Acquire(r.t.Context(), topic, partition)
	require.NoError(r.t, err)
	return r.w.offsets.current(topic, partition)
}

// next is the offset that follows in a partition of a test.
func (t *tenure) take() int64 {
	if t.read < 0 {
		t.read = 0
	}
	t.read++
	return t.read - 1
}

// events is a record of events.
func (t *tenure) events(tb testing.TB, events ...task.Event) *entry {
	tb.Helper()
	b, err := task.EncodeFrame(task.FrameEvents, events)
	require.NoError(tb, err)
	e := &entry{rec: &fakeRecord{}, part: t, offset: t.take(), bytes: int64(len(b))}
	e.decode(b)
	return e
}

// decode fills e from events as a writer does that takes it from the queue.
func (e *entry) decode(b []byte) {
	if e.part == nil {
		e.part = &tenure{topic: stream.Events}
	}
	e.holdEvents(b)
	new(slab).decode(chunk{e})
}

// result is a record with a result.
func (t *tenure) result(tb testing.TB, r *task.Result) *entry {
	tb.Helper()
	b, err := task.EncodeResult(r, task.ContentJSON)
	require.NoError(tb, err)
	e := &entry{rec: &fakeRecord{}, part: t, offset: t.take(), bytes: int64(len(b))}
	e.decodeResult(b, task.ContentJSON)
	return e
}

func (r *rig) record(c ...*entry) {
	r.t.Helper()
	require.NoError(r.t, r.w.record(r.t.Context(), c))
}

// one reads a single value.
func one[T any](t testing.TB, pool *pgxpool.Pool, sql string, args ...any) T {
	t.Helper()
	rows, err := pool.Query(t.Context(), sql, args...)
	require.NoError(t, err)
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	require.NoError(t, err, sql)
	return v
}

// story makes what the stages write of one task.
type story struct {
	task *task.Task
	at   time.Time
}

func newStory(id string) *story {
	at := time.Now().UTC().Truncate(time.Microsecond).Add(-time.Hour)
	t := &task.Task{ID: id, Tenant: "acme", Model: "m", Input: task.Input(`{}`), Job: "job-1", CustomID: "line-" + id, Deadline: at.Add(time.Hour)}
	t.Normalize(at)
	return &story{t, at}
}

// tick lets time pass.
func (s *story) tick() time.Time {
	s.at = s.at.Add(time.Second)
	return s.at
}

func (s *story) accepted() task.Event {
	return task.Accepted(s.task, task.Origin{Actor: "acme", Addr: "203.0.113.7:4711", UserAgent: "test"}, s.tick())
}

func (s *story) event(a task.Action, attempt int, device string) task.Event {
	e := task.NewEvent(a, s.task, "stage@test-1", s.tick())
	e.Attempt, e.Device = attempt, device
	return e
}

func (s *story) result(st task.State, attempts ...string) *task.Result {
	r := task.NewResult(s.task, st, s.tick())
	for i, d := range attempts {
		r.Attempts = append(r.Attempts, task.Attempt{Number: i + 1, Device: d, At: s.at})
		r.Device = d
	}
	if st == task.Success {
		r.Output, r.Status = task.Input(`{"answer":42}`), 200
	} else {
		r.Error = &task.Error{Class: task.ClassDevice, Message: "it broke"}
	}
	return r
}
