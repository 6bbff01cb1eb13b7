package device

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"github.com/redis/go-redis/v9"
)

// quiet is how long a subscription may be silent before it is asked whether it
// still lives; a second silence of that length, and it is made anew.
const quiet = 10 * time.Second

// watch hears a channel until ctx ends. onMessage gets each payload; onGap is
// called after every (re)subscription, because messages may have been missed
// before it. A connection that breaks, or that is silent without answering a
// ping, is made anew, for ever.
func watch(ctx context.Context, rdb redis.UniversalClient, channel string, onMessage func(payload string), onGap func()) error {
	wait := 50 * time.Millisecond
	for ctx.Err() == nil {
		began := time.Now()
		err := subscription(ctx, rdb, channel, onMessage, onGap)
		if errors.Is(err, redis.ErrClosed) {
			return fmt.Errorf("watching the Redis channel %s: %w", channel, err)
		}
		if time.Since(began) > quiet {
			wait = 50 * time.Millisecond
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait + rand.N(wait)):
		}
		wait = min(2*wait, 2*time.Second)
	}
	return nil
}

// subscription lives until its connection does not, or ctx ends.
func subscription(ctx context.Context, rdb redis.UniversalClient, channel string, onMessage func(string), onGap func()) error {
	ps := rdb.Subscribe(ctx, channel)
	// A blocked read does not notice that ctx ends; closing wakes it.
	stop := context.AfterFunc(ctx, func() { _ = ps.Close() })
	defer func() {
		if stop() {
			_ = ps.Close()
		}
	}()
	asked := false
	for {
		msg, err := ps.ReceiveTimeout(ctx, quiet)
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
