package batcher

import (
	"container/heap"
	"sync/atomic"
	"time"

	"github.com/batchyard/batchyard/task"
)

// Reason is why a batch closed. The list is the documentation of the reason in
// batches, events and metrics.
type Reason string

// The reasons.
const (
	ReasonCount Reason = "count" // it holds as many tasks as it may
	ReasonBytes Reason = "bytes" // it holds as many bytes as it may
	ReasonWait  Reason = "wait"  // its oldest task has waited long enough
	ReasonIdle  Reason = "idle"  // its device has nothing else to do
	ReasonDrain Reason = "drain" // the batcher stops
)

// shape is what the tasks of a batch have in common.
type shape struct{ device, endpoint, model string }

// origin finishes a record when every batch with one of its assignments is
// acknowledged.
type origin struct {
	rec interface { // a *stream.Record
		Done()
		Lost() bool
	}
	open atomic.Int32
}

func (o *origin) release() {
	if o.open.Add(-1) == 0 {
		o.rec.Done()
	}
}

// entry is one assignment in an open batch.
type entry struct {
	task.Assignment
	from *origin
}

// open is a batch that is being filled.
type open struct {
	shape   shape
	device  task.DeviceRef
	limits  Thresholds
	entries []entry
	bytes   int64 // of inputs
	rest    int64 // bytes of all else in its record
	since   time.Time
	closeAt time.Time
	index   int // in the heap of times
	idle    bool
}

// maxRest bounds what a batch carries beside its inputs (labels, the reasons of
// earlier attempts), so that its record fits into the topic whatever the
// thresholds are.
const maxRest = 3 << 20

// restOf estimates the bytes of an assignment without its input.
func restOf(a *task.Assignment) int64 {
	n := 1024
	for k, v := range a.Task.Labels {
		n += len(k) + len(v) + 8
	}
	for _, s := range a.Task.Needs {
		n += len(s)
	}
	for _, s := range a.Task.DependsOn {
		n += len(s)
	}
	if c := a.Task.Callback; c != nil {
		n += len(c.URL)
	}
	if p := a.Task.Progress; p != nil {
		for i := range p.Attempts {
			n += 128 + len(p.Attempts[i].Model) + len(p.Attempts[i].Device) + len(p.Attempts[i].Message)
		}
		for _, s := range p.Exclude {
			n += len(s)
		}
	}
	return int64(n + len(a.Task.CustomID) + len(a.Task.Session) + len(a.Task.Model))
}

// window holds the open batches. It is owned by one goroutine.
type window struct {
	cfg      Config
	batches  map[shape]*open
	byDevice map[string]map[*open]struct{}
	times    timeHeap
	tasks    int
	scratch  []*open
}

func newWindow(cfg Config) *window {
	return &window{cfg: cfg, batches: map[shape]*open{}, byDevice: map[string]map[*open]struct{}{}}
}

// add puts an assignment into the batch of its shape and returns the batches
// that this closes, with the reason.
func (w *window) add(e entry, now time.Time, closed func(*open, Reason)) {
	sh := shape{e.Device.ID, e.Task.Endpoint, e.Task.Model}
	size, rest := int64(len(e.Task.Input)), restOf(&e.Assignment)
	b := w.batches[sh]
	if b != nil && (b.bytes+size > b.limits.MaxBytes || b.rest+rest > maxRest) {
		w.remove(b)
		closed(b, ReasonBytes)
		b = nil
	}
	if b == nil {
		b = &open{shape: sh, limits: w.cfg.For(sh.endpoint, sh.model), since: now}
		b.closeAt = now.Add(b.limits.MaxWait)
		w.batches[sh] = b
		of := w.byDevice[sh.device]
		if of == nil {
			of = map[*open]struct{}{}
			w.byDevice[sh.device] = of
		}
		of[b] = struct{}{}
		heap.Push(&w.times, b)
	}
	b.device = e.Device // the newest heartbeat's URL
	b.entries = append(b.entries, e)
	b.bytes += size
	b.rest += rest
	b.idle = b.idle || e.IdleSlots > 0
	w.tasks++
	if len(b.entries) >= b.limits.MaxCount {
		w.remove(b)
		closed(b, ReasonCount)
	} else if b.bytes >= b.limits.MaxBytes {
		w.remove(b)
		closed(b, ReasonBytes)
	}
}

func (w *window) remove(b *open) {
	delete(w.batches, b.shape)
	of := w.byDevice[b.shape.device]
	delete(of, b)
	if len(of) == 0 {
		delete(w.byDevice, b.shape.device)
	}
	heap.Remove(&w.times, b.index)
	w.tasks -= len(b.entries)
}

// due closes the batches that have waited long enough.
func (w *window) due(now time.Time, closed func(*open, Reason)) {
	for len(w.times) > 0 && !w.times[0].closeAt.After(now) {
		b := w.times[0]
		w.remove(b)
		closed(b, ReasonWait)
	}
}

// closeIdle closes the batches whose device had a slot without work when one of
// their tasks was assigned. It is called when everything at hand was added.
func (w *window) closeIdle(closed func(*open, Reason)) {
	for _, b := range w.times {
		if b.idle {
			w.scratch = append(w.scratch, b)
		}
	}
	w.closeScratch(closed, ReasonIdle)
}

// deviceIdle closes the batches of a device that has at most as many tasks as
// wait for it here.
func (w *window) deviceIdle(device string, used int, closed func(*open, Reason)) {
	waiting := 0
	for b := range w.byDevice[device] {
		waiting += len(b.entries)
		w.scratch = append(w.scratch, b)
	}
	if used > waiting {
		w.scratch = w.scratch[:0]
		return
	}
	w.closeScratch(closed, ReasonIdle)
}

// all closes everything.
func (w *window) all(closed func(*open, Reason)) {
	w.scratch = append(w.scratch, w.times...)
	w.closeScratch(closed, ReasonDrain)
}

// lost drops the entries whose partition belongs to another batcher now, which
// reads them again, and calls dropped with each.
func (w *window) lost(dropped func(*entry)) {
	for _, b := range append([]*open(nil), w.times...) {
		kept := b.entries[:0]
		for i := range b.entries {
			e := &b.entries[i]
			if e.from.rec.Lost() {
				w.tasks--
				b.bytes -= int64(len(e.Task.Input))
				b.rest -= restOf(&e.Assignment)
				dropped(e)
				continue
			}
			kept = append(kept, *e)
		}
		clear(b.entries[len(kept):])
		b.entries = kept
		if len(kept) == 0 {
			w.remove(b)
		}
	}
}

func (w *window) closeScratch(closed func(*open, Reason), why Reason) {
	for i, b := range w.scratch {
		w.remove(b)
		closed(b, why)
		w.scratch[i] = nil
	}
	w.scratch = w.scratch[:0]
}

// next is the time at which due has something to do; zero: nothing waits.
func (w *window) next() time.Time {
	if len(w.times) == 0 {
		return time.Time{}
	}
	return w.times[0].closeAt
}

// timeHeap orders open batches by the time at which they close.
type timeHeap []*open

func (h timeHeap) Len() int           { return len(h) }
func (h timeHeap) Less(i, j int) bool { return h[i].closeAt.Before(h[j].closeAt) }
func (h timeHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *timeHeap) Push(x any) {
	b := x.(*open)
	b.index = len(*h)
	*h = append(*h, b)
}
func (h *timeHeap) Pop() any {
	old := *h
	n := len(old) - 1
	b := old[n]
	old[n] = nil
	*h = old[:n]
	return b
}
