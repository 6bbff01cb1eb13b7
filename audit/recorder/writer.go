package recorder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/batchyard/batchyard/audit/recorder/clean"
	"github.com/batchyard/batchyard/audit/recorder/health"
	"github.com/batchyard/batchyard/audit/recorder/pace"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/task"
)

// writer takes chunks from the queue. It keeps each until it is recorded, or its partitions belong
// to another process.
type writer struct {
	chunks  *chunkWriter
	offsets *offsets
	queue   *queue
	health  *health.Health
	cfg     Config
	pace    *pace.Pace
	logger  *slog.Logger
	metrics *metrics.Audit
	slab    slab
	// sendDead writes dead letters and returns when they are acknowledged.
	sendDead func(ctx context.Context, letters []deadLetter) error
}

// run writes until ctx ends. After an error the process has to be restarted.
func (w *writer) run(ctx context.Context) error {
	for {
		c, release := w.queue.take(ctx, w.pace.Rows(), w.cfg.ChunkBytes)
		if c == nil {
			return nil
		}
		w.slab.decode(c)
		err := w.record(ctx, c)
		w.slab.reset()
		release()
		if err != nil {
			if ctx.Err() != nil {
				return nil //nolint:nilerr // the next owner reads again what is left
			}
			return err
		}
	}
}

// record writes a chunk, however long it takes: as a whole, or piece by piece if it runs into a timeout.
func (w *writer) record(ctx context.Context, c chunk) error {
	wait := pg.NewBackoff()
	for {
		c = unrecorded(c)
		if len(c) == 0 {
			return nil
		}
		piece := c.first(w.pace.Rows())
		err := w.attempt(ctx, piece)
		if err == nil {
			w.recorded(ctx, piece)
			c = c[len(piece):]
			continue
		}
		if ctx.Err() != nil || errors.Is(err, errOffsetsSetBack) {
			return err
		}
		if errors.Is(err, errRetryNow) || w.makeSmaller(piece, err) {
			continue
		}
		w.metrics.Chunks.WithLabelValues("retried").Inc()
		w.health.Set(err)
		if err := pg.Sleep(ctx, wait.NextBackOff(), nil); err != nil {
			return err
		}
	}
}

// recorded notes that a piece of a chunk was committed.
func (w *writer) recorded(ctx context.Context, piece chunk) {
	w.health.Set(nil)
	w.pace.Passed(piece.rows())
	w.chunks.patience = 0
	w.queue.moved(piece)
	for _, e := range piece {
		if e.hole != nil {
			w.offsets.breaks.noticed(ctx, e.hole)
		}
		e.rec.Done()
	}
}

// makeSmaller reports whether an attempt ran into a timeout and the next one writes less: the same again
// would take as long again. A single record is tried with more patience, after a pause.
func (w *writer) makeSmaller(piece chunk, err error) bool {
	if !pg.IsTimeout(err) && !(errors.Is(err, context.DeadlineExceeded) && w.chunks.began) {
		return false
	}
	w.metrics.Chunks.WithLabelValues("timed_out").Inc()
	if len(piece) == 1 {
		w.chunks.patience++
		return false
	}
	w.pace.TimedOut(piece.rows())
	w.logger.Warn("a transaction took longer than Postgres or audit.write_timeout allows: writing fewer rows at a time",
		"rows", piece.rows(), "now", w.pace.Rows(), "error", pg.Describe(err))
	return true
}

// unrecorded leaves out the entries that are recorded already, or whose partition was lost or has to
// be acquired again.
func unrecorded(c chunk) chunk {
	kept := c[:0]
	for _, e := range c {
		if e.rec.Lost() || e.part.stale || e.offset < e.part.next {
			e.rec.Done()
			continue
		}
		kept = append(kept, e)
	}
	return kept
}

// errRetryNow says that the chunk has to be tried again at once, in another way.
var errRetryNow = errors.New("retry now")

