package producer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/semaphore"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// outboxUnits bounds the submits that are being written at once.
const outboxUnits = 4096

// How long what is already durable waits for Redis: patiently, because on a busy
// machine it may take a while, and who asks another process would be told that
// there is no such task; but not again and again for one that is away.
const (
	redisPatience = 2 * time.Second
	redisWait     = 250 * time.Millisecond // after it did not answer the last time
	redisAgain    = 10 * time.Second       // after which one of them is patient again
)

// Producer takes tasks in. It may be used by any number of goroutines.
type Producer struct {
	cfg     Config
	limits  task.Limits
	log     *slog.Logger
	metrics *metrics.Metrics
	outbox  *stream.Outbox
	actor   string // this process, in events that are not a user's
	recent  *ring
	marks   *marks
	cancels *device.Cancels // nil without Redis
	away    atomic.Int64    // Redis did not answer: when to be patient again, in nanoseconds of Unix time; 0 when it did
	bytes   *semaphore.Weighted

	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup
	quiet   sync.Once // Redis' absence is said once, not for every submit

	// abandoned is closed when Close gave up waiting: what is unacknowledged then
	// gets no answer any more.
	abandoned chan struct{}
}

// Deps is what a producer stands on.
type Deps struct {
	Log     *stream.Log
	Redis   redis.UniversalClient // nil: nothing is shared with other processes
	Prefix  string                // of keys in Redis
	Cancels *device.Cancels       // nil: cancels reach the log only
	Logger  *slog.Logger
	Metrics *metrics.Metrics
	Name    string // of this process, in events: stage@host-pid
}

// New returns a producer. Close it to have its last writes finished.
func New(d Deps, cfg Config) *Producer {
	cfg = cfg.withDefaults()
	if d.Logger == nil {
		d.Logger = slog.New(slog.DiscardHandler)
	}
	if d.Metrics == nil {
		d.Metrics = metrics.New(nil)
	}
	return &Producer{
		cfg: cfg, limits: cfg.Limits(), log: d.Logger, metrics: d.Metrics, actor: d.Name,
		outbox:  d.Log.NewOutbox("producer", outboxUnits, cfg.MaxInFlight),
		recent:  newRing(cfg.RecentTasks),
		marks:   &marks{rdb: d.Redis, ttl: cfg.RecentTTL, prefix: d.Prefix},
		cancels: d.Cancels,
		bytes:   semaphore.NewWeighted(cfg.MaxInFlight),

		abandoned: make(chan struct{}),
	}
}

// Check normalizes the tasks and says what is wrong with them, as a
// *RefusedError, or returns nil. It writes nothing.
func (p *Producer) Check(tasks []*task.Task) error {
	if n := len(tasks); n > p.cfg.MaxTasks {
		return &RefusedError{Refusals: []Refusal{{p.cfg.MaxTasks, &task.FieldError{
			Problem: fmt.Sprintf("%d tasks are more than one submit may hold, %d", n, p.cfg.MaxTasks),
			Remedy:  "send them in several submits, or as a file"}}}}
	}
	var refused RefusedError
	first := make(map[task.Key]int, len(tasks))
	now := time.Now()
	for i, t := range tasks {
		t.SubmittedAt = time.Time{} // ours to say: it decides who goes first
		t.Normalize(now)
		err := t.Validate(p.limits)
		if err == nil && t.Progress != nil {
			err = &task.FieldError{Field: "progress", Problem: "it is Batchyard's own", Remedy: "leave it out"}
		}
		if j, ok := first[t.Key()]; err == nil && ok {
			err = &task.FieldError{Field: "task_id", Problem: fmt.Sprintf("it is the id of task %d of this submit too", j), Remedy: "give each task an id of its own, or none"}
		}
		if err != nil {
			refused.add(i, err)
			p.metrics.Producer.Refused.WithLabelValues(fieldClass(err)).Inc()
			continue
		}
		first[t.Key()] = i
	}
	if len(refused.Refusals) > 0 {
		return &refused
	}
	return nil
}

// fieldClass is the first part of a field's name, which is ours; what follows
// may be the sender's.
func fieldClass(err error) string {
	var fe *task.FieldError
	if !errors.As(err, &fe) || fe.Field == "" {
		return "record"
	}
	if i := strings.IndexAny(fe.Field, ".["); i >= 0 {
		return fe.Field[:i]
	}
	return fe.Field
}

