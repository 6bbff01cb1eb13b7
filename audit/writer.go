package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/task"
)

// writer takes chunks from the queue and does not let go of one before it is
// recorded, or is somebody else's.
type writer struct {
	db      *db
	offsets *offsets
	queue   *queue
	cfg     Config
	log     *slog.Logger
	m       *metrics.Audit
	health  *health
	slab    slab
	// bury sends dead letters and returns when they are acknowledged.
	bury func(ctx context.Context, ls []letter) error
}

// run writes until ctx ends. An error is one that only a new start heals.
func (w *writer) run(ctx context.Context) error {
	for {
		c, release := w.queue.take(ctx, w.cfg.ChunkRows, w.cfg.ChunkBytes)
		if c == nil {
			return nil
		}
		w.slab.decode(c)
		err := w.record(ctx, c)
		w.slab.reset()
		release()
		if err != nil {
			if ctx.Err() != nil {
				return nil //nolint:nilerr // what is left is read again by the next owner
			}
			return err
		}
	}
}

// record writes a chunk, however long it takes.
func (w *writer) record(ctx context.Context, c chunk) error {
	wait := newBackoff()
	for {
		c = w.ours(c)
		if len(c) == 0 {
			return nil
		}
		err := w.try(ctx, c)
		if err == nil {
			w.health.set(nil)
			for _, e := range c {
				e.rec.Done()
			}
			return nil
		}
		if ctx.Err() != nil || errors.Is(err, errBehind) {
			return err
		}
		if errors.Is(err, errAgain) {
			continue
		}
		w.m.Chunks.WithLabelValues("retried").Inc()
		w.health.set(err)
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

// ours leaves out the records that are recorded, or whose partition is somebody
// else's.
func (w *writer) ours(c chunk) chunk {
	kept := c[:0]
	for _, e := range c {
		if e.rec.Lost() || e.offset < e.part.next {
			e.rec.Done()
			continue
		}
		kept = append(kept, e)
	}
	return kept
}

// errAgain says that something was learned and the chunk is to be tried again.
var errAgain = errors.New("try again")

// try makes one attempt at a chunk.
func (w *writer) try(ctx context.Context, c chunk) error {
	if err := w.buryAll(ctx, c); err != nil {
		return err
	}
	if err := w.db.ensureDays(ctx, c, w.cfg.Retention, w.log, w.m); err != nil {
		return err
	}
	start := time.Now()
	done, err := w.db.apply(ctx, c)
	if err == nil {
		w.observe(c, done, time.Since(start))
		return nil
	}
	var lost *errNotOurs
	switch {
	case errors.As(err, &lost):
		w.m.Chunks.WithLabelValues("lost").Inc()
		for _, t := range lost.parts {
			if err := w.offsets.reclaim(ctx, t); err != nil {
				return err
			}
			w.log.Info("another process wrote a partition of ours, or the outcome of a commit was unknown: going on where it is now",
				"partition", t.String(), "next", t.next, "epoch", t.epoch)
		}
		return errAgain
	case errors.Is(err, errClosed):
		w.m.Chunks.WithLabelValues("repeated").Inc()
		w.db.careful = careChunks
		w.log.Info("a chunk could not be written by a shortcut: it is written again, and for a while none is", "chunks", careChunks, "error", describe(err))
		return errAgain
	case refused(err):
		w.m.Chunks.WithLabelValues("bisected").Inc()
		w.db.days.settle(false)
		return w.setAside(ctx, c, err)
	}
	return err
}

// setAside finds what Postgres refuses and makes dead letters of it; but when
// Postgres refuses what has no fault either, the fault is not in the records: then
// they wait, however long, until somebody has mended it.
func (w *writer) setAside(ctx context.Context, c chunk, cause error) error {
	if err := w.db.probe(ctx, faultless(c[0].part).atoms(), shardOf(c.advance())); refused(err) {
		return fmt.Errorf("recording: Postgres refuses even a plain event and result, so the records that wait are not at fault: "+
			"look for a trigger, constraint or type that Batchyard has not made, and run `batchyard migrate up`: %w", err)
	} else if err != nil {
		return err
	}
	bad, why, err := w.db.refusedAmong(ctx, c.atoms(), shardOf(c.advance()))
	if err != nil {
		return err
	}
	if len(bad) == 0 {
		return fmt.Errorf("recording a chunk that Postgres refuses, but no part of it: %w", cause)
	}
	// From the last to the first, so that the places before stay the same.
	for i := len(bad) - 1; i >= 0; i-- {
		e := bad[i].entry
		l := letter{entry: e, reason: "refused", cause: why[i]}
		if k := bad[i].index; k < 0 {
			e.result = nil
		} else {
			l.events = append(l.events, e.events[k].v)
			e.events = append(e.events[:k], e.events[k+1:]...)
		}
		e.dead = append(e.dead, l)
	}
	return errAgain
}

// faultless is what any database with our schema takes.
func faultless(part *tenure) chunk {
	now := micro(time.Now())
	t := task.Task{ID: "probe", Tenant: "batchyard", Model: "m", Endpoint: task.EndpointChat, Priority: task.Normal, SubmittedAt: now}
	e := task.NewEvent(task.TaskQueued, &t, "audit", now)
	return chunk{{part: part, events: []item[task.Event]{{v: e}}, result: task.NewResult(&t, task.Cancelled, now)}}
}

// buryAll sends the dead letters of a chunk. They are acknowledged before the
// offsets pass them; when the process dies in between, they are sent twice.
func (w *writer) buryAll(ctx context.Context, c chunk) error {
	for _, e := range c {
		if len(e.dead) == 0 {
			continue
		}
		if err := w.bury(ctx, e.dead); err != nil {
			return err
		}
		for _, l := range e.dead {
			w.log.Warn("a record cannot be recorded and went to the dead letters",
				"partition", e.part.String(), "offset", e.offset, "reason", l.reason, "error", describe(l.cause))
		}
		e.dead = nil
	}
	return nil
}

// describe is the error without the values that Postgres quotes in its details.
func describe(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return fmt.Sprintf("%s (SQLSTATE %s)", pg.Message, pg.Code)
	}
	return err.Error()
}

func (w *writer) observe(c chunk, done written, took time.Duration) {
	w.m.Chunks.WithLabelValues("ok").Inc()
	w.m.ChunkRows.Observe(float64(done.rows))
	w.m.CommitSeconds.Observe(took.Seconds())
	w.m.Rows.Add(float64(done.rows))
	w.m.Results.Add(float64(done.results))
	w.m.ResultDuplicates.Add(float64(done.duplicates))
	w.m.DefaultPartition.Add(float64(done.inDefault))
	now := time.Now()
	for _, e := range c {
		if len(e.events) > 0 {
			w.m.LagSeconds.Observe(max(0, now.Sub(e.events[0].v.Time).Seconds()))
		}
	}
}

// readOnly reports whether the server takes no writes: a standby, or one that
// was told so.
func readOnly(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == "25006"
}

// newBackoff is for Postgres: quick at first, for a restart; never giving up.
func newBackoff() *backoff.ExponentialBackOff {
	return backoff.NewExponentialBackOff(backoff.WithInitialInterval(50*time.Millisecond),
		backoff.WithMaxInterval(5*time.Second), backoff.WithMaxElapsedTime(0))
}

// pause waits for the next try.
func pause(ctx context.Context, b *backoff.ExponentialBackOff) error {
	t := time.NewTimer(b.NextBackOff())
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
