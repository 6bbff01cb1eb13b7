package store

import (
	"context"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
)

func TestCancels(t *testing.T) {
	onRedis(t, func(t *testing.T, rdb redis.UniversalClient, prefix string) {
		c := NewOverrides(rdb, Config{}, prefix)
		got, gaps := make(chan []task.Key, 10), make(chan struct{}, 10)
		background(t, func(ctx context.Context) error {
			return c.WatchCancels(ctx, func(k []task.Key) { got <- k }, func() { gaps <- struct{}{} })
		})
		wait(t, gaps, "the first subscription")
		a, b := task.Key{Tenant: "t", ID: "a"}, task.Key{Tenant: "t", ID: "b"}
		require.NoError(t, c.Cancel(t.Context(), a))
		require.Equal(t, []task.Key{a}, wait(t, got, "the cancel"))
		require.NoError(t, rdb.Publish(t.Context(), c.channel, "noise").Err())
		require.NoError(t, c.Cancel(t.Context(), a))
		require.Equal(t, []task.Key{a}, wait(t, got, "the cancel after noise"))

		marked, err := c.Cancelled(t.Context(), a, b, task.Key{Tenant: "u", ID: "a"})
		require.NoError(t, err)
		require.Equal(t, []bool{true, false, false}, marked)
	})
}

func TestCancelsExpire(t *testing.T) {
	m := miniredis.RunT(t)
	c := NewOverrides(client(t, m.Addr()), Config{CancelTTL: time.Minute}, "")
	require.NoError(t, c.Cancel(t.Context(), task.Key{Tenant: "t", ID: "a"}))
	m.FastForward(2 * time.Minute)
	require.Empty(t, m.Keys())
}