// Submit normalizes and validates the tasks, all of them first, and writes them.
// It returns nil once all in-sync replicas have the tasks and the events that
// tell of them. A *RefusedError means that nothing was written; any other error
// that it is not known whether all of it was: submitting again with the same
// ids is safe.
func (p *Producer) Submit(ctx context.Context, tasks []*task.Task, o task.Origin) error {
	began := time.Now()
	if err := p.Check(tasks); err != nil {
		return err
	}
	if len(tasks) == 0 {
		return nil
	}
	unit, events, size, err := p.encode(tasks, o)
	if err != nil {
		return err
	}
	size = min(size, p.cfg.MaxInFlight)
	if err := p.bytes.Acquire(ctx, size); err != nil {
		return fmt.Errorf("waiting to write %d tasks: %w", len(tasks), err)
	}
	done := make(chan error, 1)
	if !p.start(func() {
		defer p.bytes.Release(size)
		// The one who asked may go: what was begun is carried through.
		done <- p.write(context.WithoutCancel(ctx), tasks, unit, events)
	}) {
		p.bytes.Release(size)
		return ErrClosed
	}
	select {
	case err := <-done:
		p.metrics.Producer.Seconds.Observe(time.Since(began).Seconds())
		return err
	case <-ctx.Done():
		return fmt.Errorf("writing %d tasks, outcome unknown: %w", len(tasks), ctx.Err())
	}
}

func (p *Producer) encode(tasks []*task.Task, o task.Origin) (msgs []stream.Message, events []task.Event, size int64, err error) {
	headers := []stream.Header{{Key: stream.HeaderAccepted, Value: []byte("1")}}
	for _, h := range []struct{ key, value string }{{stream.HeaderActor, o.Actor}, {stream.HeaderAddr, o.Addr}, {stream.HeaderAgent, o.UserAgent}} {
		if h.value != "" {
			headers = append(headers, stream.Header{Key: h.key, Value: []byte(h.value)})
		}
	}
	msgs = make([]stream.Message, len(tasks))
	events = make([]task.Event, len(tasks))
	now := time.Now()
	for i, t := range tasks {
		if msgs[i], err = stream.TaskMessage(stream.TasksTopic(t.Priority), t, headers...); err != nil {
			return nil, nil, 0, err
		}
		events[i] = task.Accepted(t, o, now)
		size += int64(len(msgs[i].Value)) + 1024
	}
	return msgs, events, size, nil
}

func (p *Producer) write(ctx context.Context, tasks []*task.Task, msgs []stream.Message, events []task.Event) error {
	fault.At("producer.before_write")
	if err := p.put(ctx, stream.Unit{Messages: msgs}); err != nil {
		return fmt.Errorf("writing %d tasks to Kafka: %w", len(tasks), err)
	}
	// Dying here leaves tasks that run without task.accepted: see the package.
	fault.At("producer.between")
	if err := p.put(ctx, stream.Unit{Events: events}); err != nil {
		return fmt.Errorf("writing the events of %d accepted tasks to Kafka: %w", len(tasks), err)
	}
	fault.At("producer.after_events")
	for _, t := range tasks {
		p.metrics.Producer.Submitted.WithLabelValues(string(t.Priority)).Inc()
	}
	p.metrics.Producer.RecentSize.Set(float64(p.recent.put(tasks)))
	if !p.marks.kept() {
		return nil
	}
	if err := p.askRedis(ctx, func(ctx context.Context) error { return p.marks.put(ctx, tasks) }); err != nil { // only other processes miss it, for a moment
		p.quiet.Do(func() { p.log.Warn("other processes do not see what was just submitted", "error", err) })
	}
	return nil
}

// put hands a unit over and waits until all replicas have it, or never will.
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

// start runs f unless the producer is closed; Close waits for it.
func (p *Producer) start(f func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.running.Go(f)
	return true
}

// Recent tells what was submitted moments ago. ok is false for a task that
// nobody remembers, which does not mean that there is none. err is Redis'.
func (p *Producer) Recent(ctx context.Context, k task.Key) (r *Recent, ok bool, err error) {
	if r, ok := p.recent.get(k); ok {
		p.metrics.Producer.RecentHits.Inc()
		return &r, true, nil
	}
	got, ok, err := p.marks.get(ctx, k)
	if err != nil || !ok {
		return nil, false, err
	}
	p.metrics.Producer.RecentHits.Inc()
	return &got, true, nil
}

