package producer

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// TestPatienceWithRedis: it is waited for as long as it may take on a busy machine,
// but not by every submit while it is away.
func TestPatienceWithRedis(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &Producer{}
		hangs := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		answers := func(context.Context) error { return nil }
		takes := func(f func(context.Context) error) time.Duration {
			begin := time.Now()
			_ = p.askRedis(t.Context(), f)
			return time.Since(begin)
		}
		require.Equal(t, redisPatience, takes(hangs))
		require.Equal(t, redisWait, takes(hangs))
		require.Equal(t, redisWait, takes(hangs))
		require.Zero(t, takes(answers))
		require.Equal(t, redisPatience, takes(hangs))
		require.Zero(t, takes(answers))

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, p.askRedis(ctx, hangs), context.Canceled)
		require.Equal(t, redisPatience, takes(hangs), "that a client went away says nothing of Redis")
	})
}
