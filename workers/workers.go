package workers

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// Stage is the name under which dead letters and events say who acted.
const Stage = "workers"

// Deps is what the workers work with.
type Deps struct {
	Log      *stream.Log
	Registry *device.Registry // nil: nothing is known of silent devices and uneven load
	Credits  *device.Credits
	Rates    *device.Rates
	Cancels  *device.Cancels
	Metrics  *metrics.Metrics
	Logger   *slog.Logger
	Instance string
}

// Workers reads batches, runs them on their devices and writes results. Any
// number of processes may run; a device is always with one of them.
type Workers struct {
	cfg     Config
	deps    Deps
	outbox  *stream.Outbox
	engine  *engine
	leases  *device.Keeper
	live    *live
	pauses  *pauses
	wake    chan struct{} // a device's health has changed
	lookNow chan struct{} // a device has changed, or is new here
	service atomic.Pointer[services]

	hard     context.Context //nolint:containedctx // the life of all requests; it ends when draining has taken too long
	kill     context.CancelCauseFunc
	draining atomic.Bool
	calls    sync.WaitGroup

	mu        sync.RWMutex
	runners   map[string]*runner
	farewells map[string]device.Health // to be told of devices that have no runner any more
}

// New returns workers; Run starts them.
func New(cfg Config, deps Deps) (*Workers, error) {
	engine, err := newEngine(cfg)
	if err != nil {
		return nil, err
	}
	s := &Workers{
		cfg: cfg, deps: deps, engine: engine,
		outbox: deps.Log.NewOutbox(Stage, 8192, 128<<20),
		leases: device.NewKeeper(deps.Credits, deps.Logger),
		live:   newLive(), pauses: newPauses(), wake: make(chan struct{}, 1), lookNow: make(chan struct{}, 1),
		runners: map[string]*runner{}, farewells: map[string]device.Health{},
	}
	return s, nil
}

// Run works until ctx ends. Then nothing new is started: what waits is given
// back to its topic, what runs may finish within the drain timeout and is given
// back after it.
func (s *Workers) Run(ctx context.Context, ready func()) error {
	s.hard, s.kill = context.WithCancelCause(context.WithoutCancel(ctx))
	working, stopWorking := context.WithCancel(context.WithoutCancel(ctx))
	var helpers sync.WaitGroup
	helpers.Go(func() { s.leases.Run(working) })
	helpers.Go(func() { s.report(working) })
	if s.deps.Registry != nil {
		helpers.Go(func() { s.lookEvery(working) })
		helpers.Go(func() {
			if err := s.deps.Registry.Watch(working, s.pokeLook); err != nil && working.Err() == nil {
				s.deps.Logger.Error("watching devices ended", "error", err)
			}
		})
	}
	helpers.Go(func() {
		if err := s.deps.Cancels.Watch(working, s.cancelled, func() { s.recheck(working) }); err != nil && working.Err() == nil {
			s.deps.Logger.Error("watching cancelled tasks ended", "error", err)
		}
	})
	helpers.Go(func() {
		select {
		case <-ctx.Done():
		case <-working.Done():
			return
		}
		s.drain(working)
	})
	err := s.deps.Log.Consume(ctx, stream.ConsumerConfig{
		Group: Stage, Topic: stream.Batches, MaxRecords: s.cfg.MaxInFlight, MaxBytes: s.cfg.MaxBytes,
		DrainTimeout: s.cfg.DrainTimeout + 5*time.Second, OnLost: s.partitionLost,
	}, s.intake, ready)
	s.kill(errDraining)
	s.calls.Wait()
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if cerr := s.outbox.Close(closing); cerr != nil {
		err = errors.Join(err, fmt.Errorf("closing the workers' outbox: %w", cerr))
	}
	stopWorking()
	helpers.Wait()
	s.engine.close()
	return err
}

// drain gives back what waits, and after the drain timeout what still runs.
func (s *Workers) drain(ctx context.Context) {
	s.draining.Store(true)
	for _, w := range s.pauses.close() {
		s.giveBack(w, nil)
	}
	s.mu.RLock()
	var waiting []*call
	for _, r := range s.runners {
		waiting = append(waiting, r.takeQueue()...)
	}
	s.mu.RUnlock()
	s.giveBackCalls(waiting)
	select {
	case <-time.After(s.cfg.DrainTimeout):
		s.kill(errDraining)
	case <-ctx.Done():
	}
}

func (s *Workers) giveBackCalls(calls []*call) {
	for _, c := range calls {
		for _, w := range c.works {
			if cause := w.dead(); cause != nil {
				s.leave(w, cause, nil)
			} else {
				s.giveBack(w, nil)
			}
		}
	}
}

// intake decodes the batches of one partition and hands them to their devices'
// runners.
func (s *Workers) intake(ctx context.Context, recs []*stream.Record) {
	for _, rec := range recs {
		batches, err := task.DecodeFrame[task.Batch](task.FrameBatches, rec.Value)
		n := 0
		for i := range batches {
			n += len(batches[i].Assignments)
		}
		if err != nil || n == 0 {
			if err == nil {
				err = errors.New("the frame is empty")
			}
			s.refuse(rec, err)
			continue
		}
		from := &origin{rec: rec}
		from.open.Store(int32(n)) //nolint:gosec // bounded by task.MaxFrameEntries
		for i := range batches {
			s.start(ctx, &batches[i], from)
		}
	}
}

