package callbacks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// channel is where the audit stage tells that callbacks are due.
const channel = "batchyard_callbacks"

// safety is how often one looks although nothing told to.
const safety = 30 * time.Second

// lastClaim is how long a claim that is under way may take when the process stops.
const lastClaim = 5 * time.Second

// crowded is the pause when callbacks are due that others are claiming right now.
const crowded = 100 * time.Millisecond

// Callbacks is the stage that delivers. Any number may run.
type Callbacks struct {
	pool   *pgxpool.Pool
	stream *stream.Log
	cfg    Config
	log    *slog.Logger
	m      *metrics.Callbacks
	actor  string
	table  *table
	poster *poster
	out    *stream.Outbox

	wake    chan struct{} // something may be due, or a slot is free
	counted time.Time     // when what is due was counted; only work uses it

	mu      sync.Mutex
	running map[string]int // deliveries by host; at most cfg.Concurrency in all
	total   int
}

// New returns a stage; actor is its name in the audit log (callbacks@host-pid).
// It fails when there is no signing secret, or another setting is unusable.
func New(pool *pgxpool.Pool, l *stream.Log, cfg Config, log *slog.Logger, m *metrics.Metrics, actor string) (*Callbacks, error) {
	cfg = cfg.withDefaults()
	p, err := newPoster(cfg)
	if err != nil {
		return nil, err
	}
	if len(p.signers) == 0 {
		log.Warn("callbacks are delivered without signatures, because callbacks.unsigned is true")
	}
	return &Callbacks{
		pool: pool, stream: l, cfg: cfg, log: log, m: &m.Callbacks, actor: actor,
		table: &table{pool: pool, actor: actor, cfg: cfg}, poster: p,
		wake: make(chan struct{}, 1), running: map[string]int{},
	}, nil
}

// Run delivers until ctx ends; then it claims nothing new, lets running
// deliveries end for the drain timeout, and returns nil. What did not end is
// delivered again when its lease is over.
func (s *Callbacks) Run(ctx context.Context, ready func()) error {
	s.out = s.stream.NewOutbox("callbacks", 4*s.cfg.Concurrency, 16<<20)
	var listening sync.WaitGroup
	listening.Go(func() {
		pg.Listen(ctx, s.pool, pg.ListenOptions{
			Channel: channel, Quiet: safety, Logger: s.log, Notified: func(string) { s.look() }, Missed: s.look,
		})
	})
	if ready != nil {
		ready()
	}
	working, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var deliveries sync.WaitGroup
	s.work(ctx, func(c *callback) {
		deliveries.Go(func() {
			defer s.free(c.host)
			s.handle(working, c)
		})
	})
	// Deliveries that do not end in time lose their context.
	timer := time.AfterFunc(s.cfg.DrainTimeout, stop)
	deliveries.Wait()
	timer.Stop()
	listening.Wait()
	s.poster.client.CloseIdleConnections()
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := s.out.Close(closing); err != nil {
		s.log.Warn("stopping before Kafka took all events of callbacks", "error", err)
	}
	return nil
}

func (s *Callbacks) look() {
	select {
	case s.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// work claims what is due and hands it on until ctx ends.
func (s *Callbacks) work(ctx context.Context, start func(*callback)) {
	wait := newBackoff()
	bad := false
	for ctx.Err() == nil {
		pause, err := s.round(ctx, start)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if !bad {
				s.log.Warn("Postgres does not tell which callbacks are due; trying until it does", "error", describe(err))
			}
			bad = true
			if !sleep(ctx, wait.NextBackOff(), nil) {
				return
			}
		default:
			if bad {
				s.log.Info("Postgres tells again which callbacks are due")
			}
			bad = false
			wait.Reset()
			if pause > 0 && !sleep(ctx, pause, s.wake) {
				return
			}
		}
	}
}

// round claims once. It returns how long to wait unless woken; 0: not at all.
func (s *Callbacks) round(ctx context.Context, start func(*callback)) (time.Duration, error) {
	s.mu.Lock()
	room := s.cfg.Concurrency - s.total
	running := make(map[string]int, len(s.running))
	var full []string
	for h, n := range s.running {
		running[h] = n
		if n >= s.cfg.PerHost {
			full = append(full, h)
		}
	}
	s.mu.Unlock()
	if room <= 0 {
		return safety, nil // a delivery that ends wakes us
	}
	ctx, cancel := context.WithTimeout(ctx, safety)
	defer cancel()
	claimed, err := s.claim(ctx, room, running)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	for _, c := range claimed {
		s.running[c.host]++
		s.total++
	}
	s.m.Running.Set(float64(s.total))
	s.mu.Unlock()
	for _, c := range claimed {
		start(c)
	}
	if len(claimed) > 0 {
		return 0, nil // there may be more
	}
	if now := time.Now(); now.Sub(s.counted) > safety/2 {
		if n, err := s.table.due(ctx); err == nil {
			s.m.Due.Set(float64(n))
			s.counted = now
		}
	}
	if full == nil {
		full = []string{}
	}
	next, ok, err := s.table.wait(ctx, full)
	if err != nil {
		return 0, err
	}
	if !ok {
		return safety, nil
	}
	return min(max(next, crowded), safety), nil
}

// claim lets a claim that is under way end when the process stops: Postgres may
// have given us rows already, and nobody else delivers them before the lease is over.
func (s *Callbacks) claim(ctx context.Context, room int, running map[string]int) ([]*callback, error) {
	own, cancel := context.WithTimeout(context.WithoutCancel(ctx), safety)
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(lastClaim, cancel) })()
	return s.table.claim(own, room, running)
}

