package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"github.com/redis/go-redis/v9"
)

// pingAfter is how long a subscription may be silent before it is pinged. After a second
// silence of that length it is recreated.
const pingAfter = 10 * time.Second

// watch subscribes to a channel until ctx ends. onMessage gets each payload; onGap is
// called after every (re)subscription, because messages may have been missed before it. It
// reconnects indefinitely when the connection drops or stops answering pings.
func (c *conn) watch(ctx context.Context, channel string, onMessage func(payload string), onGap func()) error {
	wait := 50 * time.Millisecond
	for ctx.Err() == nil {
		began := time.Now()
		err := c.subscribe(ctx, channel, onMessage, onGap)
		if errors.Is(err, redis.ErrClosed) {
			return fmt.Errorf("watching the Redis channel %s: %w", channel, err)
		}
		if time.Since(began) > pingAfter {
			wait = 50 * time.Millisecond
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait + rand.N(wait)):
		}
		wait = min(2*wait, time.Second)
	}
	return nil
}

// subscribe receives messages until the connection fails or ctx ends.
func (c *conn) subscribe(ctx context.Context, channel string, onMessage func(string), onGap func()) error {
	ps := c.rdb.Subscribe(ctx, channel)
	// A blocked read does not notice that ctx ended; closing the connection unblocks it.
	stop := context.AfterFunc(ctx, func() { _ = ps.Close() })
	defer func() {
		if stop() {
			_ = ps.Close()
		}
	}()
	asked := false
	for {
		msg, err := ps.ReceiveTimeout(ctx, pingAfter)
		if ctx.Err() != nil {
			return nil
		}
		var timeout net.Error
		switch {
		case err == nil:
			asked = false
		case errors.As(err, &timeout) && timeout.Timeout() && !asked:
			asked = true
			if err := ps.Ping(ctx); err != nil {
				return err
			}
			continue
		default:
			return err
		}
		switch m := msg.(type) {
		case *redis.Subscription:
			if m.Kind == "subscribe" {
				onGap()
			}
		case *redis.Message:
			onMessage(m.Payload)
		}
	}
}
