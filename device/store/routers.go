package store

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// presentScript counts the routers that were seen recently.
//
//	KEYS[1]  sorted set of routers by when they were last seen, in ms of Redis' clock
//	ARGV[1]  this router
//	ARGV[2]  milliseconds after which a router is gone
//	returns  how many there are
var presentScript = redis.NewScript(`
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('PEXPIRE', KEYS[1], 10 * tonumber(ARGV[2]) + 1000)
return redis.call('ZCARD', KEYS[1])
`)

// Present records that the router is alive and returns how many routers are: those seen
// within the given time.
func (c *Credits) Present(ctx context.Context, router string, within time.Duration) (int, error) {
	v, err := c.run(ctx, "present", presentScript, []string{c.routers}, router, within.Milliseconds())
	if err != nil {
		return 0, fmt.Errorf("counting routers in Redis: %w", err)
	}
	n, _ := v.(int64)
	return max(1, int(n)), nil
}

// Absent records that the router stopped.
func (c *Credits) Absent(ctx context.Context, router string) error {
	if err := c.rdb.ZRem(ctx, c.routers, router).Err(); err != nil {
		return fmt.Errorf("removing router %s from Redis: %w", router, err)
	}
	return nil
}
