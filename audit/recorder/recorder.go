package recorder

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder/health"
	"github.com/batchyard/batchyard/audit/recorder/jobrows"
	"github.com/batchyard/batchyard/audit/recorder/pace"
	"github.com/batchyard/batchyard/audit/recorder/partitions"
	"github.com/batchyard/batchyard/audit/recorder/resolve"
	"github.com/batchyard/batchyard/audit/recorder/sealer"
	"github.com/batchyard/batchyard/internal/lifecycle"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/waiting"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
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
	health *health.Health
	queue  *queue
}

// New returns a recorder. It connects when it runs.
func New(cfg Config, deps Deps) *Recorder {
	cfg = cfg.withDefaults()
	return &Recorder{cfg, deps, health.New(deps.Pool, deps.Logger, &deps.Metrics.Audit), newQueue(cfg.Writers, cfg.ChunkRows, cfg.ChunkBytes)}
}

// Waiting says what waits to be recorded. It is called about once a second, by one goroutine.
func (r *Recorder) Waiting(now time.Time) waiting.List {
	l := r.health.Waiting(r.queue)
	for _, o := range records.Waiting(r.Log, group, now, func(u *stream.Unfinished, o *waiting.Oldest) bool {
		switch u.Progress {
		case stream.NotBegun: // its offset comes from Postgres
			o.Reason = waiting.Postgres
		case stream.InFlight, stream.InHandler: // the queue knows
			return false
		case stream.AtRest, stream.NotRead, stream.Failing:
		}
		return true
	}) {
		l.Add(o)
	}
	return l
}

// group is the recorder's name in consumer groups.
const group = "audit"

// Run records until ctx ends. Then it stops reading, records what it has read, and returns nil.
// ready is called when the recorder owns its share of both topics. After an error the process has
// to be restarted.
func (r *Recorder) Run(ctx context.Context, ready func()) error {
	out := r.Log.NewOutbox("audit", 1024, 64<<20)
	seal := r.sealer(out)
	offsets := newOffsets(r.Pool, r.Instance, r.health.Retry)
	offsets.topics = r.Log
	offsets.breaks = breaks{key: seal.Key(), noticed: func(ctx context.Context, k *audit.Break) { r.reportBreak(ctx, out, k) }}
	err := lifecycle.Run(ctx,
		lifecycle.Phase{Name: "consumers", Parts: append(r.consumers(offsets, r.queue, ready), r.maintenance(out, seal.Key()), lifecycle.Func(offsets.watch),
			lifecycle.Func(r.resolver(out).Run),
			lifecycle.Func(r.finisher(out).Run))},
		lifecycle.Phase{Name: "writers", Parts: r.writers(offsets, r.queue, out)},
		lifecycle.Phase{Name: "sealer", Parts: []lifecycle.Part{lifecycle.Func(seal.Run)}},
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
			Group: group, Topic: topic, MaxRecords: maxRecords, MaxBytes: r.cfg.FetchBytes,
			Offsets: own, DrainTimeout: r.cfg.DrainTimeout, OnGap: in.gap,
		}
		joined := sync.OnceFunc(joined)
		parts = append(parts, func(ctx context.Context) error {
			for {
				err := r.consume(ctx, cfg, in, joined)
				if !errors.Is(err, errAcquireAgain) {
					return err
				}
				r.Logger.Info("joining the group again, to read from the offsets that are in Postgres now", "topic", topic)
			}
		})
	}
	return parts
}

// errAcquireAgain says that all partitions of a topic have to be acquired again.
var errAcquireAgain = errors.New("the offsets in Postgres have to be read again")

// consume reads a topic into the queue until ctx ends, or its partitions have to be acquired again.
func (r *Recorder) consume(ctx context.Context, cfg stream.ConsumerConfig, in *intake, joined func()) error {
	running, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	in.offsets.onRestart(cfg.Topic, func() { stop(errAcquireAgain) })
	defer in.offsets.ended(cfg.Topic)
	err := r.Log.Consume(running, cfg, func(ctx context.Context, recs []*stream.Record) {
		if err := in.take(ctx, recs); errors.Is(err, errAcquireAgain) {
			stop(err)
		}
	}, joined)
	if cause := context.Cause(running); cause != nil && ctx.Err() == nil {
		return cause
	}
	return err
}

// writers write what is in the queue to Postgres.
func (r *Recorder) writers(own *offsets, q *queue, out *stream.Outbox) (parts []lifecycle.Part) {
	dead := &records.DeadLetters{Stage: "audit", Instance: r.Instance, Outbox: out, Logger: r.Logger, Metrics: &r.Metrics.Stream}
	for range r.cfg.Writers {
		w := &writer{
			chunks:  newChunkWriter(r.cfg, r.Deps),
			offsets: own, queue: q, health: r.health,
			cfg: r.cfg, pace: pace.New(r.cfg.ChunkRows), logger: r.Logger, metrics: &r.Metrics.Audit,
			sendDead: func(ctx context.Context, letters []deadLetter) error { return sendDead(ctx, dead, letters) },
		}
		w.chunks.confirm, w.chunks.breaks = own.confirm, own.breaks
		parts = append(parts, w.run)
	}
	return parts
}

