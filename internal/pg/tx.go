package pg

import (
	"context"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"
)

// Rollback ends a transaction that was not committed; after a commit it does nothing. It has five
// seconds of its own, because the caller's context may have ended.
func Rollback(ctx context.Context, tx pgx.Tx) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_ = tx.Rollback(ctx) // fails if the connection is broken, and then the server rolls back
}

// Flush sends a batch within a transaction and returns the first error; doing says what the
// batch does, for the error.
func Flush(ctx context.Context, tx pgx.Tx, b *pgx.Batch, doing string) error {
	if b.Len() == 0 {
		return nil
	}
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return nil
}

// NewBackoff returns a backoff for Postgres: short at first, for a restart; at most five seconds;
// without an end.
func NewBackoff() *backoff.ExponentialBackOff {
	return backoff.NewExponentialBackOff(backoff.WithInitialInterval(50*time.Millisecond),
		backoff.WithMaxInterval(5*time.Second), backoff.WithMaxElapsedTime(0))
}

// Sleep waits for d, or until wake is readable (nil: never), or until ctx ends, which is the only error.
func Sleep(ctx context.Context, d time.Duration, wake <-chan struct{}) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-wake:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
