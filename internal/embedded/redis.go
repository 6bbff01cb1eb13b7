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
	// redisTick is how often keys get older, and so how exact their expiry is.
	redisTick = 20 * time.Millisecond
	// redisTickShare bounds the part of the time that ageing may take: it sorts and
	// visits every key under the server's only lock (70 ms for 100,000 keys, 1 s
	// for a million; a hash of a million fields is one key). With very many keys
	// they expire less exactly instead.
	redisTickShare = 50
)

// RedisOptions are the options of StartRedis. The zero value is usable.
type RedisOptions struct {
	// Logger may be nil.
	Logger *slog.Logger
}

// Redis is a Redis inside this process. It keeps nothing on disk: Restart
// brings it back empty, which is what Batchyard must survive anyway.
type Redis struct {
	log    *slog.Logger
	port   int
	mu     sync.Mutex
	server *miniredis.Miniredis // nil while stopped
	ageing sync.WaitGroup
	halt   chan struct{} // closed to end the ageing of server
	closed bool
}

// StartRedis starts a Redis alone.
func StartRedis(ctx context.Context, o RedisOptions) (*Redis, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("starting the embedded Redis: %w", err)
	}
	r := &Redis{log: loggerOr(o.Logger)}
	// miniredis opens its own listener: between closing ours and opening that,
	// somebody may take the port. Then another one is tried.
	var last error
	for range 10 {
		l, err := listen(0)
		if err != nil {
			return nil, err
		}
		r.port = portOf(l)
		_ = l.Close()
		if last = r.serve(); last == nil {
			return r, nil
		}
	}
	return nil, last
}

// serve starts an empty server on the port. The caller holds mu or is alone.
func (r *Redis) serve() error {
	server := miniredis.NewMiniRedis()
	if err := server.StartAddr(r.Addr()); err != nil {
		return fmt.Errorf("starting the embedded Redis on %s: %w", r.Addr(), err)
	}
	r.server, r.halt = server, make(chan struct{})
	halt := r.halt
	r.ageing.Go(func() { age(server, halt) })
	return nil
}

// age moves the server's clock, which stands still otherwise, until halt.
func age(server *miniredis.Miniredis, halt <-chan struct{}) {
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

// Addr is host:port, the same for the life of the Redis.
func (r *Redis) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(r.port)) }

// Empty forgets every key at once, as a Redis does that lost its memory.
func (r *Redis) Empty() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server != nil {
		r.server.FlushAll()
	}
}

// Stop takes Redis off the network; its keys and scripts are gone.
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
	r.ageing.Wait()
	r.server.Close()
	r.server = nil
}

// Restart brings Redis back, empty, on the same address.
func (r *Redis) Restart(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return fmt.Errorf("restarting the embedded Redis on %s: it is closed", r.Addr())
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("restarting the embedded Redis on %s: %w", r.Addr(), err)
	}
	r.stop()
	return r.serve()
}

// Close stops Redis. It may be called more than once.
func (r *Redis) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.stop()
	return nil
}
