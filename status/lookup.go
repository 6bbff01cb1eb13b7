package status

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/sony/gobreaker/v2"

	"github.com/batchyard/batchyard/task"
)

// ErrUnchecked says that Postgres was not asked, or did not answer in time. The caller goes on without
// its answer.
var ErrUnchecked = errors.New("Postgres did not say what is known about the tasks") //nolint:staticcheck // a name

// Lookup asks [Store.Known] on behalf of stages that must not wait for Postgres: for a bounded time, and
// not at all for a while after it failed to answer.
type Lookup struct {
	store   *Store
	cfg     Config
	breaker *gobreaker.CircuitBreaker[[]task.Known]
}

// NewLookup returns a lookup in the store.
func NewLookup(cfg Config, store *Store, logger *slog.Logger) *Lookup {
	cfg = cfg.withDefaults()
	return &Lookup{store: store, cfg: cfg, breaker: gobreaker.NewCircuitBreaker[[]task.Known](gobreaker.Settings{
		Name: "postgres", MaxRequests: 1, Timeout: cfg.LookupRetry,
		ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures > 0 },
		// A caller that goes away says nothing about Postgres.
		IsExcluded: func(err error) bool { return errors.Is(err, context.Canceled) },
		OnStateChange: func(_ string, _, to gobreaker.State) {
			switch to {
			case gobreaker.StateOpen:
				logger.Warn("Postgres does not say which tasks have been answered: until it does, one whose claim has expired may run again", "retry_after", cfg.LookupRetry)
			case gobreaker.StateClosed:
				logger.Info("Postgres says again which tasks have been answered")
			case gobreaker.StateHalfOpen:
			}
		},
	})}
}

// Known returns what is recorded about each of the tasks. Any error is an [ErrUnchecked].
func (l *Lookup) Known(ctx context.Context, keys []task.Key) ([]task.Known, error) {
	known, err := l.breaker.Execute(func() ([]task.Known, error) {
		ctx, cancel := context.WithTimeout(ctx, l.cfg.LookupTimeout)
		defer cancel()
		return l.store.Known(ctx, keys)
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnchecked, err)
	}
	return known, nil
}
