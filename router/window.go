package router

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// item is a task in the window, with the record that it came from.
type item struct {
	task   *task.Task
	rec    *stream.Record // nil in a simulation
	ticket *ticket
	source string    // topic that it came from
	size   int64     // bytes that it holds of the window
	client string    // address of who sent it
	rank   int64     // order among the ready of its flow: see rankOf
	ready  time.Time // not assigned earlier; zero: now
	since  time.Time // when it came into the window
	class  *class
	flow   *flow
	queue  *queue // that holds it while it is ready
	index  int    // in that queue
	wakeAt int    // in the heap of wake times, -1 when not there
	early  bool   // parked until ready, but a device that can run it brings it back before
	gone   bool
	riders []*item // other records of the task that are done when this one is: see twins.go
}

// lost says that the item's partition belongs to another router now.
func (it *item) lost() bool { return it.rec != nil && it.rec.Lost() }

// class is the tasks that need the same of a device.
type class struct {
	key    string
	model  string
	merged bool // requests of its endpoint can be merged: credits are from the merged pool
	needs  []string
	avoid  []string // devices not to be tried again
	queues map[*flow]*queue
	tasks  int // in the window, waiting ones included
	ready  int // of them, in a queue

	field  *field    // the devices that may run it; nil: not looked at yet
	unable bool      // no device can run it now: as of the last look at the fleet
	round  uint64    // of the last look
	waits  int       // tasks that decided to wait for a better device, in that round
	until  int       // with fewer than this the next one decides so, too
	full   bool      // none of its tasks goes anywhere in that round
	pause  time.Time // lower bands take nothing before: a higher one waits elsewhere
	pauses int       // the first band that pauses
}

// window holds what has been read and not yet assigned. It is owned by the
// scheduler's goroutine.
type window struct {
	cfg     Config
	weights map[string]float64 // of tenants
	bands   [bands]*band
	flows   map[flowKey]*flow
	classes map[string]*class
	byKey   map[task.Key]*item // the index: who waits, for cancel and for changes of priority
	wakes   heapOf[*wake]      // by the next time at which something is due: not-before or deadline
	bySrc   map[string]int     // tasks per source topic
	bytes   map[string]int64   // bytes of records per source topic
	ready   int                // tasks that wait for nothing but a device
	arrival bool               // the policy wants them in the order in which they came
	typical float64            // seconds of service of a task, as of late; 0: none was served
}

// wake is when an item needs to be looked at.
type wake struct {
	item *item
	when time.Time
}

func newWindow(cfg Config, weights map[string]float64) *window {
	w := &window{
		cfg: cfg, weights: weights, flows: map[flowKey]*flow{}, classes: map[string]*class{},
		byKey: map[task.Key]*item{}, bySrc: map[string]int{}, bytes: map[string]int64{},
	}
	for i, share := range [bands]float64{0, cfg.ShareNormal, cfg.ShareLow} {
		w.bands[i] = newBand(share)
	}
	w.wakes.less = func(a, b *wake) bool { return a.when.Before(b.when) }
	w.wakes.at = func(k *wake, i int) { k.item.wakeAt = i }
	return w
}

// rankOf orders tasks of one tenant and priority: an earlier rank goes first. It
// is the time of submission, levels counting as time, so that the order never
// changes while tasks wait (a heap can hold it) and no level starves.
func rankOf(cfg Config, t *task.Task, now time.Time) int64 {
	at := t.SubmittedAt
	if at.IsZero() || at.After(now) { // a clock ahead of ours must not help or hurt
		at = now
	}
	return at.Add(-time.Duration(t.Level) * cfg.AgeLevel).UnixNano()
}

// rank is the place of a task in the order that the policy wants.
func (w *window) rank(t *task.Task, now time.Time) int64 {
	cfg := w.cfg
	if w.arrival {
		cfg.AgeLevel = 0
	}
	return rankOf(cfg, t, now)
}

// byArrival makes the order that of arrival, or the usual one: by priority,
// tenant's share and level. What waits is put into the new order, O(n log n).
func (w *window) byArrival(yes bool) {
	if w.arrival == yes {
		return
	}
	w.arrival = yes
	items := slices.SortedFunc(maps.Values(w.byKey), func(a, b *item) int {
		return cmp.Or(a.since.Compare(b.since), cmp.Compare(a.task.ID, b.task.ID))
	})
	for _, it := range items {
		ready := it.index >= 0
		w.unready(it)
		w.unsettle(it)
		it.rank = w.rank(it.task, it.since)
		w.settle(it)
		if ready {
			w.back(it)
		}
	}
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
		c = &class{key: key, model: t.Model, merged: merged, needs: needs, avoid: avoid, queues: map[*flow]*queue{}}
		w.classes[key] = c
	}
	return c
}

func (w *window) flowOf(t *task.Task) *flow {
	k := flowKey{t.Tenant, bandOf(t.Priority)}
	if w.arrival {
		k = flowKey{} // one line for all
	}
	f := w.flows[k]
	if f == nil {
		weight := w.weights[k.tenant]
		if weight == 0 {
			weight = 1
		}
		f = newFlow(k, weight)
		f.vtime = w.bands[k.band].clock
		w.flows[k] = f
	}
	return f
}

// add takes an item into the window; false if its task is in it already, from
// another record.
func (w *window) add(it *item, now time.Time) bool {
	if old := w.byKey[it.task.Key()]; old != nil {
		if !old.lost() {
			return false
		}
		w.remove(old) // its partition was lost: the new record speaks for the task
	}
	it.rank, it.since, it.wakeAt, it.index = w.rank(it.task, now), now, -1, -1
	w.byKey[it.task.Key()] = it
	w.bySrc[it.source]++
	w.bytes[it.source] += it.size
	w.settle(it)
	if !it.ready.After(now) {
		w.back(it)
	}
	w.wakeAgain(it, now)
	return true
}

