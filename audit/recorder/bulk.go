package recorder

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder/rollup"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/task"
)

// Bulk writes the audit rows of one partition in large pieces, without a log to read, for programs
// that fill a database to measure it (bench/auditgen). Rows, chain and rollups come from the code
// of the stage. A Bulk is used by one goroutine.
type Bulk struct {
	part   audit.TopicPartition
	buffer rowEncoder
	counts rollup.Counts
	end    *chainEnd
	next   int64 // offset after the last record
	said   int64 // how far the log says that records were recorded; -1: nothing yet

	digests []byte // of rows of other tables and advances, for the next audit row
}

// NewBulk begins the chain of a partition that has no rows yet.
func NewBulk(topic string, partition int) *Bulk {
	part := audit.PartitionOf(topic, partition)
	b := &Bulk{part: part, end: newChainEnd(part), said: -1}
	b.buffer.resetCopy()
	return b
}

// Add adds the next event of the partition.
func (b *Bulk) Add(e *task.Event, offset int64, index int, ingested time.Time) {
	b.buffer.row(e, b.part.At(audit.Position{Offset: offset, Index: int32(index)}), ingested, b.digests, b.end) //nolint:gosec // a record has few events
	b.counts.Add(e)
	b.digests = b.digests[:0]
	b.next = offset + 1
}

// Wrote adds the digest of a row of another table to the next audit row.
func (b *Bulk) Wrote(d audit.RowDigest) { b.digests = d.Append(b.digests) }

// Advance says in the next audit row that its transaction records up to an offset.
func (b *Bulk) Advance(to int64) {
	if to > b.said {
		a := audit.Advance{Key: audit.KeyOfPartition(b.part), Epoch: 1, From: b.said, To: to}
		b.digests, b.said = a.Append(b.digests), to
	}
}

// AddResult counts a result that was taken.
func (b *Bulk) AddResult(r *task.Result) { b.counts.AddResult(r) }

// Size returns the number of bytes that wait for Flush.
func (b *Bulk) Size() int { return len(b.buffer.B) }

// Flush writes the rows that were added since the last Flush to a table: audit_log, or the
// partition of it that they all belong to.
func (b *Bulk) Flush(ctx context.Context, conn *pgx.Conn, table string) error {
	if b.buffer.rows > 0 {
		sql := copyRowsSQL(pgx.Identifier{table}.Sanitize())
		if _, err := conn.PgConn().CopyFrom(ctx, bytes.NewReader(b.buffer.EndCopy()), sql); err != nil {
			return fmt.Errorf("writing %d audit rows to %s: %w", b.buffer.rows, table, err)
		}
	}
	b.buffer.resetCopy()
	return nil
}

// Absorb takes over the counts of another Bulk, so that one can write the rollups for all.
func (b *Bulk) Absorb(other *Bulk) { b.counts.Absorb(&other.counts) }

// Count adds to the rollups what was counted since the last Count.
func (b *Bulk) Count(ctx context.Context, tx pgx.Tx) error {
	var batch pgx.Batch
	b.counts.Queue(&batch, b.part.Partition)
	b.counts.Reset()
	return pg.Flush(ctx, tx, &batch, "writing the rollups of "+b.part.Topic)
}

// Finish writes the end of the chain, the offset of the partition, and what is left to count.
func (b *Bulk) Finish(ctx context.Context, tx pgx.Tx) error {
	if err := b.Count(ctx, tx); err != nil {
		return err
	}
	var batch pgx.Batch
	if b.end.Rows > 0 {
		chains{b.part: b.end}.queueWrite(&batch)
		batch.Queue(`INSERT INTO stream_offsets (topic, partition, next_offset) VALUES ($1, $2, $3)`, b.part.Topic, b.part.Partition, b.next)
	}
	return pg.Flush(ctx, tx, &batch, "writing the end of the chain of "+b.part.String())
}
