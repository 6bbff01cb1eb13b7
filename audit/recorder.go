package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// maxRecords bounds the records of one topic that were read and are not in
// Postgres; it matters for small ones, [Config.FetchBytes] for large ones.
const maxRecords = 1 << 16

// Recorder is the stage that writes events and results to Postgres. Any number
// may run: each gets a share of the partitions.
type Recorder struct {
	stream *stream.Log
	pool   *pgxpool.Pool
	cfg    Config
	log    *slog.Logger
	m      *metrics.Metrics
	actor  string
}

// NewRecorder returns a recorder; actor is its name in the audit log
// (audit@host-pid).
func NewRecorder(l *stream.Log, pool *pgxpool.Pool, cfg Config, log *slog.Logger, m *metrics.Metrics, actor string) *Recorder {
	return &Recorder{stream: l, pool: pool, cfg: cfg.withDefaults(), log: log, m: m, actor: actor}
}

// Run records until ctx ends; then it takes nothing new, records what it has
// read, and returns nil. ready is called when it owns its share of both topics.
// An error means that the process has to start anew.
func (r *Recorder) Run(ctx context.Context, ready func()) error {
	out := r.stream.NewOutbox("audit", 1024, 64<<20)
	h := &health{pool: r.pool, log: r.log, down: r.m.Audit.PostgresDown}
	own := &offsets{pool: r.pool, owner: r.actor, retry: h.retry, own: map[string]*tenure{}}
	q := newQueue(r.cfg.Writers, r.cfg.ChunkRows, r.cfg.ChunkBytes)
	ws := make([]*writer, r.cfg.Writers)
	for i := range ws {
		ws[i] = &writer{
			db: newDB(r.pool, r.actor, r.cfg.WriteTimeout), offsets: own, cfg: r.cfg, log: r.log, m: &r.m.Audit, health: h,
			queue: q, bury: r.undertaker(out),
		}
	}

	// reading ends first, writing when nobody reads any more.
	reading, stopReading := context.WithCancelCause(ctx)
	defer stopReading(nil)
	writing, stopWriting := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWriting()
	var writes, readers sync.WaitGroup
	for _, w := range ws {
		writes.Go(func() {
			if err := w.run(writing); err != nil {
				stopReading(err) // what it holds would never be done
			}
		})
	}
	writes.Go(func() { maintain(reading, r.pool, r.cfg, r.log, &r.m.Audit, r.tellDropped(reading, out)) })
	var seals sync.WaitGroup
	recorded := make(chan struct{})
	seals.Go(func() { r.newSealer(out).run(reading, recorded) })
	var waiting sync.WaitGroup
	waiting.Add(2)
	for _, topic := range []string{stream.Events, stream.Results} {
		readers.Go(func() {
			once := sync.OnceFunc(waiting.Done)
			defer once()
			err := r.stream.Consume(reading, stream.ConsumerConfig{
				Group: "audit", Topic: topic, MaxRecords: maxRecords, MaxBytes: r.cfg.FetchBytes,
				Offsets: own, DrainTimeout: r.cfg.DrainTimeout,
			}, func(ctx context.Context, recs []*stream.Record) { r.take(ctx, own, q, stopReading, recs) }, once)
			stopReading(err)
		})
	}
	readers.Go(func() {
		waiting.Wait()
		if reading.Err() == nil && ready != nil {
			ready()
		}
	})
	readers.Wait()
	stopWriting()
	writes.Wait()
	close(recorded)
	seals.Wait()
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := out.Close(closing); err != nil {
		r.log.Warn("stopping with dead letters that are not acknowledged; they are written again after the next start", "error", err)
	}
	if err := context.Cause(reading); ctx.Err() == nil && err != nil {
		return fmt.Errorf("recording events and results: %w", err)
	}
	return nil
}

// take queues records of one partition for the writers. fail stops the recorder.
func (r *Recorder) take(ctx context.Context, own *offsets, q *queue, fail func(error), recs []*stream.Record) {
	for _, rec := range recs {
		part := own.current(rec.Topic, rec.Partition)
		// In this order: a record that is not lost now belongs to the latest tenure.
		if part == nil || rec.Lost() {
			rec.Done()
			continue
		}
		if rec.Offset < part.read {
			// The stream hands out each record once, from the offset that we named.
			fail(fmt.Errorf("reading %s: it was recorded up to offset %d and is at %d now: the topic was made anew, or the broker lost its end; "+
				"when that is settled, run DELETE FROM stream_offsets WHERE topic = '%s' AND partition = %d to record it from its start",
				part, part.read, rec.Offset, part.topic, part.partition))
			return
		}
		if part.read >= 0 && rec.Offset > part.read {
			r.log.Error("records were gone from Kafka before they were recorded: raise kafka.internal_retention and kafka.retention, or keep Postgres up",
				"partition", part.String(), "from", part.read, "to", rec.Offset-1)
		}
		part.read = rec.Offset + 1
		e := &entry{rec: rec, part: part, offset: rec.Offset, bytes: int64(len(rec.Value)), at: rec.Time}
		if rec.Topic == stream.Events {
			e.holdEvents(rec.Value)
		} else {
			e.holdResult(rec.Value, rec.Header(task.HeaderContentType))
		}
		q.put(ctx, e)
	}
}

// undertaker returns the function that writes dead letters, each with its event.
func (r *Recorder) undertaker(out *stream.Outbox) func(context.Context, []letter) error {
	return func(ctx context.Context, ls []letter) error {
		acks := make(chan error, len(ls))
		for _, l := range ls {
			rec := l.entry.rec.(*stream.Record) // the recorder makes entries of no others
			m := stream.DeadLetter(rec, "audit", l.reason, errors.New(describe(l.cause)))
			if l.events != nil {
				// Only those of the record that were not recorded, so that replaying it
				// does not record the others again.
				b, err := task.EncodeFrame(task.FrameEvents, l.events)
				if err != nil {
					return fmt.Errorf("writing a dead letter of %s: %w", rec.Position(), err)
				}
				m.Value = b
			}
			u := stream.Unit{Messages: []stream.Message{m}, Events: []task.Event{r.burial(rec, l)}, Acked: func(err error) { acks <- err }}
			if err := out.Put(ctx, u); err != nil {
				return err
			}
		}
		for _, l := range ls {
			select {
			case err := <-acks:
				var large *stream.TooLargeError
				if errors.As(err, &large) {
					r.log.Error("a dead letter is larger than its topic takes and is dropped: raise max.message.bytes of the topic dlq",
						"partition", l.entry.part.String(), "offset", l.entry.offset, "error", err)
				} else if err != nil {
					return fmt.Errorf("writing a dead letter of %s: %w", l.entry.part, err)
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	}
}

// burial is the event of a dead letter.
func (r *Recorder) burial(rec *stream.Record, l letter) task.Event {
	e := task.Event{
		Time: time.Now().UTC(), Action: task.RecordDead, Outcome: task.OutcomeFailed, ActorType: task.ActorStage, ActorID: r.actor,
		SourceAddr: "kafka:" + rec.Position(), ResourceType: "record", ResourceID: rec.Position(), ErrorClass: task.ClassInvalid,
	}
	r.m.Stream.DeadLetters.WithLabelValues("audit", l.reason).Inc()
	e.Detail, _ = json.Marshal(map[string]any{"stage": "audit", "reason": l.reason, "error": cut(describe(l.cause), maxText), "events": len(l.events)}) // text and numbers
	return e
}
