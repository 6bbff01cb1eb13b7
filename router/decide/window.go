package decide

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
)

// Origin is where an item came from, such as a record of the log. Only the owner of the decider knows
// more about it.
type Origin interface {
	// Lost reports whether the item is read again, by another router or this one, so that it ends here.
	Lost() bool
	// Settled reports whether what was written when the item came is acknowledged. Before that, its record
	// may have to be read again at any time, so it must not be set aside.
	Settled() bool
}

// Item is a task in the pending window. The owner sets the exported fields before [Decider.Add]; from
// then on they belong to the decider.
type Item struct {
	Task        *task.Task
	Origin      Origin           // nil: it cannot be lost
	Owner       Owner            // of its record; nil: it cannot be set aside
	Offset      int64            // of its record
	Seen        bool             // it was in the window before, and set aside
	Fingerprint task.Fingerprint // of the task
	Source      string           // topic it came from; each has its own part of the window
	Size        int64            // bytes of the window that it uses
	Client      string           // network address of the sender, without the port
	ReadyAt     time.Time
	Parked      bool // it was parked before: its record is a copy in the parked topic

	rank   int64     // order among the ready tasks of its flow
	added  time.Time // to the window
	demand *demand
	flow   *flow
	queue  *queue // where it is while it is ready
	index  int    // in that queue; -1: not ready
	wakeAt int    // in the heap of wake times; -1: not there
	gone   bool
	riders []*Item // other records of the task, done when this one is: see twins.go
}

// Since is when the item began to wait for a device: when it was added or became ready, whichever
// was later.
func (it *Item) Since() time.Time { return latest(it.added, it.ReadyAt) }

// Added is when the item was added to the window.
func (it *Item) Added() time.Time { return it.added }

// WaitsForDevice reports whether a device is all that the task waits for.
func (it *Item) WaitsForDevice() bool { return it.index >= 0 }

// Riders are the other items of the same task that are done when this one is. Once the item has left
// the window they no longer change.
func (it *Item) Riders() []*Item { return it.riders }

func (it *Item) settled() bool { return it.Origin == nil || it.Origin.Settled() }

func (it *Item) lost() bool { return it.Origin != nil && it.Origin.Lost() }

// demand is what tasks need of a device, and all tasks that need the same.
type demand struct {
	key string
	device.Requirement
	batched bool // requests of its endpoint can be batched, so credits are of the batched pool
	queues  map[*flow]*queue
	tasks   int // in the window, including those that are not ready, and aside
	ready   int // in a queue
	shelved int // set aside
	coming  int // on their way into the window

	snapshot   *snapshot // its candidates; nil: not worked out yet
	unservable bool      // no device can run it, as of the last reading of the fleet

	// Of one round.
	round              uint64
	heldThisRound      int  // tasks that wait for a better device
	holdWhileFewerThan int  // while heldThisRound is below this, the policy would hold the next one, too
	exhausted          bool // no more of its tasks can go

	yieldUntil time.Time // until then, priorities from yieldFrom take nothing: a higher one waits elsewhere
	yieldFrom  int

	assigned  uint64    // tasks, ever
	moved     movement  // of assigned
	idleSince time.Time // since when a device has had room for its tasks, as seen by Oldest; zero: none has
}

// beginRound resets what belongs to one round.
func (dm *demand) beginRound(number uint64) {
	if dm.round != number {
		dm.round, dm.heldThisRound, dm.holdWhileFewerThan, dm.exhausted = number, 0, 0, false
	}
}

// window holds the tasks that were read and not assigned yet.
type window struct {
	cfg     Config
	classes [priorities]*priorityClass
	flows   map[flowKey]*flow
	demands map[string]*demand
	byKey   map[task.Key]*Item
	wakes   heapOf[*wake] // by the next time at which something is due
	sources []*source     // few
	ready   int           // tasks that wait for nothing but a device
	order   order         // that the policy wants
	typical float64       // seconds of service of a recent task; 0: none was served

	// What is not in the window: see aside.go.
	lists          map[*list]struct{}
	shelvedDemands map[*demand]struct{}
	waiting        map[listKey]*list // for a time
	times          heapOf[*list]     // the same, by time
	expiries       heapOf[*list]     // lists of tasks with deadlines, by that of the first
	coming         map[place]coming
}

// source is what is known of the tasks of one topic.
type source struct {
	name        string
	tasks       int // in the window
	bytes       int64
	coming      int // on their way into it
	comingBytes int64
	aside       int
	waiting     int       // of these, for a time that is far away
	asideBytes  int64     // of memory that these take
	roomAt      time.Time // no look for room before
}

func (w *window) source(name string) *source {
	for _, s := range w.sources {
		if s.name == name {
			return s
		}
	}
	s := &source{name: name}
	w.sources = append(w.sources, s)
	return s
}

// order is what decides which task goes first.
type order uint8

const (
	byUrgency order = iota // priority, tenant's share, level and time of submission
	byArrival              // the time of submission alone
)

// wake is when an item has to be looked at: it becomes ready, or its deadline passes.
type wake struct {
	item *Item
	when time.Time
}

