package callbacks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/internal/lifecycle"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/internal/waiting"
	"github.com/batchyard/batchyard/stream"
)

// channel is where the recorder notifies that callbacks are due.
const channel = "batchyard_callbacks"

// safetyInterval is how often due callbacks are looked for without a notification.
const safetyInterval = 30 * time.Second

// lastClaim is how long a claim in flight may take when the process stops.
const lastClaim = 5 * time.Second

// contendedPause is the pause when callbacks are due that other processes are claiming.
const contendedPause = 100 * time.Millisecond

// Deps is what the stage talks to.
type Deps struct {
	Stream   *stream.Client
	Pool     *pgxpool.Pool
	Logger   *slog.Logger
	Metrics  *metrics.Metrics
	Instance string // this process, as the holder of rows and the actor of events
}

// Callbacks is the stage that delivers callbacks. Any number of processes may run it.
type Callbacks struct {
	cfg    Config
	deps   Deps
	m      *metrics.Callbacks
	table  *table
	poster *poster
	outbox *stream.Outbox

	wake   chan struct{} // a callback may be due, or a slot is free
	oldest oldest

	life       context.Context //nolint:containedctx // parent of all deliveries; ends when draining takes too long
	abort      context.CancelFunc
	deliveries sync.WaitGroup

	slots *slots
}

// New returns the stage; Run starts it. It fails when there is no signing secret, or when another
// setting is invalid.
func New(cfg Config, deps Deps) (*Callbacks, error) {
	cfg = cfg.withDefaults()
	p, err := newPoster(cfg)
	if err != nil {
		return nil, err
	}
	if len(p.signers) == 0 {
		deps.Logger.Warn("callbacks are not signed, because callbacks.unsigned is true")
	}
	s := &Callbacks{
		cfg: cfg, deps: deps, m: &deps.Metrics.Callbacks,
		table: &table{pool: deps.Pool, holder: deps.Instance, cfg: cfg}, poster: p,
		outbox: deps.Stream.NewOutbox("callbacks", 4*cfg.Concurrency, 16<<20),
		wake:   make(chan struct{}, 1), slots: newSlots(cfg),
		oldest: oldest{due: waiting.NewPublished("the goroutine that claims callbacks", 2*safetyInterval)},
	}
	s.life, s.abort = context.WithCancel(context.Background())
	return s, nil
}

// Run delivers until ctx ends. Then it claims nothing more, and running deliveries may finish within
// the drain timeout; the others are delivered again when their leases expire. It may be called once.
func (s *Callbacks) Run(ctx context.Context, ready func()) error {
	if ready != nil {
		ready()
	}
	return lifecycle.Run(ctx,
		lifecycle.Phase{Name: "callbacks' claims", Parts: []lifecycle.Part{lifecycle.Func(s.listen), lifecycle.Func(s.claimLoop)}},
		lifecycle.Phase{Name: "callbacks' deliveries", Close: s.drain, CloseTimeout: s.cfg.DrainTimeout},
		lifecycle.Phase{Name: "callbacks' outbox", Close: s.closeOutbox})
}

// listen wakes claimLoop at each notification that callbacks are due.
func (s *Callbacks) listen(ctx context.Context) {
	pg.Listen(ctx, s.deps.Pool, pg.ListenOptions{
		Channel: channel, Quiet: safetyInterval, Logger: s.deps.Logger, Notified: func(string) { s.wakeUp() }, Missed: s.wakeUp,
	})
}

// drain waits for the running deliveries. When ctx ends, it aborts them.
func (s *Callbacks) drain(ctx context.Context) error {
	defer context.AfterFunc(ctx, s.abort)()
	s.deliveries.Wait()
	s.abort()
	s.poster.client.CloseIdleConnections()
	return nil
}

// closeOutbox flushes the events. Events that Kafka does not take in time are lost, which only
// warrants a warning: the rows in Postgres decide about deliveries.
func (s *Callbacks) closeOutbox(ctx context.Context) error {
	if err := s.outbox.Close(ctx); err != nil {
		s.deps.Logger.Warn("stopping before Kafka took all events of callbacks", "error", err)
	}
	return nil
}

func (s *Callbacks) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default: // it is going to look anyway
	}
}

// claimLoop claims due callbacks and starts their deliveries until ctx ends.
func (s *Callbacks) claimLoop(ctx context.Context) {
	wait := newBackoff()
	failing := false
	for ctx.Err() == nil {
		pause, err := s.claimRound(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if !failing {
				s.deps.Logger.Warn("cannot claim callbacks from Postgres; retrying until it works", "error", describe(err))
			}
			failing = true
			s.oldest.postgres.Begin(describe(err))
			if !sleep(ctx, wait.NextBackOff(), nil) {
				return
			}
		default:
			if failing {
				s.deps.Logger.Info("claiming callbacks from Postgres works again")
			}
			failing = false
			s.oldest.postgres.End()
			wait.Reset()
			if pause > 0 && !sleep(ctx, pause, s.wake) {
				return
			}
		}
	}
}

// claimRound claims once. It returns how long to wait for the next round unless woken; 0 means not
// at all.
func (s *Callbacks) claimRound(ctx context.Context) (time.Duration, error) {
	r := s.slots.room()
	ctx, cancel := context.WithTimeout(ctx, safetyInterval)
	defer cancel()
	s.look(ctx, r)
	if r.free <= 0 {
		return safetyInterval, nil // a delivery that ends wakes us
	}
	claimed, err := s.claim(ctx, r)
	if err != nil {
		return 0, err
	}
	again := s.slots.looked(r, claimed)
	if len(claimed) > 0 {
		s.start(claimed)
	}
	if len(claimed) > 0 || again {
		return 0, nil // there may be more
	}
	next, ok, err := s.table.untilNext(ctx, r)
	if err != nil {
		return 0, err
	}
	pause := safetyInterval
	if ok {
		pause = min(max(next, contendedPause), pause)
	}
	if r.wake > 0 {
		pause = min(r.wake, pause)
	}
	return pause, nil
}

// claim claims due callbacks. A claim in flight may finish when the process stops: Postgres may have
// given us the rows already, and no other process delivers them before the lease expires.
func (s *Callbacks) claim(ctx context.Context, r room) ([]*callback, error) {
	own, cancel := context.WithTimeout(context.WithoutCancel(ctx), safetyInterval)
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(lastClaim, cancel) })()
	return s.table.claim(own, r)
}

// start starts the deliveries of claimed callbacks.
func (s *Callbacks) start(claimed []*callback) {
	s.m.Running.Set(float64(s.slots.take(claimed)))
	for _, c := range claimed {
		s.deliveries.Go(func() {
			timedOut := s.handle(s.life, c)
			s.m.Running.Set(float64(s.slots.free(c, timedOut)))
			s.wakeUp()
		})
	}
}

func newBackoff() *backoff.ExponentialBackOff {
	return backoff.NewExponentialBackOff(backoff.WithInitialInterval(50*time.Millisecond),
		backoff.WithMaxInterval(5*time.Second), backoff.WithMaxElapsedTime(0))
}

// sleep waits for a time, or for wake. It returns false when ctx ended.
func sleep(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-wake:
	case <-ctx.Done():
		return false
	}
	return true
}

// describe leaves out the details of an error, in which Postgres quotes values.
func describe(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return fmt.Sprintf("%s (SQLSTATE %s)", pg.Message, pg.Code)
	}
	return err.Error()
}
