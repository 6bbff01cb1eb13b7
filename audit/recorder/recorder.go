package recorder

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/internal/lifecycle"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
)

// maxRecords bounds the records of one topic that were read and are not in Postgres yet. It
// matters for small records; [Config.FetchBytes] bounds large ones.
const maxRecords = 1 << 16

// Deps is what a recorder works with.
type Deps struct {
	Log      *stream.Client
	Pool     *pgxpool.Pool
	Logger   *slog.Logger
	Metrics  *metrics.Metrics
	Instance string // its name in the audit log, audit@host-pid
}

// Recorder is the stage that writes events and results to Postgres. Any number may run: each gets
// a share of the partitions.
type Recorder struct {
	cfg Config
	Deps
}

// New returns a recorder. It connects when it runs.
func New(cfg Config, deps Deps) *Recorder { return &Recorder{cfg.withDefaults(), deps} }

// Run records until ctx ends. Then it stops reading, records what it has read, and returns nil.
// ready is called when the recorder owns its share of both topics. After an error the process has
// to be restarted.
func (r *Recorder) Run(ctx context.Context, ready func()) error {
	out := r.Log.NewOutbox("audit", 1024, 64<<20)
	health := newHealth(r.Pool, r.Logger, r.Metrics.Audit.PostgresDown)
	offsets := newOffsets(r.Pool, r.Instance, health.retry)
	queue := newQueue(r.cfg.Writers, r.cfg.ChunkRows, r.cfg.ChunkBytes)
	err := lifecycle.Run(ctx,
		lifecycle.Phase{Name: "consumers", Parts: append(r.consumers(offsets, queue, ready), r.maintenance(out))},
		lifecycle.Phase{Name: "writers", Parts: r.writers(offsets, queue, health, out)},
		lifecycle.Phase{Name: "sealer", Parts: []lifecycle.Part{lifecycle.Func(r.sealer(out).Run)}},
		lifecycle.Phase{Name: "outbox", Close: func(ctx context.Context) error {
			if err := out.Close(ctx); err != nil {
				r.Logger.Warn("stopping with dead letters that are not acknowledged; they are written again after the next start", "error", err)
			}
			return nil
		}})
	if err != nil {
		return fmt.Errorf("recording events and results: %w", err)
	}
	return nil
}

// consumers read the two topics into the queue.
func (r *Recorder) consumers(own *offsets, q *queue, ready func()) []lifecycle.Part {
	in := &intake{offsets: own, queue: q, logger: r.Logger}
	joined := lifecycle.Countdown(2, ready)
	var parts []lifecycle.Part
	for _, topic := range []string{stream.Events, stream.Results} {
		cfg := stream.ConsumerConfig{
			Group: "audit", Topic: topic, MaxRecords: maxRecords, MaxBytes: r.cfg.FetchBytes,
			Offsets: own, DrainTimeout: r.cfg.DrainTimeout,
		}
		parts = append(parts, func(ctx context.Context) error {
			ctx, stop := context.WithCancelCause(ctx)
			defer stop(nil)
			err := r.Log.Consume(ctx, cfg, func(ctx context.Context, recs []*stream.Record) {
				if err := in.take(ctx, recs); err != nil {
					stop(err)
				}
			}, sync.OnceFunc(joined))
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			return err
		})
	}
	return parts
}

// writers write what is in the queue to Postgres.
func (r *Recorder) writers(own *offsets, q *queue, h *health, out *stream.Outbox) (parts []lifecycle.Part) {
	dead := &records.DeadLetters{Stage: "audit", Instance: r.Instance, Outbox: out, Logger: r.Logger, Metrics: &r.Metrics.Stream}
	for range r.cfg.Writers {
		w := &writer{
			chunks:  newChunkWriter(r.cfg, r.Deps),
			offsets: own, queue: q, health: h,
			cfg: r.cfg, logger: r.Logger, metrics: &r.Metrics.Audit,
			sendDead: func(ctx context.Context, letters []deadLetter) error { return sendDead(ctx, dead, letters) },
		}
		parts = append(parts, w.run)
	}
	return parts
}

func (r *Recorder) maintenance(out *stream.Outbox) lifecycle.Part {
	m := &maintenance{pool: r.Pool, cfg: r.cfg, logger: r.Logger, metrics: &r.Metrics.Audit}
	m.dropped = func(ctx context.Context, d droppedDay) { r.reportDropped(ctx, out, d) }
	return lifecycle.Func(m.run)
}

func (r *Recorder) sealer(out *stream.Outbox) *Sealer {
	return NewSealer(r.cfg, SealerDeps{Log: r.Log, Outbox: out, Pool: r.Pool, Logger: r.Logger, Metrics: &r.Metrics.Audit})
}

// intake puts the records that were read into the queue.
type intake struct {
	offsets *offsets
	queue   *queue
	logger  *slog.Logger
}

// take queues records of one partition. An error means that recording the partition makes no
// sense until an operator has decided what to do.
func (in *intake) take(ctx context.Context, recs []*stream.Record) error {
	for _, rec := range recs {
		part := in.offsets.current(rec.Topic, rec.Partition)
		// In this order: a record that is not lost at this point belongs to the latest ownership.
		if part == nil || rec.Lost() {
			rec.Done()
			continue
		}
		if rec.Offset < part.read {
			// The stream delivers each record once, from the offset that Acquire named.
			return fmt.Errorf("reading %s: it was recorded up to offset %d and is at %d now: the topic was recreated, or the broker lost its end; "+
				"once that is resolved, run DELETE FROM stream_offsets WHERE topic = '%s' AND partition = %d to record it from its start",
				part, part.read, rec.Offset, part.Topic, part.Partition)
		}
		if part.read >= 0 && rec.Offset > part.read {
			in.logger.Error("records were deleted from Kafka before they were recorded: raise kafka.internal_retention and kafka.retention, or keep Postgres up",
				"partition", part.String(), "from", part.read, "to", rec.Offset-1)
		}
		part.read = rec.Offset + 1
		in.queue.put(ctx, newEntry(rec, part))
	}
	return nil
}
