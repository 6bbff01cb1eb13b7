package batcher

import (
	"container/heap"
	"sync/atomic"
	"time"

	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
)

// Reason is why a batch closed, as in batches, events and metrics.
type Reason string

// The reasons.
const (
	ReasonCount  Reason = "count"  // it holds as many tasks as allowed
	ReasonBytes  Reason = "bytes"  // it holds as many bytes as allowed
	ReasonTokens Reason = "tokens" // it holds about as many tokens as allowed
	ReasonWait   Reason = "wait"   // its oldest task has waited long enough
	ReasonIdle   Reason = "idle"   // its device has nothing else to do
	ReasonDrain  Reason = "drain"  // the batcher is stopping
)

// batchKey is what the tasks of a batch have in common.
type batchKey struct{ device, endpoint, model string }

// entry is one assignment in an open batch.
type entry struct {
	task.Assignment
	ack *records.Ack // of the record that it came in
}

// openBatch is a batch that is being filled.
type openBatch struct {
	key      batchKey
	device   task.DeviceRef
	limits   Thresholds
	entries  []entry
	bytes    int64 // of inputs
	overhead int64 // bytes of everything else in its record
	since    time.Time
	closeAt  time.Time
	index    int  // in the heap of times
	idle     bool // the device had an idle slot when one of the tasks was assigned
}

// maxOverhead bounds what a batch carries in addition to its inputs (labels, the errors of earlier
// attempts), so that its record fits into the topic whatever the thresholds are.
const maxOverhead = 3 << 20

// overheadOf estimates the bytes of an assignment without its input.
func overheadOf(a *task.Assignment) int64 {
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
			n += 128 + len(p.Attempts[i].Model) + len(p.Attempts[i].DeviceID) + len(p.Attempts[i].Message)
		}
		for _, s := range p.Exclude {
			n += len(s)
		}
		for _, h := range p.Sent {
			n += len(h.Key) + len(h.Value) + 16
		}
	}
	return int64(n + len(a.Task.CustomID) + len(a.Task.SessionID) + len(a.Task.Model))
}

// window holds the open batches. One goroutine owns it. Its methods call onClose with each batch
// that they close, which has left the window by then.
type window struct {
	cfg      *atomic.Pointer[Config]
	batches  map[batchKey]*openBatch
	byDevice map[string]map[*openBatch]struct{}
	times    timeHeap
	tasks    int
	closing  []*openBatch // scratch space of the methods that close several
	draining bool         // new batches close at once
}

func newWindow(cfg *atomic.Pointer[Config]) *window {
	return &window{cfg: cfg, batches: map[batchKey]*openBatch{}, byDevice: map[string]map[*openBatch]struct{}{}}
}

// add puts an assignment into the batch of its key, and closes batches that are full.
func (w *window) add(e entry, now time.Time, onClose func(*openBatch, Reason)) {
	key := batchKey{e.Device.ID, e.Task.Endpoint, e.Task.Model}
	size, overhead := int64(len(e.Task.Input)), overheadOf(&e.Assignment)
	b := w.batches[key]
	if b != nil {
		if why := b.cannotTake(size, overhead); why != "" {
			w.remove(b)
			onClose(b, why)
			b = nil
		}
	}
	if b == nil {
		b = w.open(key, now)
	}
	b.device = e.Device // with the URL of the newest heartbeat
	b.entries = append(b.entries, e)
	b.bytes += size
	b.overhead += overhead
	b.idle = b.idle || e.IdleSlots > 0
	w.tasks++
	if why := b.full(); why != "" {
		w.remove(b)
		onClose(b, why)
	}
}

// cannotTake says why an entry does not fit into the batch; empty if it does.
func (b *openBatch) cannotTake(size, overhead int64) Reason {
	switch {
	case b.bytes+size > b.limits.MaxBytes, b.overhead+overhead > maxOverhead:
		return ReasonBytes
	case tokensOf(b.bytes+size) > int64(b.limits.MaxTokens):
		return ReasonTokens
	}
	return ""
}

// full says why the batch closes; empty if it does not.
func (b *openBatch) full() Reason {
	switch {
	case len(b.entries) >= b.limits.MaxCount:
		return ReasonCount
	case b.bytes >= b.limits.MaxBytes:
		return ReasonBytes
	case tokensOf(b.bytes) >= int64(b.limits.MaxTokens):
		return ReasonTokens
	}
	return ""
}

