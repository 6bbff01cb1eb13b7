// Package arrivals tells requests of results as soon as these are in Kafka, without waiting for Postgres.
//
// A hub follows those partitions of the topic results that will hold what requests wait for. It is in no
// consumer group: any number of processes hear of every result, and no rebalance interrupts them. Of the
// records of other tasks it compares the keys, and decodes nothing.
//
//	(none) ──first wait──▶ finding its end ──▶ following ──no one waits for a minute──▶ (none)
//	                                              │ Kafka does not answer, or deleted records
//	                                              ▼
//	                                   those who wait are unsure: they ask Postgres too
//
// It is a shortcut and promises nothing: a result may be missed, so those who wait must ask Postgres as well
// after a while. What it hands out is what the recorder will store: the results of a task are in one
// partition, and the recorder keeps the first.
package arrivals

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/follow"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// idleAfter is how long a partition is followed while no one waits.
const idleAfter = time.Minute

// Deps is what a hub works with.
type Deps struct {
	Stream  *stream.Client
	Logger  *slog.Logger
	Metrics *metrics.API
}

// Hub tells requests of results. Close it.
type Hub struct {
	deps   Deps
	idle   time.Duration
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex
	tails map[int]*tail // by partition
}

// New returns a hub that follows nothing yet.
func New(d Deps) *Hub {
	h := &Hub{deps: d, idle: idleAfter, tails: map[int]*tail{}}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	return h
}

// Close stops following. Those who wait hear no more.
func (h *Hub) Close() {
	h.cancel()
	h.wg.Wait()
}

// Arrival waits for the result of one task. Close it.
type Arrival struct {
	run    task.Run
	print  task.Fingerprint
	tail   *tail // nil: it hears nothing
	result chan *task.Result
	unsure chan struct{}
	once   sync.Once
}

// Result receives the result of the task, once.
func (a *Arrival) Result() <-chan *task.Result { return a.result }

// Unsure is closed once a result may have been missed.
func (a *Arrival) Unsure() <-chan struct{} { return a.unsure }

// doubt reports whether it had none before.
func (a *Arrival) doubt() (first bool) {
	a.once.Do(func() {
		close(a.unsure)
		first = true
	})
	return first
}

// Expect waits for the result of a task that is about to be submitted. Once it returns, a result that is
// written later is heard; until the partition is followed, which takes a request to Kafka, it waits, but
// not longer than ctx. Results of earlier generations, and of other requests than the fingerprint's, are passed
// over.
func (h *Hub) Expect(ctx context.Context, run task.Run, print task.Fingerprint) *Arrival {
	a := &Arrival{run: run, print: print, result: make(chan *task.Result, 1), unsure: make(chan struct{})}
	partition := h.deps.Stream.PartitionOf(stream.Results, run.ID)
	if partition < 0 || h.ctx.Err() != nil {
		a.doubt()
		return a
	}
	a.tail = h.join(partition, a)
	select {
	case <-a.tail.started:
	case <-ctx.Done():
		a.doubt()
	case <-h.ctx.Done():
		a.doubt()
	}
	return a
}

// Close ends the wait.
func (a *Arrival) Close() {
	if a.tail != nil {
		a.tail.leave(a)
	}
}

// tail follows one partition.
type tail struct {
	hub     *Hub
	id      int
	stop    context.CancelFunc
	started chan struct{} // closed once it has its position

	mu      sync.Mutex
	waiting map[string]map[*Arrival]struct{} // by task id
	timer   *time.Timer                      // runs while no one waits
}

// join adds one who waits to the tail of a partition, which it starts if need be.
func (h *Hub) join(partition int, a *Arrival) *tail {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.tails[partition]
	if t == nil {
		t = &tail{hub: h, id: partition, started: make(chan struct{}), waiting: map[string]map[*Arrival]struct{}{}}
		h.tails[partition] = t
		ctx, stop := context.WithCancel(h.ctx)
		t.stop = stop
		h.wg.Go(func() { t.run(ctx) })
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.timer != nil {
		t.timer.Stop()
		t.timer = nil
	}
	if t.waiting[a.run.ID] == nil {
		t.waiting[a.run.ID] = map[*Arrival]struct{}{}
	}
	t.waiting[a.run.ID][a] = struct{}{}
	return t
}

func (t *tail) leave(a *Arrival) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.waiting[a.run.ID], a)
	if len(t.waiting[a.run.ID]) == 0 {
		delete(t.waiting, a.run.ID)
	}
	if len(t.waiting) == 0 && t.timer == nil {
		t.timer = time.AfterFunc(t.hub.idle, t.retire)
	}
}

// retire stops following if still no one waits.
func (t *tail) retire() {
	t.hub.mu.Lock()
	defer t.hub.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) == 0 && t.hub.tails[t.id] == t {
		delete(t.hub.tails, t.id)
		t.stop()
	}
}

func (t *tail) run(ctx context.Context) {
	gauge := t.hub.deps.Metrics.Followed
	gauge.Inc()
	defer gauge.Dec()
	follow.Partition(ctx, t.hub.deps.Stream, follow.Tail{
		Topic: stream.Results, Partition: t.id, Started: func() { close(t.started) }, Missed: t.missed, Handle: t.handle,
	})
}

// missed tells all who wait that they may not hear of their results.
func (t *tail) missed(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	unsure := 0
	for _, arrivals := range t.waiting {
		for a := range arrivals {
			if a.doubt() {
				unsure++
			}
		}
	}
	if unsure > 0 {
		t.hub.deps.Logger.Warn("requests that wait for results look them up in Postgres while Kafka does not hand them out", "requests", unsure, "partition", t.id, "error", err)
	}
}

// handle looks for results that are waited for.
func (t *tail) handle(recs []*stream.Record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) == 0 {
		return
	}
	for _, r := range recs {
		arrivals := t.waiting[string(r.Key)]
		if len(arrivals) == 0 || records.CheckOurs(r) != nil {
			continue
		}
		res, err := wire.DecodeResult(r.Value, r.Header(wire.HeaderContentType))
		if err != nil {
			continue // the recorder makes it a dead letter
		}
		for a := range arrivals {
			a.tell(res)
		}
	}
}

// tell hands over the result if it is the one that is waited for.
func (a *Arrival) tell(res *task.Result) {
	if a.run.Key != res.Key() || res.Generation < a.run.Generation || a.print.Differs(res.Request()) {
		return
	}
	select {
	case a.result <- res:
	default: // it has the first
	}
}
