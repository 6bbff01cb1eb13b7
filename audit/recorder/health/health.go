// Package health knows whether Postgres accepts writes, and whether anything is recorded.
package health

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/internal/waiting"
)

// Health knows whether Postgres accepts writes and whether anything is recorded, and reports each change
// once.
type Health struct {
	pool    *pgxpool.Pool
	logger  *slog.Logger
	metrics *metrics.Audit

	mu     sync.Mutex
	failed error // of the latest attempt
	since  time.Time
}

// New returns the health of a recorder that has not begun.
func New(pool *pgxpool.Pool, logger *slog.Logger, m *metrics.Audit) *Health {
	return &Health{pool: pool, logger: logger, metrics: m}
}

// Queue is what waits to be recorded.
type Queue interface {
	// Oldest returns when the oldest record that is not recorded was written to the log, and since when
	// nothing of some partition was recorded although records wait; zero if nothing waits.
	Oldest() (written, stuck time.Time)
}

// Waiting says what waits to be recorded, and why. What counts is how long this process has seen it.
func (h *Health) Waiting(q Queue) (l waiting.List) {
	written, stuck := q.Oldest()
	age := 0.0
	if !written.IsZero() {
		age = max(0, clock.Since(written).Seconds())
	}
	h.metrics.OldestWaiting.Set(age)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.failed != nil { // partitions that cannot be taken over have put nothing into the queue
		l.Add(waiting.Oldest{Reason: waiting.Postgres, What: "what the stage has read", Since: h.since, Still: h.since, Cause: pg.Describe(h.failed)})
	}
	if !stuck.IsZero() {
		o := waiting.Oldest{Reason: waiting.Stuck, What: "a partition of events or results", Since: stuck, Still: stuck, Cause: "nothing of it is recorded"}
		if h.failed != nil {
			o.Reason, o.Cause = waiting.Postgres, pg.Describe(h.failed)
		}
		l.Add(o)
	}
	return l
}

// Failed returns why the latest attempt failed; nil if it did not.
func (h *Health) Failed() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.failed
}

// Set records the outcome of the latest attempt. If the server is read-only, the pool gets new
// connections: after a failover the same name leads to a server that accepts writes.
func (h *Health) Set(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil && pg.IsReadOnly(err) {
		h.pool.Reset()
	}
	was := h.failed
	h.failed = err
	if (was == nil) == (err == nil) {
		return
	}
	if err != nil {
		h.since = time.Now()
		h.metrics.PostgresDown.Set(1)
		h.logger.Warn("Postgres does not accept writes: keeping what is to be recorded and trying until it does", "error", pg.Describe(err))
		return
	}
	h.metrics.PostgresDown.Set(0)
	h.logger.Info("Postgres accepts writes again")
}

// Retry repeats do until it succeeds or ctx ends.
func (h *Health) Retry(ctx context.Context, do func(context.Context) error) error {
	wait := pg.NewBackoff()
	for {
		err := do(ctx)
		if err == nil {
			h.Set(nil)
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		h.Set(err)
		if err := pg.Sleep(ctx, wait.NextBackOff(), nil); err != nil {
			return err
		}
	}
}
