package producer

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A submit waits as long for Redis as a busy machine may need, but not every submit does while Redis is
// unreachable.
func TestRedisTimeouts(t *testing.T) {
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
		require.Equal(t, redisTimeout, takes(hangs))
		require.Equal(t, redisShortTimeout, takes(hangs))
		require.Equal(t, redisShortTimeout, takes(hangs))
		require.Zero(t, takes(answers))
		require.Equal(t, redisTimeout, takes(hangs))
		require.Zero(t, takes(answers))

		// Slow is not unreachable: from time to time a call uses the long timeout.
		slow := func(ctx context.Context) error {
			select {
			case <-time.After(time.Second):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		require.Equal(t, redisTimeout, takes(hangs))
		require.Equal(t, redisShortTimeout, takes(slow))
		time.Sleep(redisRetryInterval) //nolint:forbidigo // virtual time
		require.Equal(t, time.Second, takes(slow))
		require.Equal(t, time.Second, takes(slow), "it answered")
		require.Equal(t, redisTimeout, takes(hangs))
		time.Sleep(redisRetryInterval) //nolint:forbidigo // virtual time
		require.Equal(t, redisTimeout, takes(hangs))
		require.Equal(t, redisShortTimeout, takes(hangs), "only one of them")
		require.Zero(t, takes(answers))

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, p.askRedis(ctx, hangs), context.Canceled)
		require.Equal(t, redisTimeout, takes(hangs), "a client that goes away says nothing about Redis")
	})
}
