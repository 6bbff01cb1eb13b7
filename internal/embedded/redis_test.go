package embedded

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

func startRedis(t *testing.T) (*Redis, *redis.Client) {
	t.Helper()
	r, err := StartRedis(within(t), RedisOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	c := redis.NewClient(&redis.Options{Addr: r.Addr()})
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return r, c
}

func TestRedisKeysExpire(t *testing.T) {
	t.Parallel()
	_, c := startRedis(t)
	ctx := within(t)
	require.NoError(t, c.Set(ctx, "short", "x", 100*time.Millisecond).Err())
	require.NoError(t, c.Set(ctx, "long", "x", time.Hour).Err())
	require.EqualValues(t, 1, c.Exists(ctx, "short").Val())
	require.Eventually(t, func() bool { return c.Exists(ctx, "short").Val() == 0 }, 30*time.Second, 10*time.Millisecond)
	require.Greater(t, c.TTL(ctx, "long").Val(), 58*time.Minute)
}

func TestRedisScriptsCanReadTheClock(t *testing.T) {
	t.Parallel()
	_, c := startRedis(t)
	ctx := within(t)
	script := redis.NewScript(`
		local t = redis.call('TIME')
		local now = t[1] * 1000 + math.floor(t[2] / 1000)
		redis.call('ZADD', KEYS[1], now + ARGV[1], 'late')
		redis.call('ZADD', KEYS[1], now - 1, 'due')
		redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
		redis.call('HSET', KEYS[2], 'at', now)
		redis.call('PEXPIRE', KEYS[2], ARGV[1])
		return {now, redis.call('ZCARD', KEYS[1]), redis.call('PTTL', KEYS[2])}`)
	before := time.Now().UnixMilli()
	for range 2 { // first by source, then by hash
		got, err := script.Run(ctx, c, []string{"{k}:z", "{k}:h"}, 60_000).Int64Slice()
		require.NoError(t, err)
		require.GreaterOrEqual(t, got[0], before)
		require.LessOrEqual(t, got[0], time.Now().UnixMilli())
		require.EqualValues(t, 1, got[1])
		require.Greater(t, got[2], int64(30_000))
	}
}

func TestRedisPublishSubscribe(t *testing.T) {
	t.Parallel()
	_, c := startRedis(t)
	ctx := within(t)
	sub := c.Subscribe(ctx, "news")
	defer func() { require.NoError(t, sub.Close()) }()
	_, err := sub.Receive(ctx)
	require.NoError(t, err)
	require.NoError(t, c.Publish(ctx, "news", "hello").Err())
	m, err := sub.ReceiveMessage(ctx)
	require.NoError(t, err)
	require.Equal(t, "hello", m.Payload)
}

func TestRedisLosesKeysWhenEmptiedOrRestarted(t *testing.T) {
	t.Parallel()
	r, c := startRedis(t)
	ctx := within(t)
	require.NoError(t, c.Set(ctx, "k", "v", 0).Err())
	r.Empty()
	require.ErrorIs(t, c.Get(ctx, "k").Err(), redis.Nil)

	require.NoError(t, c.Set(ctx, "k", "v", 0).Err())
	addr := r.Addr()
	require.NoError(t, r.Stop())
	require.Error(t, c.Get(ctx, "k").Err())
	require.NoError(t, r.Restart(ctx))
	require.Equal(t, addr, r.Addr())
	require.Eventually(t, func() bool { return c.Ping(ctx).Err() == nil }, 30*time.Second, 10*time.Millisecond)
	require.ErrorIs(t, c.Get(ctx, "k").Err(), redis.Nil)

	require.NoError(t, r.Close())
	require.Error(t, r.Restart(ctx), "a closed Redis cannot be restarted")
}