// settle finds the class and flow of an item.
func (w *window) settle(it *item) {
	it.class, it.flow = w.classOf(it.task), w.flowOf(it.task)
	it.class.tasks++
	it.flow.tasks++
}

// unsettle is the reverse. Classes and flows without tasks are swept away later:
// at light load they would come and go with each task.
func (w *window) unsettle(it *item) {
	it.class.tasks--
	it.flow.tasks--
}

// wakeAt is when the item needs to be looked at: when it becomes ready, or its
// deadline passes; zero: never.
func (it *item) wakeTime(now time.Time) time.Time {
	if it.ready.After(now) && (it.task.Deadline.IsZero() || it.ready.Before(it.task.Deadline)) {
		return it.ready
	}
	return it.task.Deadline
}

func (w *window) wakeAgain(it *item, now time.Time) {
	if it.wakeAt >= 0 {
		w.wakes.remove(it.wakeAt)
	}
	if at := it.wakeTime(now); !at.IsZero() {
		w.wakes.push(&wake{it, at})
	}
}

// remove takes an item out of every heap and index.
func (w *window) remove(it *item) {
	if it.gone {
		return
	}
	it.gone = true
	delete(w.byKey, it.task.Key())
	w.bySrc[it.source]--
	w.bytes[it.source] -= it.size
	w.unready(it)
	if it.wakeAt >= 0 {
		w.wakes.remove(it.wakeAt)
	}
	w.unsettle(it)
}

// unready takes an item out of its queue, but not out of the window: back or
// remove must follow.
func (w *window) unready(it *item) {
	if it.index < 0 {
		return
	}
	q := it.queue
	w.ready--
	it.class.ready--
	first := it.index == 0
	q.ready.remove(it.index)
	switch {
	case q.ready.len() == 0:
		w.leave(q)
	case first:
		w.reorder(q)
	}
}

// back makes an item ready.
func (w *window) back(it *item) {
	if it.index >= 0 || it.gone {
		return
	}
	q := it.class.queues[it.flow]
	if q == nil {
		q = newQueue(it.class, it.flow)
		it.class.queues[it.flow] = q
	}
	it.queue = q
	w.ready++
	it.class.ready++
	q.ready.push(it)
	switch {
	case q.ready.len() == 1 && it.class.unable:
		q.aside, q.out = true, true
	case q.ready.len() == 1:
		w.enter(q)
	case it.index == 0:
		w.reorder(q)
	}
}

// due calls expired with every item whose deadline passed, out of the window
// already; what has become ready is in its queue then.
func (w *window) due(now time.Time, expired func(*item)) {
	for w.wakes.len() > 0 && !w.wakes.first().when.After(now) {
		it := w.wakes.first().item
		if d := it.task.Deadline; !d.IsZero() && !d.After(now) {
			w.remove(it)
			expired(it)
			continue
		}
		w.back(it)
		w.wakeAgain(it, now)
	}
}

// wakeEarly makes the parked tasks ready for which able says that a device can
// run them now.
func (w *window) wakeEarly(now time.Time, able func(*class) bool) {
	var up []*item
	for _, k := range w.wakes.all {
		if it := k.item; it.early && it.index < 0 && !it.task.ReadyAt().After(now) && able(it.class) {
			up = append(up, it)
		}
	}
	for _, it := range up {
		it.early, it.ready = false, it.task.ReadyAt()
		w.back(it)
		w.wakeAgain(it, now)
	}
}

// reprioritize gives a waiting task another priority; false: it is not here. Its
// place in the order changes in O(log n).
func (w *window) reprioritize(r device.Repriority, now time.Time) bool {
	it := w.byKey[r.Key]
	if it == nil {
		return false
	}
	ready := it.index >= 0
	w.unready(it)
	w.unsettle(it)
	r.Apply(it.task)
	it.rank = w.rank(it.task, now)
	w.settle(it)
	if ready {
		w.back(it)
	}
	return true
}

// sweep forgets classes and flows that have had no task since the last sweep
// but one, so that their number is bounded by what came meanwhile.
func (w *window) sweep() {
	for key, c := range w.classes {
		if c.tasks > 0 {
			for f := range c.queues {
				if f.tasks == 0 {
					delete(c.queues, f)
				}
			}
			continue
		}
		delete(w.classes, key)
	}
	for _, b := range w.bands {
		b.level()
	}
	for key, f := range w.flows {
		// Its virtual time is remembered while it is ahead of the clock.
		if f.tasks == 0 && f.vtime <= w.bands[key.band].clock {
			delete(w.flows, key)
		}
	}
	if len(w.flows) > maxFlows {
		for key, f := range w.flows {
			if f.tasks == 0 {
				delete(w.flows, key)
			}
		}
	}
}

// maxFlows bounds the tenants that are remembered for having had more than
// their part.
const maxFlows = 10_000

// next is the time at which due has something to do; zero: nothing waits.
func (w *window) next() time.Time {
	if w.wakes.len() == 0 {
		return time.Time{}
	}
	return w.wakes.first().when
}

func (w *window) len() int { return len(w.byKey) }

// full says that the window holds as many tasks of the topic, or as many bytes,
// as it may.
func (w *window) full(source string, share float64) bool {
	return w.bySrc[source] >= int(math.Ceil(share*float64(w.cfg.WindowCount))) || w.bytes[source] >= int64(share*float64(w.cfg.WindowBytes))
}