// free gives a slot back.
func (s *Callbacks) free(host string) {
	s.mu.Lock()
	s.total--
	if s.running[host]--; s.running[host] == 0 {
		delete(s.running, host)
	}
	s.m.Running.Set(float64(s.total))
	s.mu.Unlock()
	s.look()
}

// handle delivers one callback and writes down how it went: first the event,
// then the row. When the process dies in between, it is delivered again and
// there are two events, because it happened twice.
func (s *Callbacks) handle(ctx context.Context, c *callback) {
	fault.At("callbacks.after_claim")
	o := s.poster.deliver(ctx, c)
	fault.At("callbacks.after_delivery")
	s.m.DeliverySeconds.Observe(o.took.Seconds())
	outcomes := map[string]string{stateDelivered: "delivered", stateDue: "failed", stateGivenUp: "given_up"}
	s.m.Deliveries.WithLabelValues(outcomes[o.state]).Inc()
	if o.state == stateGivenUp {
		s.log.Warn("a callback is given up", "callback_id", c.id, "host", c.host, "attempts", c.attempts, "problem", o.problem)
	}
	// What is left of the lease bounds the rest: after it somebody else delivers.
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), c.leaseEnd)
	defer cancel()
	s.record(ctx, s.event(c, o), time.Until(c.leaseEnd)/2)
	fault.At("callbacks.after_event")
	wait := newBackoff()
	for {
		err := s.table.settle(ctx, c, o)
		if err == nil {
			fault.At("callbacks.after_row")
			return
		}
		if !sleep(ctx, wait.NextBackOff(), nil) {
			s.log.Warn("how a callback went could not be written down: it is delivered again", "callback_id", c.id, "error", describe(err))
			return
		}
	}
}

// record writes an event and waits for the acknowledgement, but not for ever:
// while Kafka is away the outbox keeps it, and the row must not come due again.
func (s *Callbacks) record(ctx context.Context, e task.Event, patience time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	acked := make(chan error, 1)
	err := s.out.Put(ctx, stream.Unit{Events: []task.Event{e}, Acked: func(err error) { acked <- err }})
	if err == nil {
		select {
		case err = <-acked:
		case <-ctx.Done():
			return
		}
	}
	if err != nil {
		s.log.Warn("an event of a callback was not written", "callback_id", e.ResourceID, "error", err)
	}
}

// event tells how a delivery went. The URL's path and query stay out of it:
// they may hold secrets.
func (s *Callbacks) event(c *callback, o outcome) task.Event {
	e := task.Event{
		Time: time.Now().UTC(), Action: task.CallbackSent, Outcome: task.OutcomeOK, Tenant: c.tenant,
		ActorType: task.ActorStage, ActorID: s.actor, ResourceType: "callback", ResourceID: c.id,
		TaskID: c.taskID, Job: c.data.Job, TraceID: c.data.TraceID, Duration: o.took, ErrorClass: o.class,
	}
	detail := map[string]any{"host": c.host, "delivery": c.attempts}
	if o.status != 0 {
		detail["status"] = o.status
	}
	if o.state != stateDelivered {
		e.Action, e.Outcome = task.CallbackFailed, task.OutcomeFailed
		detail["problem"] = o.problem
		if o.state == stateGivenUp {
			e.Action = task.CallbackGivenUp
		} else {
			detail["retry_in_ms"] = o.pause.Milliseconds()
		}
	}
	e.Detail, _ = json.Marshal(detail) // text and numbers
	return e
}

func newBackoff() *backoff.ExponentialBackOff {
	return backoff.NewExponentialBackOff(backoff.WithInitialInterval(50*time.Millisecond),
		backoff.WithMaxInterval(5*time.Second), backoff.WithMaxElapsedTime(0))
}

// sleep waits for a time, or for wake; false when ctx ended.
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

// describe leaves out the details in which Postgres quotes values.
func describe(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return fmt.Sprintf("%s (SQLSTATE %s)", pg.Message, pg.Code)
	}
	return err.Error()
}
