package workers

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/access"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/lifecycle"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/waiting"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
)

// Stage is the workers' name in consumer groups, dead letters and metrics.
const Stage = "workers"

// Deps is what the workers talk to.
type Deps struct {
	Stream   *stream.Client
	Devices  []access.Device // of the configuration: how to reach them
	Registry *store.Registry // nil: silent devices and uneven load go unnoticed
	Credits  *store.Credits
	Rates    *store.Rates
	Presence *store.Presence // nil: it is not reported which devices are served
	Cancels  *store.Overrides
	Finished *store.Finished // nil: what a killed worker had finished and not committed runs again
	Logger   *slog.Logger
	Metrics  *metrics.Metrics
	Instance string // this process, as the actor of events
}

// Workers reads batches, runs them on their devices, and writes results. Any number of processes may
// run; each device belongs to one of them at a time.
type Workers struct {
	cfg           Config
	deps          Deps
	engine        *engine
	outbox        *stream.Outbox
	deadLetters   *records.DeadLetters
	leases        *store.LeaseRenewer
	reader        *store.Reader
	finished      *finished
	tasks         *taskIndex
	backoffs      *backoffs
	lost          waiting.Lost[place] // used only by Waiting
	reportNow     chan struct{}       // a device's health has changed
	checkFleetNow chan struct{}       // the registry has changed, or a device is new here
	slowest       atomic.Pointer[serviceTimes]
	known         atomic.Pointer[knownFleet]
	asking        sync.Mutex // held while known is read again

	life     context.Context //nolint:containedctx // parent of all requests; ends when draining takes too long
	abort    context.CancelCauseFunc
	stopping chan struct{} // closed when Run begins to stop
	draining atomic.Bool
	calls    sync.WaitGroup

	mu       sync.RWMutex
	runners  map[string]*runner
	departed map[string]device.Health // to be reported for devices that have no runner any more
}

// New returns workers; Run starts them. It fails when a device of the configuration is described wrongly.
func New(cfg Config, deps Deps) (*Workers, error) {
	engine, err := newEngine(cfg, deps.Devices)
	if err != nil {
		return nil, err
	}
	return assemble(cfg, deps, engine, deps.Stream.NewOutbox(Stage, 8192, 128<<20)), nil
}

// assemble returns workers with an engine and an outbox; tests that send nothing pass neither.
func assemble(cfg Config, deps Deps, e *engine, outbox *stream.Outbox) *Workers {
	s := &Workers{
		cfg: cfg, deps: deps, engine: e, outbox: outbox,
		deadLetters: &records.DeadLetters{Stage: Stage, Instance: deps.Instance, Outbox: outbox, Logger: deps.Logger, Metrics: &deps.Metrics.Stream},
		leases:      store.NewLeaseRenewer(deps.Credits, deps.Logger),
		reader:      deps.Presence.Reader(stream.Batches, deps.Logger),
		finished:    newFinished(deps.Finished),
		tasks:       newTaskIndex(), backoffs: newBackoffs(),
		reportNow: make(chan struct{}, 1), checkFleetNow: make(chan struct{}, 1), stopping: make(chan struct{}),
		runners: map[string]*runner{}, departed: map[string]device.Health{},
	}
	s.life, s.abort = context.WithCancelCause(context.Background())
	return s
}

// SetDevices replaces the devices of the configuration. If one is wrong, it changes nothing.
func (s *Workers) SetDevices(devices []access.Device) error { return s.engine.book.Load(devices) }

// Run works until ctx ends. Then nothing new is started: waiting tasks are given back to their
// topics, running requests may finish within the drain timeout and are given back after it. It may
// be called once.
func (s *Workers) Run(ctx context.Context, ready func()) error {
	helpers := []lifecycle.Part{
		lifecycle.Func(s.leases.Run), lifecycle.Func(newReporter(s).run),
		lifecycle.Func(s.watchCancels), lifecycle.Func(s.finished.run), lifecycle.Func(s.drainWhenStopping), lifecycle.Func(s.reader.Run),
	}
	if s.deps.Registry != nil {
		helpers = append(helpers, lifecycle.Func(newFleetWatcher(s).run), lifecycle.Func(s.watchRegistry))
	}
	return lifecycle.Run(ctx,
		lifecycle.Phase{Name: "workers' consumer", Close: s.abortCalls, Parts: []lifecycle.Part{
			func(ctx context.Context) error { return s.consume(ctx, ready) },
			lifecycle.Func(func(ctx context.Context) { <-ctx.Done(); close(s.stopping) }),
		}},
		lifecycle.Phase{Name: "workers' outbox", Close: s.outbox.Close},
		lifecycle.Phase{Name: "workers' helpers", Parts: helpers, Close: s.engine.close})
}

func (s *Workers) consume(ctx context.Context, ready func()) error {
	return s.deps.Stream.Consume(ctx, stream.ConsumerConfig{
		OnGap: s.deadLetters.Gap,
		Group: Stage, Topic: stream.Batches, MaxRecords: s.cfg.MaxInFlight, MaxBytes: s.cfg.MaxBytes,
		DrainTimeout: s.cfg.DrainTimeout + 5*time.Second, OnLost: s.partitionLost, OnAgain: s.stopLost,
		OnCurrent: s.reader.Current, CurrentEvery: s.reader.Interval(),
	}, s.intake, ready)
}

// drainWhenStopping drains once Run begins to stop.
func (s *Workers) drainWhenStopping(ctx context.Context) {
	select {
	case <-s.stopping:
		s.drain(ctx)
	case <-ctx.Done():
	}
}

// drain gives back waiting tasks, and after the drain timeout also running ones.
func (s *Workers) drain(ctx context.Context) {
	s.draining.Store(true)
	for _, w := range s.backoffs.close() {
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
		s.abort(errDraining)
	case <-ctx.Done():
	}
}

// abortCalls stops the requests that still run and waits for them.
func (s *Workers) abortCalls(context.Context) error {
	s.abort(errDraining)
	s.calls.Wait()
	return nil
}

// put hands a unit to the outbox and waits while the outbox is full. It fails only when the outbox
// is closed; then the record is read again.
func (s *Workers) put(u stream.Unit) {
	s.logStopped(s.outbox.Put(context.WithoutCancel(s.life), u))
}

func (s *Workers) logStopped(err error) {
	if err != nil {
		s.deps.Logger.Warn("the workers have stopped and write nothing more", "error", err)
	}
}

// event returns an event of this process about a piece of work.
func (s *Workers) event(a task.Action, w *work, at time.Time) task.Event {
	e := task.NewEvent(a, w.task(), s.deps.Instance, at)
	e.Attempt = w.assignment.Attempt
	return e
}

// writeEvents writes events that finish nothing. The record of w waits for them.
func (s *Workers) writeEvents(w *work, events []task.Event) {
	ack := w.ack
	ack.Hold()
	s.put(stream.Unit{Events: events, Acked: func(err error) {
		if err != nil {
			ack.Refused(err)
			return
		}
		ack.Release()
	}})
}
