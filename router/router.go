package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// Stage is the name under which dead letters and events say who acted.
const Stage = "router"

// Deps is what a router works with.
type Deps struct {
	Log      *stream.Log
	Redis    redis.UniversalClient
	Prefix   string // of keys in Redis
	Registry *device.Registry
	Credits  *device.Credits
	Rates    *device.Rates
	Cancels  *device.Cancels
	Control  *device.Control
	Limits   task.Limits
	Metrics  *metrics.Metrics
	Logger   *slog.Logger
	Instance string // host and process: who acted, in events and leases

	Retention time.Duration // of the tasks topics; 0: records stay for ever
}

// Router reads tasks and writes assignments. Any number of routers may run.
type Router struct {
	cfg    Config
	deps   Deps
	claims claims
	sched  *scheduler
	outbox *stream.Outbox
}

// New returns a router; Run starts it.
func New(cfg Config, deps Deps) (*Router, error) {
	policy, err := NewPolicy(cfg.Policy, cfg)
	if err != nil {
		return nil, err
	}
	outbox := deps.Log.NewOutbox(Stage, 4*cfg.RoundPicks, 64<<20)
	sched, err := newScheduler(cfg, deps, policy, outbox)
	if err != nil {
		return nil, err
	}
	return &Router{
		cfg: cfg, deps: deps, outbox: outbox,
		claims: claims{rdb: deps.Redis, prefix: deps.Prefix, ttl: cfg.ClaimTTL, now: time.Now},
		sched:  sched,
	}, nil
}

// Run routes until ctx ends. Then it assigns nothing more, waits for what it
// has written to be acknowledged, and leaves; tasks that still wait in the
// window were never finished, so another router reads them.
func (r *Router) Run(ctx context.Context, ready func()) error {
	reading, stopReading := context.WithCancel(context.WithoutCancel(ctx))
	defer stopReading()
	topics := []string{stream.TasksHigh, stream.TasksNormal, stream.TasksLow, stream.TasksParked}
	var joined sync.WaitGroup
	joined.Add(len(topics))
	var ended atomic.Bool
	go func() {
		joined.Wait()
		if !ended.Load() {
			ready()
		}
	}()

	var consumers sync.WaitGroup
	failed := make(chan error, len(topics))
	for _, topic := range topics {
		consumers.Go(func() {
			cfg := stream.ConsumerConfig{
				Group: Stage, Topic: topic, MaxRecords: r.cfg.WindowCount, MaxBytes: r.cfg.WindowBytes,
				DrainTimeout: 50 * time.Millisecond, OnStraggler: r.sched.straggler, OnLost: r.sched.partitionLost,
			}
			once := sync.OnceFunc(joined.Done)
			err := r.deps.Log.Consume(reading, cfg, r.intake, once)
			ended.Store(true)
			once() // it may have ended before it joined
			if err != nil {
				failed <- fmt.Errorf("reading %s: %w", topic, err)
			}
		})
	}

	var err error
	deciding, stopDeciding := context.WithCancel(ctx)
	decided := make(chan struct{})
	go func() { defer close(decided); r.sched.run(deciding) }()
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	stopDeciding()
	<-decided
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.cfg.DrainTimeout)
	defer cancel()
	if cerr := r.outbox.Close(closing); cerr != nil && !errors.Is(cerr, context.DeadlineExceeded) {
		err = errors.Join(err, cerr)
	}
	stopReading()
	consumers.Wait()
	leaving, cancelLeaving := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancelLeaving()
	_ = r.deps.Credits.Absent(leaving, r.deps.Instance) // else the others notice within seconds
	return err
}