// start takes up one batch.
func (s *Workers) start(ctx context.Context, b *task.Batch, from *origin) {
	works := make([]*work, 0, len(b.Assignments))
	keys := make([]task.Key, 0, len(b.Assignments))
	for i := range b.Assignments {
		w := &work{a: b.Assignments[i], batch: b.ID, from: from}
		if p := w.a.Task.Progress; p != nil {
			w.attempts = append(w.attempts, p.Attempts...)
		}
		w.ctx, w.stop = context.WithCancelCause(s.hard)
		s.leases.Hold(w.a.Lease)
		s.live.add(w)
		works = append(works, w)
		keys = append(keys, w.a.Task.Key())
	}
	fault.At("workers.after_read")
	// Cancelled on the way here: best effort, a task that runs all the same is
	// answered once.
	asking, cancel := context.WithTimeout(ctx, time.Second)
	marked, err := s.deps.Cancels.Marked(asking, keys...)
	cancel()
	for i, w := range works {
		if err == nil && marked[i] {
			w.stop(errCancelled)
		}
	}
	calls := s.callsOf(b, works)
	s.mu.RLock()
	r := s.runners[b.Device.ID]
	if r != nil { // under the lock, so that it is not retired meanwhile
		r.submit(b.Device, calls...)
		s.mu.RUnlock()
		return
	}
	s.mu.RUnlock()
	s.mu.Lock()
	r = s.runners[b.Device.ID]
	if r == nil {
		r = newRunner(s, b.Device, from.rec.Partition)
		s.runners[b.Device.ID] = r
		s.pokeLook()
	}
	r.submit(b.Device, calls...)
	s.mu.Unlock()
}

// callsOf makes requests of a batch: merged ones where the endpoint takes lists,
// else one a task.
func (s *Workers) callsOf(b *task.Batch, works []*work) []*call {
	var calls []*call
	alone := works
	if task.Merged(b.Endpoint) && len(works) > 1 {
		var groups []*group
		groups, alone = merge(b.Endpoint, works, s.cfg.MaxMerged)
		for _, g := range groups {
			c := &call{group: g}
			for _, p := range g.parts {
				c.works = append(c.works, p.work)
			}
			if len(c.works) == 1 {
				c.group = nil
			}
			calls = append(calls, c)
		}
	}
	for _, w := range alone {
		calls = append(calls, &call{works: []*work{w}})
	}
	return calls
}

// cancelled stops tasks that somebody cancelled.
func (s *Workers) cancelled(keys []task.Key) {
	for _, k := range keys {
		w := s.live.get(k)
		if w == nil {
			continue
		}
		w.stop(errCancelled) // a running request ends, a queued one is skipped
		if s.pauses.drop(w) {
			s.leave(w, errCancelled, nil)
		}
	}
}

// recheck asks which of the tasks here were cancelled while nobody could tell.
func (s *Workers) recheck(ctx context.Context) {
	var keys []task.Key
	s.live.each(func(w *work) { keys = append(keys, w.a.Task.Key()) })
	marked, err := s.deps.Cancels.Marked(ctx, keys...)
	if err != nil {
		return // Redis went away again; the next reconnect asks again
	}
	var gone []task.Key
	for i, k := range keys {
		if marked[i] {
			gone = append(gone, k)
		}
	}
	s.cancelled(gone)
}

// partitionLost stops what came from partitions that belong to another worker
// now: it runs them.
func (s *Workers) partitionLost(partition int) {
	s.mu.Lock()
	for id, r := range s.runners {
		if r.partition == partition { // its breaker, too, is the next owner's
			r.gone.Store(true)
			delete(s.runners, id)
		}
	}
	s.mu.Unlock()
	s.live.each(func(w *work) {
		if !w.from.rec.Lost() {
			return
		}
		w.stop(errLost)
		if s.pauses.drop(w) {
			s.leave(w, errLost, nil)
		}
	})
}

// refuse sends a record that cannot be read to the dead letters.
func (s *Workers) refuse(rec *stream.Record, cause error) {
	s.deps.Metrics.Stream.DeadLetters.WithLabelValues(Stage, "unreadable").Inc()
	s.deps.Logger.Error("a record of batches cannot be read; it goes to the dead letters", "record", rec.Position(), "error", cause)
	s.put(stream.Unit{
		Messages: []stream.Message{stream.DeadLetter(rec, Stage, "unreadable", cause)},
		Events:   []task.Event{stream.DeadLetterEvent(rec, s.deps.Instance, cause)},
		Acked: func(err error) {
			if err == nil {
				rec.Done()
			}
		},
	})
}

// put hands a unit to the outbox. It waits while the outbox is full; it fails
// only when the outbox is closed, and then the record is read again.
func (s *Workers) put(u stream.Unit) {
	if err := s.outbox.Put(context.WithoutCancel(s.hard), u); err != nil {
		s.deps.Logger.Warn("nothing more is written: the worker has stopped", "error", err)
	}
}

// event is an event of this worker about a piece of work.
func (s *Workers) event(a task.Action, w *work, at time.Time) task.Event {
	e := task.NewEvent(a, &w.a.Task, s.deps.Instance, at)
	e.Attempt = w.a.Attempt
	return e
}

func digest(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:]
}
