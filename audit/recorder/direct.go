package recorder

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit/recorder/health"
	"github.com/batchyard/batchyard/audit/recorder/pace"
	"github.com/batchyard/batchyard/audit/recorder/partitions"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// Direct records what its caller passes, exactly as the stage does, without Kafka: for tests, and
// for programs that need a log with known content. It is used by one goroutine.
type Direct struct {
	w    *writer
	dead []DirectLetter
}

// DirectLetter is what the stage would have written to the dead-letter topic.
type DirectLetter struct {
	Record *stream.Record
	Reason string
	Cause  error
	Events []task.Event // those that cannot be recorded; nil: the whole record
}

// NewDirect returns a recorder without a log. Of deps it needs Pool and Instance only.
func NewDirect(cfg Config, deps Deps) *Direct {
	cfg = cfg.withDefaults()
	if deps.Logger == nil {
		deps.Logger = slog.New(slog.DiscardHandler)
	}
	if deps.Metrics == nil {
		deps.Metrics = metrics.New(nil)
	}
	d := &Direct{}
	h := health.New(deps.Pool, deps.Logger, &deps.Metrics.Audit)
	own := newOffsets(deps.Pool, deps.Instance, h.Retry)
	d.w = &writer{
		chunks: newChunkWriter(cfg, deps), offsets: own, health: h,
		queue: newQueue(1, cfg.ChunkRows, cfg.ChunkBytes), pace: pace.New(cfg.ChunkRows),
		cfg: cfg, logger: deps.Logger, metrics: &deps.Metrics.Audit, sendDead: d.keepDead,
	}
	d.w.chunks.confirm = own.confirm
	return d
}

func (d *Direct) keepDead(_ context.Context, letters []deadLetter) error {
	for _, l := range letters {
		d.dead = append(d.dead, DirectLetter{l.entry.rec.(*stream.Record), l.reason, l.cause, l.events})
	}
	return nil
}

// Acquire takes a partition over, as a consumer that is assigned it, and returns the offset of the
// first record that is not recorded; -1 if none is. Another recorder loses the partition.
func (d *Direct) Acquire(ctx context.Context, topic string, partition int) (next int64, err error) {
	return d.w.offsets.Acquire(ctx, topic, partition)
}

// Record records consecutive records of partitions that were acquired, in one transaction. A record
// that is recorded already is skipped. It tries until Postgres accepts the records or ctx ends.
func (d *Direct) Record(ctx context.Context, recs ...*stream.Record) error {
	c := make(chunk, len(recs))
	for i, rec := range recs {
		part := d.w.offsets.current(rec.Topic, rec.Partition)
		if part == nil {
			return fmt.Errorf("recording %s: its partition was not acquired", rec.Position())
		}
		c[i] = newEntry(rec, part)
	}
	d.w.slab.decode(c)
	defer d.w.slab.reset()
	return d.w.record(ctx, c)
}

// DeadLetters returns what could not be recorded so far.
func (d *Direct) DeadLetters() []DirectLetter { return d.dead }

// DropDays drops the days that ended before a time, as the retention does. Without a key it does not
// sign that.
func (d *Direct) DropDays(ctx context.Context, before time.Time, key ed25519.PrivateKey) error {
	sign := func(ctx context.Context, tx pgx.Tx, day string) error {
		if key == nil {
			return nil
		}
		return partitions.SignDropped(ctx, tx, key, d.w.chunks.Instance, day, time.Since(before))
	}
	return partitions.DropDays(ctx, d.w.chunks.Pool, before, sign, func(partitions.DroppedDay) {})
}
