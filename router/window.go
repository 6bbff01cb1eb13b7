package router

import (
	"container/heap"
	"slices"
	"strings"
	"time"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// item is a task in the window, with the record that it came from.
type item struct {
	task   *task.Task
	rec    *stream.Record
	ticket *ticket
	rank   int64     // order among the ready: see rankOf
	ready  time.Time // not assigned earlier; zero: now
	since  time.Time // when it came into the window
	class  *class
	index  int  // in the heap that holds it
	wakeAt int  // in the heap of wake times, -1 when not there
	early  bool // parked until ready, but a device that can run it brings it back before
	gone   bool
}

// class is the tasks that need the same of a device. They wait in one heap.
type class struct {
	key    string
	model  string
	merged bool // requests of its endpoint can be merged: credits are from the merged pool
	needs  []string
	avoid  []string // devices not to be tried again
	ready  readyHeap
	unable bool     // no device can run it now: as of the last look at the fleet
	round  uint64   // of the last look
	waits  int      // tasks that decided to wait for a better device, in that round
	states []*state // that may run it, as of that round
}

// window holds what has been read and not yet assigned. It is owned by the
// scheduler's goroutine.
type window struct {
	cfg     Config
	classes map[string]*class
	byKey   map[task.Key]*item // the index: who waits, for cancel and for changes of priority
	wakes   wakeHeap           // by the next time at which something is due: not-before or deadline
	bySrc   map[string]int     // tasks per source topic
	bytes   map[string]int64   // bytes of records per source topic
}

func newWindow(cfg Config) *window {
	return &window{cfg: cfg, classes: map[string]*class{}, byKey: map[task.Key]*item{}, bySrc: map[string]int{}, bytes: map[string]int64{}}
}

// rankOf orders tasks: an earlier rank goes first. It is the time of submission
// plus a handicap for lower priorities, so that the order never changes while
// tasks wait (a heap can hold it), high goes before normal before low, and a
// task that has waited longer than its handicap goes before a fresh high one.
func rankOf(cfg Config, t *task.Task, now time.Time) int64 {
	at := t.SubmittedAt
	if at.IsZero() || at.After(now) { // a clock ahead of ours must not help or hurt
		at = now
	}
	switch t.Priority {
	case task.High:
	case task.Low:
		at = at.Add(cfg.AgeLow)
	default:
		at = at.Add(cfg.AgeNormal)
	}
	return at.Add(-time.Duration(t.Level) * cfg.AgeLevel).UnixNano()
}

func (w *window) classOf(t *task.Task) *class {
	merged := task.Merged(t.Endpoint)
	needs, avoid := t.Needs, []string(nil)
	if t.Progress != nil {
		avoid = t.Progress.Exclude
	}
	if len(needs) > 1 {
		needs = slices.Clone(needs)
		slices.Sort(needs)
	}
	if len(avoid) > 1 {
		avoid = slices.Clone(avoid)
		slices.Sort(avoid)
	}
	key := t.Model
	if merged || len(needs) > 0 || len(avoid) > 0 {
		m := "e"
		if merged {
			m = "m"
		}
		key = t.Model + "\x00" + m + "\x00" + strings.Join(needs, "\x01") + "\x00" + strings.Join(avoid, "\x01")
	}
	c := w.classes[key]
	if c == nil {
		c = &class{key: key, model: t.Model, merged: merged, needs: needs, avoid: avoid}
		w.classes[key] = c
	}
	return c
}

// add takes an item into the window; false if its task is in it already, from
// another record.
func (w *window) add(it *item, now time.Time) bool {
	if old := w.byKey[it.task.Key()]; old != nil {
		if !old.rec.Lost() {
			return false
		}
		w.remove(old) // its partition was lost: the new record speaks for the task
	}
	it.rank, it.since, it.wakeAt = rankOf(w.cfg, it.task, now), now, -1
	it.class = w.classOf(it.task)
	w.byKey[it.task.Key()] = it
	w.bySrc[it.rec.Topic]++
	w.bytes[it.rec.Topic] += int64(len(it.rec.Value))
	if it.ready.After(now) {
		it.index = -1
	} else {
		heap.Push(&it.class.ready, it)
	}
	if !it.wake(now).IsZero() {
		heap.Push(&w.wakes, it)
	}
	return true
}

// wake is when the item needs to be looked at: when it becomes ready, or its
// deadline passes; zero: never.
func (it *item) wake(now time.Time) time.Time {
	if it.ready.After(now) && (it.task.Deadline.IsZero() || it.ready.Before(it.task.Deadline)) {
		return it.ready
	}
	return it.task.Deadline
}

// remove takes an item out of every heap and index.
func (w *window) remove(it *item) {
	if it.gone {
		return
	}
	it.gone = true
	delete(w.byKey, it.task.Key())
	w.bySrc[it.rec.Topic]--
	w.bytes[it.rec.Topic] -= int64(len(it.rec.Value))
	if it.index >= 0 {
		heap.Remove(&it.class.ready, it.index)
	}
	if it.wakeAt >= 0 {
		heap.Remove(&w.wakes, it.wakeAt)
	}
	w.tidy(it.class)
}

func (w *window) tidy(c *class) {
	// Items of the class that wait for a time refer to it and bring it back.
	if c.ready.Len() == 0 && w.classes[c.key] == c {
		delete(w.classes, c.key)
	}
}

// pop takes the first ready item of a class out of its heap, but not out of
// the window: back or remove must follow.
func (c *class) pop() *item { return heap.Pop(&c.ready).(*item) }

// back returns a popped item to its class.
func (w *window) back(it *item) {
	if c := w.classes[it.class.key]; c != nil {
		it.class = c // it was tidied away and made again while the item was out
	} else {
		w.classes[it.class.key] = it.class
	}
	heap.Push(&it.class.ready, it)
}

// due calls fn with every item whose time has come: expired is true when its
// deadline passed, false when it has become ready (it is in its heap then).
func (w *window) due(now time.Time, expired func(*item)) {
	for len(w.wakes) > 0 && !w.wakes[0].wakeTime.After(now) {
		it := w.wakes[0].item
		if d := it.task.Deadline; !d.IsZero() && !d.After(now) {
			w.remove(it)
			expired(it)
			continue
		}
		heap.Pop(&w.wakes)
		if it.index < 0 {
			w.back(it)
		}
		if next := it.wake(now); !next.IsZero() {
			heap.Push(&w.wakes, it)
		}
	}
}

// wakeEarly makes the parked tasks ready for which able says that a device can
// run them now.
func (w *window) wakeEarly(now time.Time, able func(*class) bool) {
	var up []*item
	for _, e := range w.wakes {
		if it := e.item; it.early && it.index < 0 && !it.task.ReadyAt().After(now) && able(it.class) {
			up = append(up, it)
		}
	}
	for _, it := range up {
		it.early, it.ready = false, it.task.ReadyAt()
		heap.Remove(&w.wakes, it.wakeAt)
		w.back(it)
		if !it.wake(now).IsZero() {
			heap.Push(&w.wakes, it)
		}
	}
}

// next is the time at which due has something to do; zero: nothing waits.
func (w *window) next() time.Time {
	if len(w.wakes) == 0 {
		return time.Time{}
	}
	return w.wakes[0].wakeTime
}

func (w *window) len() int { return len(w.byKey) }

// readyHeap orders by rank.
type readyHeap []*item

func (h readyHeap) Len() int           { return len(h) }
func (h readyHeap) Less(i, j int) bool { return h[i].rank < h[j].rank }
func (h readyHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *readyHeap) Push(x any) {
	it := x.(*item)
	it.index = len(*h)
	*h = append(*h, it)
}
func (h *readyHeap) Pop() any {
	old := *h
	n := len(old) - 1
	it := old[n]
	old[n] = nil
	*h = old[:n]
	it.index = -1
	return it
}

// wakeHeap orders by wake time, which is kept beside the item because it
// depends on the time at which it was computed.
type wakeHeap []wakeEntry

type wakeEntry struct {
	item     *item
	wakeTime time.Time
}

func (h wakeHeap) Len() int           { return len(h) }
func (h wakeHeap) Less(i, j int) bool { return h[i].wakeTime.Before(h[j].wakeTime) }
func (h wakeHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].item.wakeAt, h[j].item.wakeAt = i, j
}
func (h *wakeHeap) Push(x any) {
	it := x.(*item)
	at := it.task.Deadline
	if it.index < 0 && !it.ready.IsZero() && (at.IsZero() || it.ready.Before(at)) {
		at = it.ready
	}
	it.wakeAt = len(*h)
	*h = append(*h, wakeEntry{it, at})
}
func (h *wakeHeap) Pop() any {
	old := *h
	n := len(old) - 1
	e := old[n]
	old[n] = wakeEntry{}
	*h = old[:n]
	e.item.wakeAt = -1
	return e.item
}
