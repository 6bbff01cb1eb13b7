// Package health knows whether Postgres accepts writes, and whether anything is recorded.
package health

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/pg"
)

// Health knows whether Postgres accepts writes and whether anything is recorded, and reports each change
// once.
type Health struct {
	pool    *pgxpool.Pool
	logger  *slog.Logger
	metrics *metrics.Audit

	mu      sync.Mutex
	failed  error // of the latest attempt
	since   time.Time
	stalled error
}

// New returns the health of a recorder that has not begun.
func New(pool *pgxpool.Pool, logger *slog.Logger, m *metrics.Audit) *Health {
	return &Health{pool: pool, logger: logger, metrics: m}
}

// Waiting is what waits to be recorded.
type Waiting interface {
	// Oldest returns when the oldest record that is not recorded was written to the log, and since when
	// nothing of some partition was recorded although records wait; zero if nothing waits.
	Oldest() (written, stuck time.Time)
}

// Watch looks every second, until ctx ends, whether records wait and nothing is recorded. It compares no
// clocks: what counts is how long this process has seen it.
func (h *Health) Watch(ctx context.Context, q Waiting, limit time.Duration) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			h.Look(now, q, limit)
		case <-ctx.Done():
			return
		}
	}
}

// Look is one look of Watch.
func (h *Health) Look(now time.Time, q Waiting, limit time.Duration) {
	written, stuck := q.Oldest()
	age := 0.0
	if !written.IsZero() {
		age = max(0, now.Sub(written).Seconds())
	}
	h.metrics.OldestWaiting.Set(age)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.failed != nil && (stuck.IsZero() || h.since.Before(stuck)) {
		stuck = h.since // partitions that cannot be taken over have put nothing into the queue
	}
	was := h.stalled
	h.stalled = nil
	if stuck.IsZero() || now.Sub(stuck) < limit {
		h.metrics.Stalled.Set(0)
		if was != nil {
			h.logger.Info("records are recorded again")
		}
		return
	}
	h.stalled = fmt.Errorf("records wait, but for %s nothing of some partition was recorded", now.Sub(stuck).Round(time.Second))
	if h.failed != nil {
		h.stalled = fmt.Errorf("%w: %s", h.stalled, pg.Describe(h.failed))
	}
	h.metrics.Stalled.Set(1)
	if was == nil {
		h.logger.Error("recording stands still", "error", h.stalled)
	}
}

// Stalled returns why recording stands still; nil if it does not.
func (h *Health) Stalled() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stalled
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
