package recorder

import (
	"context"
	"log/slog"
	"sync"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/batchyard/batchyard/internal/pg"
)

// health knows whether Postgres accepts writes, and reports each change once.
type health struct {
	pool   *pgxpool.Pool
	logger *slog.Logger
	down   prometheus.Gauge

	mu     sync.Mutex
	failed bool
}

func newHealth(pool *pgxpool.Pool, logger *slog.Logger, down prometheus.Gauge) *health {
	return &health{pool: pool, logger: logger, down: down}
}

// set records the outcome of the latest attempt. If the server is read-only, the pool gets new
// connections: after a failover the same name leads to a server that accepts writes.
func (h *health) set(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil && pg.IsReadOnly(err) {
		h.pool.Reset()
	}
	if h.failed == (err != nil) {
		return
	}
	h.failed = err != nil
	if h.failed {
		h.down.Set(1)
		h.logger.Warn("Postgres does not accept writes: keeping what is to be recorded and trying until it does", "error", pg.Describe(err))
		return
	}
	h.down.Set(0)
	h.logger.Info("Postgres accepts writes again")
}

// retry repeats do until it succeeds or ctx ends.
func (h *health) retry(ctx context.Context, do func(context.Context) error) error {
	wait := pg.NewBackoff()
	for {
		err := do(ctx)
		if err == nil {
			h.set(nil)
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		h.set(err)
		if err := pg.Sleep(ctx, wait.NextBackOff(), nil); err != nil {
			return err
		}
	}
}
