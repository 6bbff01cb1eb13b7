package embedded

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"
)

const (
	// redisTick is how often the server's clock is advanced, which is how precisely
	// keys expire.
	redisTick = 20 * time.Millisecond
	// redisTickShare limits advancing the clock to 1/50 of the time. It sorts and
	// visits every key under the server's only lock: 70 ms for 100,000 keys, 1 s for
	// a million (a hash of a million fields is one key). With very many keys,
	// expiry becomes less precise instead.
	redisTickShare = 50
)

// RedisOptions are the options of StartRedis. The zero value is usable.
type RedisOptions struct {
	// Logger may be nil.
	Logger *slog.Logger
}

// Redis is a Redis server inside this process. It has no persistence, so Restart
// brings it back empty, which Batchyard has to survive anyway.
type Redis struct {
	log    *slog.Logger
	port   int
	mu     sync.Mutex
	server *miniredis.Miniredis // nil while stopped
	clock  sync.WaitGroup
	halt   chan struct{} // closed to stop the server's clock
	closed bool
}

// StartRedis starts just a Redis.
func StartRedis(ctx context.Context, o RedisOptions) (*Redis, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("starting the embedded Redis: %w", err)
	}
	r := &Redis{log: loggerOr(o.Logger)}
	// miniredis opens its own listener. Another process may take the port between
	// closing ours and that; then try another port.
	var lastErr error
	for range 10 {
		l, err := listen(0)
		if err != nil {
			return nil, err
		}
		r.port = portOf(l)
		_ = l.Close()
		if lastErr = r.serve(); lastErr == nil {
			return r, nil
		}
	}
	return nil, lastErr
}

// serve starts an empty server on the port. The caller holds mu, or no one else
// has the Redis yet.
func (r *Redis) serve() error {
	server := miniredis.NewMiniRedis()
	if err := server.StartAddr(r.Addr()); err != nil {
		return fmt.Errorf("starting the embedded Redis on %s: %w", r.Addr(), err)
	}
	r.server, r.halt = server, make(chan struct{})
	halt := r.halt
	r.clock.Go(func() { runClock(server, halt) })
	return nil
}

// runClock advances the clock of the server, which otherwise stands still, until
// halt is closed.
func runClock(server *miniredis.Miniredis, halt <-chan struct{}) {
	last := time.Now()
	timer := time.NewTimer(redisTick)
	defer timer.Stop()
	for {
		select {
		case <-halt:
			return
		case <-timer.C:
		}
		now := time.Now()
		server.FastForward(now.Sub(last))
		last = now
		timer.Reset(max(redisTick, redisTickShare*time.Since(now)))
	}
}

// Addr is the server's host:port, which never changes.
func (r *Redis) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(r.port)) }

// Empty deletes all keys at once, like a Redis that lost its memory.
func (r *Redis) Empty() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server != nil {
		r.server.FlushAll()
	}
}

// Stop takes Redis off the network and drops its keys and scripts.
func (r *Redis) Stop() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stop()
	return nil
}

func (r *Redis) stop() {
	if r.server == nil {
		return
	}
	close(r.halt)
	r.clock.Wait()
	r.server.Close()
	r.server = nil
}

// Restart brings Redis back, empty, on the same address.
func (r *Redis) Restart(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return fmt.Errorf("restarting the embedded Redis on %s: already closed", r.Addr())
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("restarting the embedded Redis on %s: %w", r.Addr(), err)
	}
	r.stop()
	return r.serve()
}

// Close stops Redis. Calling it again does nothing.
func (r *Redis) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.stop()
	return nil
}