func newWindow(cfg Config) *window {
	w := &window{
		cfg: cfg, flows: map[flowKey]*flow{}, demands: map[string]*demand{},
		byKey: map[task.Key]*Item{},
		lists: map[*list]struct{}{}, shelvedDemands: map[*demand]struct{}{}, waiting: map[listKey]*list{}, coming: map[place]coming{},
	}
	for i, share := range [priorities]float64{0, cfg.ShareNormal, cfg.ShareLow} {
		w.classes[i] = newPriorityClass(share)
	}
	w.wakes.less = func(a, b *wake) bool { return a.when.Before(b.when) }
	w.wakes.at = func(k *wake, i int) { k.item.wakeAt = i }
	w.times.less = func(a, b *list) bool { return a.wait < b.wait }
	w.times.at = func(l *list, i int) { l.at = i }
	w.expiries.less = func(a, b *list) bool { return a.head.deadline < b.head.deadline }
	w.expiries.at = func(l *list, i int) { l.expiry = i }
	return w
}

// rank orders the tasks of one tenant and priority; a lower rank goes first. It is the time of
// submission, with levels counting as time, so the order does not change while tasks wait (a heap can
// hold it) and no level starves.
func (w *window) rank(t *task.Task, now time.Time) int64 {
	at := t.SubmittedAt
	if at.IsZero() || at.After(now) { // a sender's fast clock must neither help nor hurt it
		at = now
	}
	if w.order == byUrgency {
		at = at.Add(-time.Duration(t.Level) * w.cfg.LevelBoost)
	}
	return at.UnixNano()
}

// setOrder changes the order of the tasks, also of those that wait already, in O(n log n).
func (w *window) setOrder(o order) {
	if w.order == o {
		return
	}
	w.order = o
	for _, it := range slices.SortedFunc(maps.Values(w.byKey), byAge) {
		w.reclassify(it, it.added, func() {})
	}
	w.reattach()
}

// byAge orders items by how long they have been in the window.
func byAge(a, b *Item) int {
	return cmp.Or(a.added.Compare(b.added), cmp.Compare(a.Task.ID, b.Task.ID))
}

// reclassify moves an item to where it belongs after change, whose effect its order depends on.
func (w *window) reclassify(it *Item, now time.Time, change func()) {
	ready := it.index >= 0
	w.dequeue(it)
	w.declassify(it)
	change()
	it.rank = w.rank(it.Task, now)
	w.classify(it)
	if ready {
		w.enqueue(it)
	}
}

func (w *window) demandOf(t *task.Task) *demand {
	batched := task.Batched(t.Endpoint)
	needs, exclude, declined := sorted(t.Needs), []string(nil), []string(nil)
	if t.Progress != nil {
		exclude, declined = sorted(t.Progress.Exclude), sorted(t.DeclinedBy())
	}
	size := device.SizeClass(len(t.Input))
	key := t.Model
	if t.Endpoint != task.EndpointChat || size > 0 || len(needs)+len(exclude)+len(declined) > 0 {
		key = strings.Join([]string{t.Model, t.Endpoint, strconv.Itoa(size), strings.Join(needs, "\x01"), strings.Join(exclude, "\x01"), strings.Join(declined, "\x01")}, "\x00")
	}
	d := w.demands[key]
	if d == nil {
		d = &demand{key: key, Requirement: device.Requirement{Endpoint: t.Endpoint, Model: t.Model, Size: size, Needs: needs, Exclude: exclude, Declined: declined},
			batched: batched, queues: map[*flow]*queue{}}
		w.demands[key] = d
	}
	return d
}

// sorted returns the names in order, and leaves the slice alone.
func sorted(names []string) []string {
	if len(names) > 1 {
		names = slices.Clone(names)
		slices.Sort(names)
	}
	return names
}

func (w *window) flowOf(t *task.Task) *flow { return w.flowFor(t.Tenant, priorityIndex(t.Priority)) }

func (w *window) flowFor(tenant string, priority int) *flow {
	k := flowKey{tenant, priority}
	if w.order == byArrival {
		k = flowKey{} // one line for all
	}
	f := w.flows[k]
	if f == nil {
		weight := w.cfg.TenantWeights[k.tenant]
		if weight == 0 {
			weight = 1
		}
		f = newFlow(k, weight)
		f.vtime = w.classes[k.priority].clock
		w.flows[k] = f
	}
	return f
}

// queueOf is the queue that a task is in when it is ready.
func (w *window) queueOf(t *task.Task) *queue { return w.queueFor(w.demandOf(t), w.flowOf(t)) }

func (w *window) queueFor(dm *demand, f *flow) *queue {
	q := dm.queues[f]
	if q == nil {
		q = newQueue(dm, f)
		dm.queues[f] = q
	}
	return q
}

