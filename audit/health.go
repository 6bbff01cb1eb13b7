package audit

import (
	"context"
	"log/slog"
	"sync"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

// health knows whether Postgres takes what is written, and says so once when it
// changes.
type health struct {
	pool *pgxpool.Pool
	log  *slog.Logger
	down prometheus.Gauge

	mu  sync.Mutex
	bad bool
}

// set notes the outcome of the latest attempt. When the server takes no writes,
// the pool gets new connections: behind the same name there may be one that does.
func (h *health) set(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil && readOnly(err) {
		h.pool.Reset()
	}
	if h.bad == (err != nil) {
		return
	}
	h.bad = err != nil
	if h.bad {
		h.down.Set(1)
		h.log.Warn("Postgres does not take what is to be recorded: keeping it and trying until it does", "error", describe(err))
		return
	}
	h.down.Set(0)
	h.log.Info("Postgres takes what is to be recorded again")
}

// retry repeats something until it works or ctx ends.
func (h *health) retry(ctx context.Context, do func(context.Context) error) error {
	wait := newBackoff()
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
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}
