package producer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/semaphore"

	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// outboxUnits bounds how many submits may be written at a time.
const outboxUnits = 4096

// How long a caller whose tasks are durable already waits for Redis. On a busy machine Redis may take
// a while, and until it has the tasks, other processes answer that they don't exist. But when Redis
// is unreachable, callers should not all wait that long.
const (
	redisTimeout       = 2 * time.Second
	redisShortTimeout  = 250 * time.Millisecond // after it did not answer
	redisRetryInterval = 10 * time.Second       // after which one caller uses the long timeout again
)

// Producer accepts tasks. It may be used from any goroutine.
type Producer struct {
	cfg      Config
	limits   task.Limits
	logger   *slog.Logger
	metrics  *metrics.Metrics
	stream   *stream.Client
	outbox   *stream.Outbox
	instance string // this process, as the actor of events that are not a user's
	recent   *ring
	shared   *recentIndex
	jobs     *jobIndex
	known    Known // nil: unknown
	bound    bindings
	cancels  *store.Overrides // nil without Redis
	bytes    *semaphore.Weighted

	// retryRedisAt is set while Redis does not answer: when to use the long timeout again, in
	// nanoseconds of Unix time; 0 while it answers.
	retryRedisAt atomic.Int64

	mu          sync.Mutex
	closed      bool
	running     sync.WaitGroup
	warnOnce    sync.Once // about Redis, not for every submit
	warnUnbound sync.Once
	warnJobs    sync.Once

	// abandoned is closed when Close stopped waiting; unacknowledged submits then get ErrClosed.
	abandoned chan struct{}
}

// Deps is what a producer talks to.
type Deps struct {
	Stream   *stream.Client
	Redis    redis.UniversalClient // nil: recent tasks are not shared with other processes
	Prefix   string                // of keys in Redis
	Cancels  *store.Overrides      // nil: cancels go to Kafka only
	Known    Known                 // nil: ids are not compared with what Postgres has
	Logger   *slog.Logger          // nil: none
	Metrics  *metrics.Metrics      // nil: none
	Instance string                // this process, in events: stage@host-pid
}

// New returns a producer. Close it, so that its last writes are finished.
func New(cfg Config, d Deps) *Producer {
	cfg = cfg.withDefaults()
	if d.Logger == nil {
		d.Logger = slog.New(slog.DiscardHandler)
	}
	if d.Metrics == nil {
		d.Metrics = metrics.New(nil)
	}
	return &Producer{
		cfg: cfg, stream: d.Stream, limits: cfg.Limits(), logger: d.Logger, metrics: d.Metrics, instance: d.Instance,
		outbox:  d.Stream.NewOutbox("producer", outboxUnits, cfg.MaxInFlight),
		recent:  newRing(cfg.RecentTasks),
		shared:  &recentIndex{rdb: d.Redis, ttl: cfg.RecentTTL, prefix: d.Prefix},
		jobs:    &jobIndex{rdb: d.Redis, ttl: cfg.JobTTL, prefix: d.Prefix},
		cancels: d.Cancels, known: d.Known,
		bound: bindings{rdb: d.Redis, ttl: cfg.RecentTTL, prefix: d.Prefix, now: time.Now},
		bytes: semaphore.NewWeighted(cfg.MaxInFlight),

		abandoned: make(chan struct{}),
	}
}

// Config returns the producer's configuration, defaults filled in.
func (p *Producer) Config() Config { return p.cfg }

// put hands a unit over and waits until all in-sync replicas have it, or never will.
func (p *Producer) put(ctx context.Context, u stream.Unit) error {
	acked := make(chan error, 1)
	u.Acked = func(err error) { acked <- err }
	if err := p.outbox.Put(ctx, u); err != nil {
		return err
	}
	select {
	case err := <-acked:
		return err
	case <-p.abandoned:
		return ErrClosed
	}
}

// start runs f, and Close waits for it. It returns false when the producer is closed.
func (p *Producer) start(f func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.running.Go(f)
	return true
}

// runToEnd runs f to its end even if the caller goes away. what is for the error.
func (p *Producer) runToEnd(ctx context.Context, what string, f func(context.Context) error) error {
	done := make(chan error, 1)
	if !p.start(func() { done <- f(context.WithoutCancel(ctx)) }) {
		return ErrClosed
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s, outcome unknown: %w", what, ctx.Err())
	}
}

// askRedis calls f with the timeout for Redis.
func (p *Producer) askRedis(ctx context.Context, f func(context.Context) error) error {
	timeout, now := redisTimeout, time.Now()
	next := now.Add(redisRetryInterval).UnixNano()
	if at := p.retryRedisAt.Load(); at != 0 && (now.UnixNano() < at || !p.retryRedisAt.CompareAndSwap(at, next)) {
		timeout = redisShortTimeout
	}
	within, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := f(within)
	switch {
	case err == nil:
		p.retryRedisAt.Store(0)
	case ctx.Err() == nil: // else the caller went away
		p.retryRedisAt.CompareAndSwap(0, next)
	}
	return err
}

// Close refuses new submits, and waits until those that were started are written, or ctx ends.
func (p *Producer) Close(ctx context.Context) error {
	p.mu.Lock()
	already := p.closed
	p.closed = true
	p.mu.Unlock()
	if already {
		return nil
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.running.Wait()
	}()
	select {
	case <-done:
	case <-ctx.Done():
		close(p.abandoned)
		return errors.Join(fmt.Errorf("closing the producer while submits are being written: %w", ctx.Err()), p.outbox.Close(ctx))
	}
	if err := p.outbox.Close(ctx); err != nil {
		return fmt.Errorf("closing the producer: %w", err)
	}
	return nil
}