// add takes an item into the window; false if its task is there already, from another record.
func (w *window) add(it *Item, now time.Time) bool {
	if old := w.byKey[it.Task.Key()]; old != nil {
		if !old.lost() {
			return false
		}
		w.remove(old)
	}
	it.rank, it.added, it.wakeAt, it.index, it.gone = w.rank(it.Task, now), now, -1, -1, false
	w.byKey[it.Task.Key()] = it
	s := w.source(it.Source)
	s.tasks++
	s.bytes += it.Size
	w.classify(it)
	if !it.ReadyAt.After(now) {
		w.enqueue(it)
	}
	w.setWake(it, now)
	return true
}

// classify finds the demand and flow of an item.
func (w *window) classify(it *Item) {
	it.demand, it.flow = w.demandOf(it.Task), w.flowOf(it.Task)
	it.demand.tasks++
	it.flow.tasks++
}

// declassify is the reverse. Empty demands and flows are swept later: at light load they would come
// and go with each task.
func (w *window) declassify(it *Item) {
	it.demand.tasks--
	it.flow.tasks--
}

// wakeTime is when the item has to be looked at: when it becomes ready, or its deadline passes; zero:
// never.
func (it *Item) wakeTime(now time.Time) time.Time {
	if it.ReadyAt.After(now) && (it.Task.Deadline.IsZero() || it.ReadyAt.Before(it.Task.Deadline)) {
		return it.ReadyAt
	}
	return it.Task.Deadline
}

func (w *window) setWake(it *Item, now time.Time) {
	if it.wakeAt >= 0 {
		w.wakes.remove(it.wakeAt)
	}
	if at := it.wakeTime(now); !at.IsZero() {
		w.wakes.push(&wake{it, at})
	}
}

// remove takes an item out of every heap and index.
func (w *window) remove(it *Item) {
	if it.gone {
		return
	}
	it.gone = true
	delete(w.byKey, it.Task.Key())
	s := w.source(it.Source)
	s.tasks--
	s.bytes -= it.Size
	w.dequeue(it)
	if it.wakeAt >= 0 {
		w.wakes.remove(it.wakeAt)
	}
	w.declassify(it)
}

// dequeue takes an item out of its queue, but not out of the window: enqueue or remove must follow.
func (w *window) dequeue(it *Item) {
	if it.index < 0 {
		return
	}
	q := it.queue
	w.ready--
	it.demand.ready--
	first := it.index == 0
	q.ready.remove(it.index)
	switch {
	case q.ready.len() == 0:
		w.deactivate(q)
	case first:
		w.reorder(q)
	}
	if q.shelved > 0 {
		w.touch(q)
	}
}

// enqueue makes an item ready.
func (w *window) enqueue(it *Item) {
	if it.index >= 0 || it.gone {
		return
	}
	q := w.queueFor(it.demand, it.flow)
	it.queue = q
	w.ready++
	it.demand.ready++
	q.ready.push(it)
	if q.worst = max(q.worst, it.rank); q.ready.len() == 1 {
		q.worst = it.rank
	}
	switch {
	case q.ready.len() == 1 && it.demand.unservable:
		w.block(q)
	case q.ready.len() == 1:
		w.activate(q)
	case it.index == 0:
		w.reorder(q)
	}
}

// due makes ready what has become so, and calls expired with every item whose deadline has passed;
// it has left the window by then.
func (w *window) due(now time.Time, expired func(*Item)) {
	for w.wakes.len() > 0 && !w.wakes.first().when.After(now) {
		it := w.wakes.first().item
		if d := it.Task.Deadline; !d.IsZero() && !d.After(now) {
			w.remove(it)
			expired(it)
			continue
		}
		w.enqueue(it)
		w.setWake(it, now)
	}
}

// reprioritize changes a waiting task's priority or level in O(log n); false if it is not here.
func (w *window) reprioritize(r device.PriorityChange, now time.Time) bool {
	it := w.byKey[r.Key]
	if it == nil {
		return false
	}
	w.reclassify(it, now, func() { r.Apply(it.Task) })
	return true
}

// maxFlows bounds the idle tenants that are remembered for having had more than their share.
const maxFlows = 10_000

// sweep forgets demands and flows without tasks, so that their number is bounded by what came since
// the last sweep.
func (w *window) sweep() {
	for key, d := range w.demands {
		if d.tasks+d.coming > 0 {
			for f, q := range d.queues {
				if f.tasks == 0 && q.coming == 0 {
					delete(d.queues, f)
				}
			}
			continue
		}
		delete(w.demands, key)
	}
	for _, c := range w.classes {
		c.limitLead()
	}
	for key, f := range w.flows {
		// A virtual time ahead of the clock is remembered.
		if f.tasks+f.backlogged == 0 && f.vtime <= w.classes[key.priority].clock {
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

// next is when something is due; zero: never.
func (w *window) next() time.Time {
	var at time.Time
	earlier := func(other time.Time) {
		if at.IsZero() || other.Before(at) {
			at = other
		}
	}
	if w.wakes.len() > 0 {
		earlier(w.wakes.first().when)
	}
	if w.times.len() > 0 {
		earlier(time.Unix(w.times.first().wait, 0).Add(-leadTime))
	}
	if w.expiries.len() > 0 {
		earlier(time.UnixMilli(w.expiries.first().head.deadline))
	}
	return at
}

func (w *window) len() int { return len(w.byKey) }

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
