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

		// Slow is not away: now and then one waits for as long as it takes.
		slow := func(ctx context.Context) error {
			select {
			case <-time.After(time.Second):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		require.Equal(t, redisPatience, takes(hangs))
		require.Equal(t, redisWait, takes(slow))
		time.Sleep(redisAgain) //nolint:forbidigo // virtual time
		require.Equal(t, time.Second, takes(slow))
		require.Equal(t, time.Second, takes(slow), "it answered")
		require.Equal(t, redisPatience, takes(hangs))
		time.Sleep(redisAgain) //nolint:forbidigo // virtual time
		require.Equal(t, redisPatience, takes(hangs))
		require.Equal(t, redisWait, takes(hangs), "not everybody")
		require.Zero(t, takes(answers))

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, p.askRedis(ctx, hangs), context.Canceled)
		require.Equal(t, redisPatience, takes(hangs), "that a client went away says nothing of Redis")
	})
}
