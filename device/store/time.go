package store

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/internal/metrics"
)

const (
	clockInterval = 5 * time.Second
	clockOff      = time.Second // a machine's clock that is off by more is reported
)

// Clock makes [clock.Now] follow Redis' time.
type Clock struct {
	rdb   redis.UniversalClient
	key   string
	log   *slog.Logger
	gauge func(ahead time.Duration)
	ahead atomic.Int64 // of this machine's clock, in ns
	off   bool         // reported
}

// NewClock returns the clock of the installation whose keys start with the prefix.
func NewClock(rdb redis.UniversalClient, prefix string, logger *slog.Logger, m *metrics.Metrics) *Clock {
	return &Clock{rdb: rdb, key: prefix + "clock", log: logger, gauge: func(ahead time.Duration) { m.Device.ClockAhead.Set(ahead.Seconds()) }}
}

// timeScript returns the time of the node that holds a key: in a Redis Cluster, all processes ask the same.
//
//	KEYS[1]  any key
//	returns  seconds, microseconds
var timeScript = redis.NewScript(`
return redis.call('TIME')
`)

// Sync asks Redis for the time once.
func (c *Clock) Sync(ctx context.Context) error {
	asked := time.Now()
	parts, err := timeScript.Run(ctx, c.rdb, []string{c.key}).Int64Slice()
	if err != nil || len(parts) != 2 {
		return fmt.Errorf("asking Redis for the time: %w", err)
	}
	ahead := clock.Observe(time.Unix(parts[0], parts[1]*1000), asked)
	c.ahead.Store(int64(ahead))
	c.gauge(ahead)
	if off := ahead.Abs() > clockOff; off != c.off {
		c.off = off
		if off {
			c.log.Error("this machine's clock differs from Redis': using Redis' time; correct the wrong one", "ahead", ahead.Round(time.Millisecond).String())
		} else {
			c.log.Info("this machine's clock agrees with Redis' again")
		}
	}
	return nil
}

// Run asks for the time every few seconds until ctx ends. While Redis does not answer, time goes on by the
// monotonic clock.
func (c *Clock) Run(ctx context.Context) {
	tick := time.NewTicker(clockInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		asking, cancel := context.WithTimeout(ctx, clockInterval)
		if err := c.Sync(asking); err != nil && ctx.Err() == nil {
			c.log.Debug("the time goes on without Redis", "error", err)
		}
		cancel()
	}
}

// Note returns what an operator should know about the clock; empty: nothing.
func (c *Clock) Note() string {
	ahead := time.Duration(c.ahead.Load())
	if ahead.Abs() <= clockOff {
		return ""
	}
	return fmt.Sprintf("this machine's clock differs by %s from Redis', whose time is used", ahead.Abs().Round(time.Second))
}
