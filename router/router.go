package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/internal/lifecycle"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/router/decide"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
)

// Stage is the router's name in dead letters and consumer groups.
const Stage = "router"

// Deps is what a router talks to.
type Deps struct {
	Log      *stream.Client
	Redis    redis.UniversalClient
	Prefix   string // of keys in Redis
	Registry *store.Registry
	Credits  *store.Credits
	Rates    *store.Rates
	Presence *store.Presence // nil: all devices are served, and it is not reported how far tasks are read
	Cancels  *store.Overrides
	Control  *store.Control
	Limits   task.Limits
	Known    Known // nil: tasks are not looked up
	Metrics  *metrics.Metrics
	Logger   *slog.Logger
	Instance string // host and process: the actor of events, and the holder of leases

	// RequestTimeout is how long a request to a device may take; 0: it may not be waited for.
	RequestTimeout time.Duration
	// Retention is for how long Kafka keeps the records of a tasks topic; 0: forever. It answers at once, and
	// may change. Nil: all are kept forever.
	Retention func(topic string) time.Duration
}

func (d *Deps) retention(topic string) time.Duration {
	if d.Retention == nil {
		return 0
	}
	return d.Retention(topic)
}

// topics are those that a router reads.
var topics = [...]string{stream.TasksHigh, stream.TasksNormal, stream.TasksLow, stream.TasksParked}

const (
	maxOutboxBytes = 64 << 20
	consumerDrain  = 50 * time.Millisecond // nothing is finished any more when the consumers stop
	leaveTimeout   = time.Second
	passingShare   = 0.25 // of what may be in memory is divided among the partitions, for records that are set aside as they are read
)

// Router reads tasks and writes assignments. Any number of routers may run.
type Router struct {
	cfg    Config
	deps   Deps
	claims claims
	sched  *scheduler
	outbox *stream.Outbox
	dead   records.DeadLetters

	contested chan *decide.Item // tasks whose id another request has claimed
}

// New returns a router; Run starts it. The error says which setting is wrong.
func New(cfg Config, deps Deps) (*Router, error) {
	outbox := deps.Log.NewOutbox(Stage, 4*cfg.MaxRoundTasks, maxOutboxBytes)
	sched, err := newScheduler(cfg, deps, outbox)
	if err != nil {
		return nil, err
	}
	return &Router{
		cfg: cfg, deps: deps, sched: sched, outbox: outbox,
		claims: claims{rdb: deps.Redis, prefix: deps.Prefix, ttl: cfg.ClaimTTL, now: clock.Now},
		dead:   deadLetters(deps, outbox), contested: make(chan *decide.Item),
	}, nil
}

// deadLetters is the router's way to the dead-letter topic.
func deadLetters(deps Deps, outbox *stream.Outbox) records.DeadLetters {
	return records.DeadLetters{Stage: Stage, Instance: deps.Instance, Outbox: outbox, Logger: deps.Logger, Metrics: &deps.Metrics.Stream}
}

// Run routes until ctx ends; it calls ready when all consumers have joined. On stopping it assigns
// nothing more, waits for the acknowledgement of what it has written, and leaves. Tasks that still wait
// in the window are not finished, so another router reads them again.
func (r *Router) Run(ctx context.Context, ready func()) error {
	joined := lifecycle.Countdown(len(topics), ready)
	consumers := []lifecycle.Part{r.settle}
	for _, topic := range topics {
		reader := r.deps.Presence.Reader(topic, r.deps.Logger)
		consumers = append(consumers, lifecycle.Func(reader.Run), func(ctx context.Context) error { return r.consume(ctx, topic, reader, joined) })
	}
	return lifecycle.Run(ctx,
		lifecycle.Phase{Name: "outbox", Parts: r.sched.parts(), Close: r.flush, CloseTimeout: r.cfg.DrainTimeout},
		lifecycle.Phase{Name: "consumers", Parts: consumers, Close: r.leave, CloseTimeout: leaveTimeout})
}

func (r *Router) consume(ctx context.Context, topic string, reader *store.Reader, joined func()) error {
	cfg := stream.ConsumerConfig{
		OnGap: r.dead.Gap,
		Group: Stage, Topic: topic, MaxRecords: r.cfg.MaxPendingTasks, MaxBytes: r.cfg.MaxPendingBytes,
		Reserved: passingShare, DrainTimeout: consumerDrain,
		OnStraggler: r.sched.straggler, OnLost: r.sched.partitionLost, OnAgain: r.sched.recordsAgain,
		OnCurrent: reader.Current, CurrentEvery: reader.Interval(), // for those who ask why a task waits
	}
	if err := r.deps.Log.Consume(ctx, cfg, r.intake, joined); err != nil {
		return fmt.Errorf("reading %s: %w", topic, err)
	}
	return nil
}

// flush waits until everything that was written is acknowledged. If ctx ends first, the records of the
// rest are read again.
func (r *Router) flush(ctx context.Context) error {
	if err := r.outbox.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// leave tells the other routers that there is one fewer; without it they notice within seconds.
func (r *Router) leave(ctx context.Context) error {
	_ = r.deps.Credits.Absent(ctx, r.deps.Instance)
	return nil
}