// Cancel asks for a task to be stopped: it writes a CANCELLED result, which is
// the task's answer unless another came first, and an event that says who asked;
// then it tells whoever holds the task. It returns nil once all in-sync replicas
// have the result.
func (p *Producer) Cancel(ctx context.Context, r *Recent, o task.Origin) error {
	now := time.Now().UTC()
	res := &task.Result{
		TaskID: r.ID, Tenant: r.Tenant, State: task.Cancelled, Model: r.Model, Endpoint: r.Endpoint, Priority: r.Priority,
		Job: r.Job, CustomID: r.CustomID, Labels: r.Labels, Callback: r.Callback, TraceID: r.TraceID,
		SubmittedAt: r.SubmittedAt, FinishedAt: now,
		Error: &task.Error{Class: task.ClassCancelled, Message: "somebody asked to cancel it"},
	}
	msg, err := stream.ResultMessage(res)
	if err != nil {
		return err
	}
	ask := task.Event{
		Time: now, Action: task.TaskCancelAsked, Outcome: task.OutcomeOK, Tenant: r.Tenant,
		ActorType: task.ActorUser, ActorID: o.Actor, SourceAddr: o.Addr, UserAgent: o.UserAgent,
		ResourceType: "task", ResourceID: r.ID, TaskID: r.ID, Job: r.Job, TraceID: r.TraceID, Model: r.Model,
	}
	return p.carry(ctx, "cancelling task "+r.Key().String(), func(ctx context.Context) error { return p.cancel(ctx, r.Key(), msg, ask) })
}

// carry runs f to its end, also when the one who asked goes meanwhile.
func (p *Producer) carry(ctx context.Context, doing string, f func(context.Context) error) error {
	done := make(chan error, 1)
	if !p.start(func() { done <- f(context.WithoutCancel(ctx)) }) {
		return ErrClosed
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s, outcome unknown: %w", doing, ctx.Err())
	}
}

func (p *Producer) cancel(ctx context.Context, k task.Key, msg stream.Message, ask task.Event) error {
	p.metrics.Producer.CancelsAsked.Inc()
	// The event first: an answer that nobody asked for would be a riddle.
	if err := p.put(ctx, stream.Unit{Events: []task.Event{ask}}); err != nil {
		return fmt.Errorf("writing that task %s is to be cancelled to Kafka: %w", k, err)
	}
	if err := p.put(ctx, stream.Unit{Messages: []stream.Message{msg}}); err != nil {
		return fmt.Errorf("writing the result of cancelled task %s to Kafka: %w", k, err)
	}
	if p.cancels == nil {
		return nil
	}
	if err := p.askRedis(ctx, func(ctx context.Context) error { return p.cancels.Mark(ctx, k) }); err != nil { // it ends as CANCELLED all the same; only the work is wasted
		p.log.Warn("a cancelled task may still be run", "tenant", k.Tenant, "task_id", k.ID, "error", err)
	}
	return nil
}

// askRedis calls f with as much time as Redis gets.
func (p *Producer) askRedis(ctx context.Context, f func(context.Context) error) error {
	wait, now := redisPatience, time.Now()
	next := now.Add(redisAgain).UnixNano()
	if until := p.away.Load(); until != 0 && (now.UnixNano() < until || !p.away.CompareAndSwap(until, next)) {
		wait = redisWait
	}
	within, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	err := f(within)
	switch {
	case err == nil:
		p.away.Store(0)
	case ctx.Err() == nil: // else it is who asked that went away
		p.away.CompareAndSwap(0, next)
	}
	return err
}

// Record writes an event that is no task's: who joined, what was refused. It
// returns once the event is handed over; detail may be nil.
func (p *Producer) Record(ctx context.Context, e task.Event, detail map[string]any) error {
	if detail != nil {
		b, err := json.Marshal(detail)
		if err == nil && len(b) <= task.MaxDetail {
			e.Detail = b
		}
	}
	if e.Time.IsZero() {
		e.Time = time.Now().UTC()
	}
	if e.ActorID == "" {
		e.ActorID = p.actor
	}
	if err := p.outbox.Put(ctx, stream.Unit{Events: []task.Event{e}}); err != nil {
		return fmt.Errorf("recording %s: %w", e.Action, err)
	}
	return nil
}

// Flush waits until the events that were recorded are in Kafka, or ctx ends: Record
// only hands them over.
func (p *Producer) Flush(ctx context.Context) error { return p.outbox.Flush(ctx) }

// Close takes nothing new, and waits until what was begun is written, or ctx ends.
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

// Config returns the bounds that the producer keeps to, defaults filled in.
func (p *Producer) Config() Config { return p.cfg }
