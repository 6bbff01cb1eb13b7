package batcher

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/internal/lifecycle"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// Stage is the batcher's name in consumer groups, dead letters and metrics.
const Stage = "batcher"

// Deps is what a batcher talks to.
type Deps struct {
	Stream   *stream.Client
	Credits  *store.Credits
	Presence *store.Presence // nil: it is not reported which devices are served
	Logger   *slog.Logger
	Metrics  *metrics.Metrics
	Instance string // this process, as the actor of events
}

// Batcher reads assignments and writes batches. Any number of batchers may run; the assignments
// of one device are in one partition, so one batcher has them all.
type Batcher struct {
	cfg         Config
	limits      *atomic.Pointer[Config] // with the thresholds of now
	deps        Deps
	outbox      *stream.Outbox
	deadLetters *records.DeadLetters
	leases      *store.LeaseRenewer
	reader      *store.Reader
	window      *window // owned by the goroutine of loop
	arrivals    chan []entry
	lost        chan struct{}       // a partition was lost
	freed       chan map[string]int // tasks in flight by device, after credits were freed
	stopping    chan struct{}       // closed when Run begins to stop
	stopped     chan struct{}       // closed when loop has ended
}

// New returns a batcher; Run starts it.
func New(cfg Config, deps Deps) *Batcher {
	outbox := deps.Stream.NewOutbox(Stage, 1024, 64<<20)
	limits := &atomic.Pointer[Config]{}
	limits.Store(&cfg)
	return &Batcher{
		cfg: cfg, limits: limits, deps: deps, outbox: outbox,
		deadLetters: &records.DeadLetters{Stage: Stage, Instance: deps.Instance, Outbox: outbox, Logger: deps.Logger, Metrics: &deps.Metrics.Stream},
		leases:      store.NewLeaseRenewer(deps.Credits, deps.Logger),
		reader:      deps.Presence.Reader(stream.Assignments, deps.Logger),
		window:      newWindow(limits), arrivals: make(chan []entry), lost: make(chan struct{}, 1), freed: make(chan map[string]int, 1),
		stopping: make(chan struct{}), stopped: make(chan struct{}),
	}
}

// Run batches until ctx ends. Then every open batch is written at once, and Run returns when all
// of them are acknowledged. It may be called once.
func (b *Batcher) Run(ctx context.Context, ready func()) error {
	return lifecycle.Run(ctx,
		lifecycle.Phase{Name: "batcher's consumer", Parts: []lifecycle.Part{
			func(ctx context.Context) error { return b.consume(ctx, ready) },
			lifecycle.Func(func(ctx context.Context) { <-ctx.Done(); close(b.stopping) }),
		}},
		lifecycle.Phase{Name: "batcher's outbox", Close: b.outbox.Close, CloseTimeout: b.cfg.DrainTimeout},
		lifecycle.Phase{Name: "batcher's window", Parts: []lifecycle.Part{
			lifecycle.Func(b.loop), lifecycle.Func(b.watchCredits), lifecycle.Func(b.leases.Run), lifecycle.Func(b.reader.Run),
		}})
}

func (b *Batcher) consume(ctx context.Context, ready func()) error {
	return b.deps.Stream.Consume(ctx, stream.ConsumerConfig{
		OnGap: b.deadLetters.Gap,
		Group: Stage, Topic: stream.Assignments, MaxRecords: b.cfg.MaxInFlight, MaxBytes: b.cfg.MaxBytes,
		DrainTimeout: b.cfg.DrainTimeout, OnLost: b.partitionLost, OnAgain: b.signalLost,
		OnCurrent: b.reader.Current, CurrentEvery: b.reader.Interval(),
	}, b.intake, ready)
}

// intake decodes records of one partition and hands their assignments to the loop. Records that
// are not ours or cannot be decoded become dead letters.
func (b *Batcher) intake(ctx context.Context, recs []*stream.Record) {
	fault.At("batcher.after_read")
	var entries []entry
	for _, rec := range recs {
		as, err := decode(rec)
		if err != nil {
			// An error means that the process stops; then the record is read again.
			_ = b.deadLetters.Put(ctx, records.Letter{Record: rec, Reason: records.ReasonOf(err, records.ReasonUnreadable), Cause: err})
			continue
		}
		ack := records.NewAck(rec, len(as))
		for i := range as {
			b.leases.Hold(as[i].Lease)
			entries = append(entries, entry{as[i], ack})
		}
	}
	if !b.handOver(ctx, recs[0], entries) {
		for i := range entries { // the partition's next owner reads them again
			b.leases.Drop(entries[i].Lease, 1)
		}
	}
}

// decode returns the assignments of a record. Those of a forged one would make a worker send
// requests anywhere.
func decode(rec *stream.Record) ([]task.Assignment, error) {
	if err := records.CheckOurs(rec); err != nil {
		return nil, err
	}
	as, err := wire.DecodeFrame[task.Assignment](wire.FrameAssignments, rec.Value)
	if err == nil && len(as) == 0 {
		err = errors.New("the frame is empty")
	}
	return as, err
}

// handOver passes entries to the loop. It gives up when their partition is lost, but not when the
// batcher drains: what was read still leaves.
func (b *Batcher) handOver(ctx context.Context, first *stream.Record, entries []entry) bool {
	select {
	case b.arrivals <- entries:
		return true
	case <-ctx.Done():
	}
	if first.Lost() {
		return false
	}
	select {
	case b.arrivals <- entries:
		return true
	case <-b.stopped:
		return false
	}
}

// partitionLost is called when a partition has moved to another batcher.
func (b *Batcher) partitionLost(int) { b.signalLost() }

// signalLost makes the loop drop what is lost: of partitions that moved, or because records are read again.
func (b *Batcher) signalLost() {
	select {
	case b.lost <- struct{}{}:
	default:
	}
}

// loop owns the window. Once the batcher is stopping, open batches leave at once, and so does
// everything that still arrives.
func (b *Batcher) loop(ctx context.Context) {
	defer close(b.stopped)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	onClose := func(o *openBatch, why Reason) { b.write(ctx, o, why) }
	stopping := b.stopping
	for {
		select {
		case <-ctx.Done():
			return
		case entries := <-b.arrivals:
			now := time.Now()
			for _, e := range entries {
				b.window.add(e, now, onClose)
			}
			b.window.closeIdle(onClose)
		case inFlight := <-b.freed:
			for id, n := range inFlight {
				b.window.closeDevice(id, n, onClose)
			}
		case <-b.lost:
			b.window.dropLost(func(e *entry) { b.leases.Drop(e.Lease, 1) })
		case <-stopping:
			b.window.drain(onClose)
			stopping = nil
		case <-timer.C:
		}
		now := time.Now()
		b.window.closeDue(now, onClose)
		b.deps.Metrics.Batcher.OpenBatches.Set(float64(len(b.window.batches)))
		b.deps.Metrics.Batcher.OpenTasks.Set(float64(b.window.tasks))
		wait := time.Hour
		if next := b.window.nextDue(); !next.IsZero() {
			wait = max(0, next.Sub(now))
		}
		timer.Reset(wait)
	}
}
