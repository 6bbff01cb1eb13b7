package batcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// Stage is the name under which dead letters and events say who acted.
const Stage = "batcher"

// Deps is what a batcher works with.
type Deps struct {
	Log      *stream.Log
	Credits  *device.Credits
	Metrics  *metrics.Metrics
	Logger   *slog.Logger
	Instance string
}

// Batcher reads assignments and writes batches. Any number of batchers may run;
// a device's assignments are always with one of them.
type Batcher struct {
	cfg      Config
	deps     Deps
	outbox   *stream.Outbox
	leases   *device.Keeper
	window   *window
	arrivals chan []entry
	lost     chan struct{}
	stopped  chan struct{}       // closed when the loop has ended
	freed    chan map[string]int // tasks that the devices named have, as the log of credits says
}

// New returns a batcher; Run starts it.
func New(cfg Config, deps Deps) *Batcher {
	return &Batcher{
		cfg: cfg, deps: deps,
		outbox: deps.Log.NewOutbox(Stage, 1024, 64<<20),
		leases: device.NewKeeper(deps.Credits, deps.Logger),
		window: newWindow(cfg), arrivals: make(chan []entry), lost: make(chan struct{}, 1), stopped: make(chan struct{}),
		freed: make(chan map[string]int, 1),
	}
}

// Run batches until ctx ends. Then every open batch leaves at once, and Run
// returns when they are acknowledged.
func (b *Batcher) Run(ctx context.Context, ready func()) error {
	working, stopWorking := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWorking()
	var helpers sync.WaitGroup
	defer helpers.Wait()
	helpers.Go(func() { b.leases.Run(working) })
	helpers.Go(func() { b.watchDevices(working) })
	helpers.Go(func() { b.loop(working, ctx.Done()) })

	err := b.deps.Log.Consume(ctx, stream.ConsumerConfig{
		Group: Stage, Topic: stream.Assignments, MaxRecords: b.cfg.MaxInFlight, MaxBytes: b.cfg.MaxBytes,
		DrainTimeout: b.cfg.DrainTimeout, OnLost: b.partitionLost,
	}, b.intake, ready)
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.cfg.DrainTimeout)
	defer cancel()
	if cerr := b.outbox.Close(closing); cerr != nil {
		err = errors.Join(err, fmt.Errorf("closing the batcher's outbox: %w", cerr))
	}
	stopWorking()
	return err
}

// intake decodes the records of one partition and hands their assignments over.
func (b *Batcher) intake(ctx context.Context, recs []*stream.Record) {
	fault.At("batcher.after_read")
	var entries []entry
	for _, rec := range recs {
		as, err := task.DecodeFrame[task.Assignment](task.FrameAssignments, rec.Value)
		if err != nil || len(as) == 0 {
			if err == nil {
				err = errors.New("the frame is empty")
			}
			b.refuse(ctx, rec, err)
			continue
		}
		from := &origin{rec: rec}
		from.open.Store(int32(len(as))) //nolint:gosec // bounded by task.MaxFrameEntries
		for i := range as {
			b.leases.Hold(as[i].Lease)
			entries = append(entries, entry{as[i], from})
		}
	}
	select {
	case b.arrivals <- entries:
		return
	case <-ctx.Done():
	}
	if !recs[0].Lost() { // we drain: what was read still leaves
		select {
		case b.arrivals <- entries:
			return
		case <-b.stopped:
		}
	}
	for i := range entries { // read again, by whoever owns the partition
		b.leases.Drop(entries[i].Lease, 1)
	}
}

// partitionLost is told when a partition belongs to another batcher now.
func (b *Batcher) partitionLost(int) {
	select {
	case b.lost <- struct{}{}:
	default:
	}
}

// loop owns the window. When draining ends, what is open leaves at once, and so
// does whatever still comes.
func (b *Batcher) loop(ctx context.Context, draining <-chan struct{}) {
	defer close(b.stopped)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	closed := func(o *open, why Reason) { b.write(ctx, o, why) }
	for {
		select {
		case <-ctx.Done():
			return
		case entries := <-b.arrivals:
			now := time.Now()
			for _, e := range entries {
				b.window.add(e, now, closed)
			}
			b.window.closeIdle(closed)
		case used := <-b.freed:
			for id, n := range used {
				b.window.deviceIdle(id, n, closed)
			}
		case <-b.lost:
			b.window.lost(func(e *entry) { b.leases.Drop(e.Lease, 1) })
		case <-draining:
		case <-timer.C:
		}
		now := time.Now()
		select {
		case <-draining:
			b.window.all(closed)
			draining = nil // no more waiting for it; the loop goes on for what still comes
			b.cfgDrain()
		default:
		}
		b.window.due(now, closed)
		b.deps.Metrics.Batcher.OpenBatches.Set(float64(len(b.window.batches)))
		b.deps.Metrics.Batcher.OpenTasks.Set(float64(b.window.tasks))
		wait := time.Hour
		if next := b.window.next(); !next.IsZero() {
			wait = max(0, next.Sub(now))
		}
		timer.Reset(wait)
	}
}

