package recorder

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder/partitions"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// fakeRecord is a record of no log.
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

// rig is a writer on a database, without a log. Package rig has one for tests that need no
// internals.
type rig struct {
	t    testing.TB
	pool *pgxpool.Pool
	w    *writer
	sent []deadLetter

	pending []func() *entry // records that a test has not written yet
}

func newRig(t testing.TB, pool *pgxpool.Pool) *rig {
	d := NewDirect(Config{}, Deps{Pool: pool, Instance: "audit@test-1"})
	r := &rig{t: t, pool: pool, w: d.w}
	r.w.sendDead = func(_ context.Context, letters []deadLetter) error {
		r.sent = append(r.sent, letters...)
		return nil
	}
	return r
}

// own takes a partition over.
func (r *rig) own(topic string, partition int) *ownership {
	r.t.Helper()
	_, err := r.w.offsets.Acquire(r.t.Context(), topic, partition)
	require.NoError(r.t, err)
	return r.w.offsets.current(topic, partition)
}

func (r *rig) maintenance(retention func(*Config)) *partitions.Maintenance {
	cfg := r.w.cfg
	retention(&cfg)
	return &partitions.Maintenance{Pool: r.pool, Interval: cfg.Maintenance, Retention: cfg.Retention, Logger: audittest.Quiet(), Metrics: r.w.metrics, Dropped: func(context.Context, partitions.DroppedDay) {}}
}

// take returns the offset of the next record of a test.
func (o *ownership) take() int64 {
	if o.read < 0 {
		o.read = 0
	}
	o.read++
	return o.read - 1
}

// events returns a decoded record of events.
func (o *ownership) events(tb testing.TB, events ...task.Event) *entry {
	tb.Helper()
	b, err := wire.EncodeFrame(wire.FrameEvents, events)
	require.NoError(tb, err)
	e := &entry{rec: &fakeRecord{}, part: o, offset: o.take(), bytes: int64(len(b))}
	e.decode(b)
	return e
}

// decode decodes events as a writer does when it takes them from the queue.
func (e *entry) decode(b []byte) {
	if e.part == nil {
		e.part = &ownership{TopicPartition: audit.PartitionOf(stream.Events, 0)}
	}
	e.holdEvents(b)
	new(slab).decode(chunk{e})
}

// result returns a decoded record of a result.
func (o *ownership) result(tb testing.TB, r *task.Result) *entry {
	tb.Helper()
	b, err := wire.EncodeResult(r, wire.ContentJSON)
	require.NoError(tb, err)
	e := &entry{rec: &fakeRecord{}, part: o, offset: o.take(), bytes: int64(len(b))}
	e.decodeAsResult(b, wire.ContentJSON)
	return e
}

// unread returns a record of events that was written at a time, undecoded.
func (o *ownership) unread(tb testing.TB, written time.Time, events ...task.Event) *entry {
	tb.Helper()
	b, err := wire.EncodeFrame(wire.FrameEvents, events)
	require.NoError(tb, err)
	e := &entry{rec: &fakeRecord{}, part: o, offset: o.take(), bytes: int64(len(b)), at: written}
	e.holdEvents(b)
	return e
}

// unreadResult returns a record of a result that was written at a time, undecoded.
func (o *ownership) unreadResult(tb testing.TB, written time.Time, r *task.Result) *entry {
	tb.Helper()
	b, err := wire.EncodeResult(r, wire.ContentJSON)
	require.NoError(tb, err)
	e := &entry{rec: &fakeRecord{}, part: o, offset: o.take(), bytes: int64(len(b)), at: written}
	e.holdResult(b, wire.ContentJSON)
	return e
}

func (e *entry) decodeAsResult(b []byte, contentType string) {
	e.holdResult(b, contentType)
	e.decodeResult()
}

func (r *rig) record(c ...*entry) {
	r.t.Helper()
	require.NoError(r.t, r.w.record(r.t.Context(), c))
}