// open opens a batch.
func (w *window) open(key batchKey, now time.Time) *openBatch {
	b := &openBatch{key: key, limits: w.limits(key), since: now}
	b.closeAt = now.Add(b.limits.MaxWait)
	w.batches[key] = b
	of := w.byDevice[key.device]
	if of == nil {
		of = map[*openBatch]struct{}{}
		w.byDevice[key.device] = of
	}
	of[b] = struct{}{}
	heap.Push(&w.times, b)
	return b
}

// limits returns the thresholds for a new batch.
func (w *window) limits(key batchKey) Thresholds {
	cfg := w.cfg.Load()
	if w.draining {
		return cfg.drainThresholds(key.endpoint)
	}
	return cfg.For(key.endpoint, key.model)
}

func (w *window) remove(b *openBatch) {
	delete(w.batches, b.key)
	of := w.byDevice[b.key.device]
	delete(of, b)
	if len(of) == 0 {
		delete(w.byDevice, b.key.device)
	}
	heap.Remove(&w.times, b.index)
	w.tasks -= len(b.entries)
}

// closeDue closes the batches that have waited long enough.
func (w *window) closeDue(now time.Time, onClose func(*openBatch, Reason)) {
	for len(w.times) > 0 && !w.times[0].closeAt.After(now) {
		b := w.times[0]
		w.remove(b)
		onClose(b, ReasonWait)
	}
}

// closeIdle closes the batches whose device had an idle slot when one of their tasks was assigned.
// Call it after all assignments at hand were added.
func (w *window) closeIdle(onClose func(*openBatch, Reason)) {
	for _, b := range w.times {
		if b.idle {
			w.closing = append(w.closing, b)
		}
	}
	w.close(onClose, ReasonIdle)
}

// closeDevice closes the batches of a device if its tasks in flight are no more than those that
// wait in them.
func (w *window) closeDevice(device string, inFlight int, onClose func(*openBatch, Reason)) {
	waiting := 0
	for b := range w.byDevice[device] {
		waiting += len(b.entries)
		w.closing = append(w.closing, b)
	}
	if inFlight > waiting {
		w.closing = w.closing[:0]
		return
	}
	w.close(onClose, ReasonIdle)
}

// closeAll closes every batch.
func (w *window) closeAll(onClose func(*openBatch, Reason)) {
	w.closing = append(w.closing, w.times...)
	w.close(onClose, ReasonDrain)
}

// drain closes every batch, and makes batches that open from now on due at once.
func (w *window) drain(onClose func(*openBatch, Reason)) {
	w.draining = true
	w.closeAll(onClose)
}

// dropLost drops the entries whose partition was lost, and calls onDrop with each. The
// partition's new owner reads them again.
func (w *window) dropLost(onDrop func(*entry)) {
	for _, b := range append([]*openBatch(nil), w.times...) {
		kept := b.entries[:0]
		for i := range b.entries {
			e := &b.entries[i]
			if e.ack.Lost() {
				w.tasks--
				b.bytes -= int64(len(e.Task.Input))
				b.overhead -= overheadOf(&e.Assignment)
				onDrop(e)
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

// close closes the batches in w.closing.
func (w *window) close(onClose func(*openBatch, Reason), why Reason) {
	for i, b := range w.closing {
		w.remove(b)
		onClose(b, why)
		w.closing[i] = nil
	}
	w.closing = w.closing[:0]
}

// nextDue returns when the next batch has waited long enough; zero when there is none.
func (w *window) nextDue() time.Time {
	if len(w.times) == 0 {
		return time.Time{}
	}
	return w.times[0].closeAt
}

// timeHeap orders open batches by the time at which they close.
type timeHeap []*openBatch

func (h timeHeap) Len() int           { return len(h) }
func (h timeHeap) Less(i, j int) bool { return h[i].closeAt.Before(h[j].closeAt) }
func (h timeHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push implements heap.Interface.
func (h *timeHeap) Push(x any) {
	b := x.(*openBatch)
	b.index = len(*h)
	*h = append(*h, b)
}

// Pop implements heap.Interface.
func (h *timeHeap) Pop() any {
	old := *h
	n := len(old) - 1
	b := old[n]
	old[n] = nil
	*h = old[:n]
	return b
}
