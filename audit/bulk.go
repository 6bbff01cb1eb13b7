package audit

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/task"
)

// Bulk makes what the recorder writes of one partition, without a log to read
// and in large pieces: for who fills a database with made-up rows to measure
// (bench/auditgen). The rows, their chain and the rollups are made by the
// recorder's own code. A Bulk is used by one goroutine.
type Bulk struct {
	topic     string
	partition int32
	buffer    copyBuffer
	counts    rollup
	end       chain
	upTo      int64 // offset after the last record
}

// NewBulk begins the chain of a partition that has no rows yet.
func NewBulk(topic string, partition int) *Bulk {
	p := int32(partition) //nolint:gosec // Kafka counts partitions in 32 bits
	b := &Bulk{topic: topic, partition: p, end: chain{hash: genesis(topic, p)}}
	b.buffer.resetCopy()
	return b
}

// Add takes the next event of the partition.
func (b *Bulk) Add(e *task.Event, offset int64, index int, ingested time.Time) {
	b.buffer.row(e, origin{b.topic, b.partition, offset, int32(index)}, ingested, &b.end) //nolint:gosec // a place in a record
	b.counts.add(e)
	b.upTo = offset + 1
}

// AddResult counts a result that was taken.
func (b *Bulk) AddResult(r *task.Result) { b.counts.addResult(r) }

// Size is how many bytes wait for Flush.
func (b *Bulk) Size() int { return len(b.buffer.b) }

// Flush writes the rows that were added since the last time to a table with the
// columns of audit_log: itself, or the partition that they all belong to.
func (b *Bulk) Flush(ctx context.Context, conn *pgx.Conn, table string) error {
	if b.buffer.rows > 0 {
		sql := copyInto(pgx.Identifier{table}.Sanitize())
		if _, err := conn.PgConn().CopyFrom(ctx, bytes.NewReader(b.buffer.endCopy()), sql); err != nil {
			return fmt.Errorf("writing %d audit rows to %s: %w", b.buffer.rows, table, err)
		}
	}
	b.buffer.resetCopy()
	return nil
}

// Absorb counts what another has counted, which then has counted nothing: so
// that one writes to the rollups for all.
func (b *Bulk) Absorb(other *Bulk) {
	absorb(&b.counts.usage, &other.counts.usage, func(to, v *usageSums) {
		to.tasks, to.attempts, to.in, to.out = to.tasks+v.tasks, to.attempts+v.attempts, to.in+v.in, to.out+v.out
	})
	times := func(to, v *timeSums) { to.n, to.us = to.n+v.n, to.us+v.us }
	absorb(&b.counts.latency, &other.counts.latency, times)
	absorb(&b.counts.attempts, &other.counts.attempts, times)
	absorb(&b.counts.batches, &other.counts.batches, func(to, v *batchSums) { to.tasks, to.bytes = to.tasks+v.tasks, to.bytes+v.bytes })
	absorb(&b.counts.submissions, &other.counts.submissions, func(to, v *submissionSums) {
		if to.tasks == 0 || v.first.Before(to.first) {
			to.first = v.first
		}
		to.tasks, to.bytes, to.last = to.tasks+v.tasks, to.bytes+v.bytes, later(to.last, v.last)
	})
	other.counts.reset()
}

func absorb[K comparable, V any](to, from *sums[K, V], add func(to, v *V)) {
	for i, k := range from.keys {
		add(to.of(k), &from.vals[i])
	}
}

// Count writes to the rollups what was counted since the last time.
func (b *Bulk) Count(ctx context.Context, tx pgx.Tx) error {
	var batch pgx.Batch
	b.counts.queue(&batch, b.partition)
	b.counts.reset()
	return flush(ctx, tx, &batch, "writing the rollups of "+b.topic)
}

// Finish writes where the chain ends, up to where the partition was read, and
// what is left to count.
func (b *Bulk) Finish(ctx context.Context, tx pgx.Tx) error {
	if err := b.Count(ctx, tx); err != nil {
		return err
	}
	var batch pgx.Batch
	if b.end.rows > 0 {
		chains{place{b.topic, b.partition}: &b.end}.queueWrite(&batch)
		batch.Queue(`INSERT INTO stream_offsets (topic, partition, next_offset) VALUES ($1, $2, $3)`, b.topic, b.partition, b.upTo)
	}
	return flush(ctx, tx, &batch, "writing where the chain of "+b.topic+" ends")
}