func (r *Recorder) maintenance(out *stream.Outbox, key ed25519.PrivateKey) lifecycle.Part {
	m := &partitions.Maintenance{Pool: r.Pool, Interval: r.cfg.Maintenance, Retention: r.cfg.Retention, Logger: r.Logger, Metrics: &r.Metrics.Audit, Key: key, Instance: r.Instance}
	m.Dropped = func(ctx context.Context, d partitions.DroppedDay) { r.reportDropped(ctx, out, d) }
	return lifecycle.Func(m.Run)
}

// reportDropped writes the event of a day that was dropped. If the process dies before that,
// audit_dropped still says what is gone.
func (r *Recorder) reportDropped(ctx context.Context, out *stream.Outbox, d partitions.DroppedDay) {
	e := task.Event{
		Time: time.Now().UTC(), Action: task.PartitionDropped, Outcome: task.OutcomeOK, ActorType: task.ActorStage, ActorID: r.Instance,
		ResourceType: "partition", ResourceID: audit.DroppedDayResource(d.Day),
	}
	e.Detail, _ = json.Marshal(map[string]any{"day": d.Day, "rows": d.Rows, "chained": d.Chained, "runs": d.Runs, "retention": r.cfg.Retention.String()}) // text and numbers: it cannot fail
	if err := out.Put(ctx, stream.Unit{Events: []task.Event{e}}); err != nil && ctx.Err() == nil {
		r.Logger.Warn("the event of a dropped day could not be written", "day", d.Day, "error", err)
	}
}

// finisher finishes jobs, and writes an event of each.
func (r *Recorder) finisher(out *stream.Outbox) *jobrows.Finisher {
	f := jobrows.NewFinisher(r.Pool, r.Logger)
	f.Report = func(ctx context.Context, e *task.Event) {
		e.ActorID = r.Instance
		if err := out.Put(ctx, stream.Unit{Events: []task.Event{*e}}); err != nil && ctx.Err() == nil {
			r.Logger.Warn("the event of a finished job could not be written", "job", e.JobID, "error", err)
		}
	}
	return f
}

func (r *Recorder) resolver(out *stream.Outbox) *resolve.Resolver {
	return resolve.New(resolve.Deps{Log: r.Log, Pool: r.Pool, Outbox: out, Logger: r.Logger, Metrics: &r.Metrics.Audit, Instance: r.Instance, LostAfter: r.cfg.LostAfter})
}

func (r *Recorder) sealer(out *stream.Outbox) *sealer.Sealer {
	return sealer.New(sealer.Config{Interval: r.cfg.CheckpointInterval, Dir: r.cfg.CheckpointDir, KeyFile: r.cfg.SigningKeyFile,
		Origin: r.cfg.CheckpointOrigin, Copies: r.cfg.CheckpointCopies, Witnesses: r.cfg.Witnesses},
		sealer.Deps{Log: r.Log, Outbox: out, Pool: r.Pool, Logger: r.Logger, Metrics: &r.Metrics.Audit, Instance: r.Instance})
}

// intake puts the records that were read into the queue.
type intake struct {
	offsets *offsets
	queue   *queue
	logger  *slog.Logger
}

// take queues records of one partition. errAcquireAgain says that the log is not the one that was read
// before; any other error, that ctx ended.
func (in *intake) take(ctx context.Context, recs []*stream.Record) error {
	for i, rec := range recs {
		part := in.offsets.current(rec.Topic, rec.Partition)
		// In this order: a record that is not lost at this point belongs to the latest ownership.
		if part == nil || rec.Lost() {
			rec.Done()
			continue
		}
		err := in.follow(ctx, part, rec)
		if err != nil {
			for _, rec := range recs[i:] {
				rec.Done() // it is read again from the offset in Postgres
			}
			return err
		}
		part.read = rec.Offset + 1
		in.queue.put(ctx, checkedEntry(rec, part))
	}
	return nil
}

// follow checks that a record follows the one before it. The stream delivers each record once, from
// the offset that Acquire named. A lower offset means that the topic was recreated or lost its end,
// a higher one that records were deleted before they were read, or that a transaction ended.
func (in *intake) follow(ctx context.Context, part *ownership, rec *stream.Record) error {
	switch offset := rec.Offset; {
	case offset < part.read:
		in.logger.Warn("the log has gone back: the topic was recreated, or a broker lost its end", "partition", part.String(), "read", part.read, "offset", offset)
		return errAcquireAgain
	case part.read >= 0 && offset > part.read:
		hole, err := in.offsets.missed(ctx, part, offset)
		if err != nil {
			return err
		}
		in.putHole(ctx, part, hole, rec)
	}
	return nil
}

// gap queues records that are gone, in their place among the others.
func (in *intake) gap(ctx context.Context, g *stream.Record) {
	part, last := in.offsets.current(g.Topic, g.Partition), g.Incomplete.Last
	if part == nil || g.Lost() || last < part.read {
		return
	}
	in.putHole(ctx, part, holeOf(part, max(g.Offset, part.read), last), g)
	part.read = last + 1
}

func (in *intake) putHole(ctx context.Context, part *ownership, hole *audit.Break, rec records.Finisher) {
	if hole != nil {
		in.queue.put(ctx, holeEntry(sameOwner{rec}, part, hole, in.offsets.instance))
	}
}

// sameOwner is a hole: it is lost with the record after it, and that record is not done with it.
type sameOwner struct{ records.Finisher }

// Done does nothing.
func (sameOwner) Done() {}
