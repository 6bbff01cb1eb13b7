// Package rig is a recorder without a log, for tests of what reads the tables that it writes.
package rig

import (
	"crypto/ed25519"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
	"github.com/batchyard/batchyard/test/audittest"
)

// Rig is a recorder on a database. It is used by one goroutine.
type Rig struct {
	t     testing.TB
	Pool  *pgxpool.Pool
	Key   ed25519.PrivateKey // signs what is dropped; nil: it is not signed
	rec   *recorder.Direct
	owned map[audit.TopicPartition]*Partition
}

// New returns a rig on a database.
func New(t testing.TB, pool *pgxpool.Pool) *Rig {
	t.Helper()
	return &Rig{t: t, Pool: pool, owned: map[audit.TopicPartition]*Partition{},
		rec: recorder.NewDirect(recorder.Config{}, recorder.Deps{Pool: pool, Instance: "audit@test-1"})}
}

// Partition is a partition that a rig owns.
type Partition struct {
	audit.TopicPartition
	Next int64 // offset of the next record
}

// Own takes a partition over. Its next record is the first that is not recorded.
func (r *Rig) Own(topic string, partition int) *Partition {
	r.t.Helper()
	next, err := r.rec.Acquire(r.t.Context(), topic, partition)
	require.NoError(r.t, err)
	p := &Partition{TopicPartition: audit.PartitionOf(topic, partition), Next: max(next, 0)}
	r.owned[p.TopicPartition] = p
	return p
}

// Owned returns a partition that the rig has taken over.
func (r *Rig) Owned(topic string, partition int) *Partition {
	r.t.Helper()
	p := r.owned[audit.PartitionOf(topic, partition)]
	require.NotNil(r.t, p)
	return p
}

func (p *Partition) record(value []byte) *stream.Record {
	p.Next++
	return &stream.Record{Topic: p.Topic, Partition: int(p.Partition), Offset: p.Next - 1, Value: value}
}

// Events returns the next record of the partition, with the given events.
func (p *Partition) Events(t testing.TB, events ...task.Event) *stream.Record {
	t.Helper()
	b, err := wire.EncodeFrame(wire.FrameEvents, events)
	require.NoError(t, err)
	return p.record(b)
}

// Result returns the next record of the partition, with the given result.
func (p *Partition) Result(t testing.TB, r *task.Result) *stream.Record {
	t.Helper()
	b, err := wire.EncodeResult(r, wire.ContentJSON)
	require.NoError(t, err)
	return p.record(b)
}

// Record records records, in one transaction. All of them must be recorded.
func (r *Rig) Record(recs ...*stream.Record) {
	r.t.Helper()
	require.NoError(r.t, r.rec.Record(r.t.Context(), recs...))
	require.Empty(r.t, r.rec.DeadLetters())
}

// DropDays drops the days that ended before a time, as the retention does, and signs that with
// r.Key.
func (r *Rig) DropDays(before time.Time) error {
	return r.rec.DropDays(r.t.Context(), before, r.Key)
}

// Rows of the chains that [Chained] writes.
const (
	RowsOfEvents0  = 72
	RowsOfEvents1  = 48
	RowsOfResults0 = 24
)

// Chained writes a log with three chains: records of one and of several events, interleaved, in
// several chunks, and results that are duplicates.
func Chained(t testing.TB, pool *pgxpool.Pool) *Rig {
	t.Helper()
	r := New(t, pool)
	e0, e1, res := r.Own("events", 0), r.Own("events", 1), r.Own("results", 0)
	for i := range 8 {
		var c []*stream.Record
		for j := range 3 {
			s := audittest.NewStory(fmt.Sprintf("t%d-%d", i, j))
			started := s.Event(task.AttemptStarted, 1, "d1")
			started.Duration, started.InputTokens, started.Detail = time.Second, 7, []byte(`{"why":"earliest  finish"}`)
			c = append(c, e0.Events(t, s.Accepted()), e1.Events(t, s.Accepted(), started), e0.Events(t, s.Event(task.TaskQueued, 0, ""), started))
			c = append(c, res.Result(t, s.Result(task.Success, "d1")), res.Result(t, s.Result(task.Failed, "d2")))
		}
		r.Record(c...)
	}
	return r
}