// attempt makes one attempt at a chunk.
func (w *writer) attempt(ctx context.Context, c chunk) error {
	if err := w.sendAllDead(ctx, c); err != nil {
		return err
	}
	if err := w.chunks.ensureDays(ctx, c); err != nil {
		return err
	}
	start := time.Now()
	done, err := w.chunks.apply(ctx, c)
	if err == nil {
		w.observe(c, done, time.Since(start))
		return nil
	}
	var lost *lostFenceError
	var foreign *foreignError
	switch {
	case errors.As(err, &lost):
		w.metrics.Chunks.WithLabelValues("lost").Inc()
		for _, part := range lost.parts {
			if err := w.offsets.reclaim(ctx, part); err != nil {
				return err
			}
			if part.stale {
				continue
			}
			w.logger.Info("another process wrote a partition that this one owns, or the outcome of a commit was unknown: continuing where it is now",
				"partition", part.String(), "next", part.next, "epoch", part.epoch)
		}
		return errRetryNow
	case errors.Is(err, errShortcutClosed):
		w.metrics.Chunks.WithLabelValues("repeated").Inc()
		w.chunks.safeChunks = slowPathChunks
		w.logger.Info("a chunk could not be written by a shortcut: writing it and the next ones without", "chunks", slowPathChunks, "error", pg.Describe(err))
		return errRetryNow
	case pg.IsRefused(err):
		w.metrics.Chunks.WithLabelValues("bisected").Inc()
		w.chunks.days.acquit()
		err = w.setAside(ctx, c, err)
	}
	if errors.As(err, &foreign) { // from setAside, too
		w.setForeignAside(foreign)
		return errRetryNow
	}
	return err
}

// setAside finds what Postgres refuses in a chunk and makes dead letters of it. But if Postgres
// refuses even what is known to be good, the records are not at fault: then they wait, however
// long, until an operator has repaired the database.
func (w *writer) setAside(ctx context.Context, c chunk, cause error) error {
	shard := c.advance().shard()
	if err := w.chunks.probe(ctx, knownGood(c[0].part).units(), shard); pg.IsRefused(err) {
		return fmt.Errorf("recording: Postgres refuses even a plain event and result, so the waiting records are not at fault: "+
			"look for a trigger, constraint or type that Batchyard did not create, and run `batchyard migrate up`: %w", err)
	} else if err != nil {
		return err
	}
	refused, reasons, err := w.chunks.refusedAmong(ctx, c.units(), shard)
	if err != nil {
		return err
	}
	if len(refused) == 0 {
		return fmt.Errorf("recording a chunk that Postgres refuses, although it refuses no part of it: %w", cause)
	}
	if i := slices.IndexFunc(refused, func(u unit) bool { return u.entry.hole != nil }); i >= 0 {
		return fmt.Errorf("recording that records are missing: %w", reasons[i]) // it is no record, so it cannot be a dead letter
	}
	// From the last to the first, so that the indexes of those before stay valid.
	for i := len(refused) - 1; i >= 0; i-- {
		refused[i].setAside(reasonRefused, reasons[i])
	}
	return errRetryNow
}

// knownGood is an event and a result that any database with the right schema accepts.
func knownGood(part *ownership) chunk {
	now := clean.Micro(time.Now())
	t := task.Task{ID: "probe", Tenant: "batchyard", Model: "m", Endpoint: task.EndpointChat, Priority: task.Normal, SubmittedAt: now}
	e := task.NewEvent(task.TaskQueued, &t, "audit", now)
	return chunk{{part: part, events: []indexedEvent{{event: e}}, result: task.NewResult(&t, task.Cancelled, now)}}
}

// sendAllDead writes the dead letters of a chunk. They are acknowledged before the offsets pass
// their records; if the process dies in between, they are written twice.
func (w *writer) sendAllDead(ctx context.Context, c chunk) error {
	for _, e := range c {
		if len(e.dead) == 0 {
			continue
		}
		if err := w.sendDead(ctx, e.dead); err != nil {
			return err
		}
		e.dead = nil
	}
	return nil
}

func (w *writer) observe(c chunk, done written, took time.Duration) {
	w.metrics.Chunks.WithLabelValues("ok").Inc()
	w.metrics.ChunkRows.Observe(float64(done.rows))
	w.metrics.CommitSeconds.Observe(took.Seconds())
	w.metrics.Rows.Add(float64(done.rows))
	w.metrics.Results.Add(float64(done.results))
	w.metrics.ResultDuplicates.Add(float64(done.duplicates))
	w.metrics.DefaultPartition.Add(float64(done.inDefault))
	now := time.Now()
	for _, e := range c {
		if len(e.events) > 0 {
			w.metrics.LagSeconds.Observe(max(0, now.Sub(e.events[0].event.Time).Seconds()))
		}
	}
}