// cfgDrain makes every batch that opens from now on leave at once.
func (b *Batcher) cfgDrain() {
	b.window.cfg.Merged.MaxWait, b.window.cfg.Each.MaxWait = 0, 0
	b.window.cfg.Rules = nil
}

// write sends a closed batch on its way. The records that its assignments came
// from are finished when it is acknowledged.
func (b *Batcher) write(ctx context.Context, o *open, why Reason) {
	now := time.Now().UTC()
	batch := task.Batch{
		ID: task.NewID(), Device: o.device, Endpoint: o.shape.endpoint, Model: o.shape.model,
		Reason: string(why), OpenedAt: o.since.UTC(), ClosedAt: now,
		Assignments: make([]task.Assignment, 0, len(o.entries)),
	}
	events := make([]task.Event, 0, len(o.entries))
	note, err := json.Marshal(map[string]any{"reason": why, "tasks": len(o.entries), "bytes": o.bytes})
	if err != nil {
		note = nil
	}
	for i := range o.entries {
		a := &o.entries[i].Assignment
		batch.Assignments = append(batch.Assignments, *a)
		e := task.NewEvent(task.BatchClosed, &a.Task, b.deps.Instance, now)
		e.ResourceType, e.ResourceID = "batch", batch.ID
		e.Batch, e.Device, e.Attempt, e.Detail = batch.ID, o.device.ID, a.Attempt, note
		e.Duration = max(0, now.Sub(a.AssignedAt))
		events = append(events, e)
	}
	frame, err := task.EncodeFrame(task.FrameBatches, []task.Batch{batch})
	if err != nil { // our own types do not fail to encode
		b.deps.Logger.Error("encoding a batch", "error", err)
		return
	}
	m := b.deps.Metrics.Batcher
	m.Batches.WithLabelValues(string(why)).Inc()
	m.BatchTasks.WithLabelValues(o.shape.endpoint).Observe(float64(len(o.entries)))
	m.BatchBytes.Observe(float64(o.bytes))
	m.WaitSeconds.Observe(now.Sub(o.since).Seconds())
	entries := o.entries
	fault.At("batcher.before_batch")
	unit := stream.Unit{
		Messages: []stream.Message{{Topic: stream.Batches, Key: o.device.ID, Value: frame}},
		Events:   events,
		Acked: func(err error) {
			fault.At("batcher.after_batch")
			for i := range entries {
				b.leases.Drop(entries[i].Lease, 1) // the worker renews from here on
				if err == nil {
					entries[i].from.release()
				}
			}
			if err != nil {
				b.deps.Logger.Error("a batch was not written; its assignments are read again", "batch_id", batch.ID, "error", err)
			}
		},
	}
	_ = b.outbox.Put(ctx, unit) // an error means that the process stops: it is read again
}

// refuse sends a record that cannot be read to the dead letters.
func (b *Batcher) refuse(ctx context.Context, rec *stream.Record, cause error) {
	b.deps.Metrics.Stream.DeadLetters.WithLabelValues(Stage, "unreadable").Inc()
	b.deps.Logger.Error("a record of assignments cannot be read; it goes to the dead letters", "record", rec.Position(), "error", cause)
	unit := stream.Unit{
		Messages: []stream.Message{stream.DeadLetter(rec, Stage, "unreadable", cause)},
		Events:   []task.Event{stream.DeadLetterEvent(rec, b.deps.Instance, cause)},
		Acked: func(err error) {
			if err == nil {
				rec.Done()
			}
		},
	}
	_ = b.outbox.Put(ctx, unit)
}

// watchDevices hears of freed credits: a device that has nothing but what waits
// here for it is idle, and its batches should not wait.
func (b *Batcher) watchDevices(ctx context.Context) {
	names := make(chan []string, 64)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		err := b.deps.Credits.Watch(ctx, func(pools []string) {
			select {
			case names <- pools:
			default: // the batch's own time closes it then
			}
		})
		if err != nil && ctx.Err() == nil {
			b.deps.Logger.Error("watching freed credits ended", "error", err)
		}
	})
	for {
		select {
		case <-ctx.Done():
			return
		case pools := <-names:
			used := b.deviceUse(ctx, pools)
			if used == nil {
				continue
			}
			select {
			case b.freed <- used:
			case <-ctx.Done():
				return
			}
		}
	}
}

// deviceUse returns how many tasks the devices of the pools have, over both of
// their pools; nil when Redis does not tell.
func (b *Batcher) deviceUse(ctx context.Context, pools []string) map[string]int {
	seen := map[string]bool{}
	var ids, ask []string
	for _, p := range pools {
		id, _, ok := cutLast(p)
		if !ok || seen[id] {
			continue
		}
		seen[id] = true
		ids, ask = append(ids, id), append(ask, device.Pool(id, device.ClassEach), device.Pool(id, device.ClassMerged))
	}
	if len(ids) == 0 {
		return nil
	}
	used, err := b.deps.Credits.Used(ctx, ask)
	if err != nil {
		return nil
	}
	out := make(map[string]int, len(ids))
	for i, id := range ids {
		out[id] = used[2*i] + used[2*i+1]
	}
	return out
}

func cutLast(s string) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, '/')
	if i < 0 {
		return "", "", false
	}
	return s[:i], s[i+1:], true
}
