package decide

import "github.com/batchyard/batchyard/task"

// Who goes next. The ready tasks wait in three levels of heaps:
//
//	priority class (high, normal, low)   strict, but each has a guaranteed share
//	  └ flow: a tenant in it             by virtual time: work done so far / weight
//	      └ queue: a demand              by the rank of its first task
//	          └ task                     by rank: time of submission, minus a boost per level
//
// Work is counted in seconds of service, so a tenant pays for a slow model. Across priorities it is
// deficit round robin: a priority with waiting tasks accrues its share of the work that others get,
// and goes first once that amounts to a whole task. Within a priority it is start-time fair queueing.
// A priority or tenant without waiting tasks saves nothing up. (Shreedhar and Varghese 1995; Goyal, Vin
// and Cheng 1996.)

// priorities is the number of task priorities. Here a priority is an index: 0 high, 1 normal, 2 low.
const priorities = 3

func priorityIndex(p task.Priority) int {
	switch p {
	case task.High:
		return 0
	case task.Low:
		return 2
	}
	return 1
}

// priorityClass is all flows of one priority.
type priorityClass struct {
	flows      heapOf[*flow]
	clock      float64       // virtual time of the flow served last
	share      float64       // guaranteed share of the work
	deficit    float64       // seconds of service owed to it; below 0: it got more than its share
	backlogged int           // queues with tasks that some device can run, suspended ones and tasks aside included
	hungry     heapOf[*flow] // with hungry queues: see refill.go
}

// flow is one tenant's tasks of one priority.
type flow struct {
	key        flowKey
	weight     float64
	vtime      float64 // virtual time: seconds of service / weight
	queues     heapOf[*queue]
	at         int // in the heap of its class
	backlogged int // queues with tasks that some device can run, suspended ones and tasks aside included
	tasks      int // in the window, including those that are not ready, and aside
	hungry     heapOf[*queue]
	hunger     int // in the heap of the hungry ones of its class; -1: not there
}

type flowKey struct {
	tenant   string
	priority int
}

// queue is the ready tasks of one demand in one flow.
type queue struct {
	demand    *demand
	flow      *flow
	ready     heapOf[*Item]
	at        int  // in the heap of its flow
	suspended bool // not in that heap until the round ends or the fleet changes
	blocked   bool // suspended because no device can serve it: it does not count as backlogged
	counted   bool // as backlogged

	aside   heapOf[*list] // of tasks that the window does not hold, best first
	shelved int           // tasks in these
	coming  int           // tasks that will be added soon
	worst   int64         // the highest rank of a ready task is at most this
	hunger  int           // in the heap of the hungry ones of its flow; -1: not there
}

func newPriorityClass(share float64) *priorityClass {
	c := &priorityClass{share: share}
	c.flows.less = func(a, b *flow) bool { return a.vtime < b.vtime }
	c.flows.at = func(f *flow, i int) { f.at = i }
	c.hungry.less = c.flows.less
	c.hungry.at = func(f *flow, i int) { f.hunger = i }
	return c
}

func newFlow(k flowKey, weight float64) *flow {
	f := &flow{key: k, weight: weight, at: -1, hunger: -1}
	f.queues.less = func(a, b *queue) bool { return a.ready.first().rank < b.ready.first().rank }
	f.queues.at = func(q *queue, i int) { q.at = i }
	f.hungry.less = func(a, b *queue) bool { return a.aside.first().rank < b.aside.first().rank }
	f.hungry.at = func(q *queue, i int) { q.hunger = i }
	return f
}

func newQueue(d *demand, f *flow) *queue {
	q := &queue{demand: d, flow: f, at: -1, hunger: -1}
	q.ready.less = func(a, b *Item) bool { return a.rank < b.rank }
	q.ready.at = func(it *Item, i int) { it.index = i }
	q.aside.less = func(a, b *list) bool { return a.rank < b.rank }
	q.aside.at = func(l *list, i int) { l.at = i }
	return q
}

// classOf is the priority class that a queue belongs to.
func (w *window) classOf(q *queue) *priorityClass { return w.classes[q.flow.key.priority] }

// activate makes a queue that got its first ready task one of those to be served.
func (w *window) activate(q *queue) {
	w.count(q)
	q.suspended = false
	w.schedule(q)
}

// deactivate is the reverse, for a queue without ready tasks.
func (w *window) deactivate(q *queue) {
	w.unschedule(q)
	q.suspended = q.blocked
	w.finishQueue(q)
}

// count makes a queue that has tasks count as backlogged, unless no device can run them.
func (w *window) count(q *queue) {
	if q.counted || q.blocked {
		return
	}
	if q.demand.unservable {
		q.suspended, q.blocked = true, true
		return
	}
	f, c := q.flow, w.classOf(q)
	if f.backlogged == 0 { // it was idle, and saved nothing up
		f.vtime = max(f.vtime, c.now())
	}
	f.backlogged++
	c.backlogged++
	q.counted = true
}

// finishQueue ends that a queue counts, once it has no tasks left here, aside or on their way.
func (w *window) finishQueue(q *queue) {
	if q.ready.len()+q.shelved+q.coming > 0 {
		return
	}
	q.suspended, q.blocked = false, false
	w.uncount(q)
}

// uncount ends that a queue counts as backlogged.
func (w *window) uncount(q *queue) {
	if !q.counted {
		return
	}
	q.counted = false
	q.flow.backlogged--
	c := w.classOf(q)
	if c.backlogged--; c.backlogged == 0 {
		c.deficit = min(c.deficit, 0)
	}
}

// schedule puts a queue into the heap of its flow, and the flow into that of its class.
func (w *window) schedule(q *queue) {
	if q.at >= 0 || q.ready.len() == 0 {
		return
	}
	f := q.flow
	f.queues.push(q)
	if f.at < 0 {
		w.classOf(q).flows.push(f)
	}
}

// unschedule takes a queue out of the heap of its flow, and the flow out of that of its class if the
// queue was the last.
func (w *window) unschedule(q *queue) {
	if q.at < 0 {
		return
	}
	f := q.flow
	f.queues.remove(q.at)
	if f.queues.len() == 0 {
		w.classOf(q).flows.remove(f.at)
	}
}

// suspend takes a queue out of the order until resume. It still counts as backlogged.
func (w *window) suspend(q *queue) {
	w.unschedule(q)
	q.suspended = true
}

// block suspends a queue whose tasks no device can run. It does not count as backlogged, so that its
// flow and priority save nothing up while it waits.
func (w *window) block(q *queue) {
	w.suspend(q)
	w.uncount(q)
	q.blocked = true
}

// resume is the reverse of suspend and block.
func (w *window) resume(q *queue) {
	q.suspended, q.blocked = false, false
	w.count(q)
	w.schedule(q)
	w.touch(q)
}

// reorder updates the place of a queue whose first task has changed.
func (w *window) reorder(q *queue) {
	if q.at >= 0 {
		q.flow.queues.fix(q.at)
	}
}

// now is the virtual time of the class: that of the flow served next. The flow served last may be
// far ahead of it, on devices that only it uses.
func (c *priorityClass) now() float64 {
	now := c.clock
	if c.flows.len() > 0 {
		now = min(now, c.flows.first().vtime)
	}
	if c.hungry.len() > 0 {
		now = min(now, c.hungry.first().vtime)
	}
	return now
}

// maxLead bounds how far one flow may be ahead of the others, in seconds of service. Tenants of
// different models use different devices, so their virtual times drift apart; when they meet on the
// same devices, the one ahead must not wait until the others have caught up.
const maxLead = 30.0

// limitLead moves back the flows that are ahead by more than maxLead. Their order stays the same.
func (c *priorityClass) limitLead() {
	if c.flows.len() == 0 {
		return
	}
	most := min(c.flows.first().vtime, c.now()) + maxLead
	c.clock = min(c.clock, most)
	for _, flows := range [][]*flow{c.flows.all, c.hungry.all} {
		for _, f := range flows {
			f.vtime = min(f.vtime, most)
		}
	}
}

// entitlement is why a queue is next.
type entitlement uint8

const (
	byPriority entitlement = iota
	byShare                // its priority's guaranteed share owes it the turn, before higher priorities
)

// nextQueue is the queue whose turn it is; nil when all are suspended.
func (w *window) nextQueue() (*queue, entitlement) {
	first := -1
	for i, c := range w.classes {
		if c.flows.len() > 0 {
			first = i
			break
		}
	}
	if first < 0 {
		return nil, byPriority
	}
	for i := priorities - 1; i > first; i-- {
		c := w.classes[i]
		if c.deficit <= 0 || c.flows.len() == 0 {
			continue
		}
		if q := c.flows.first().queues.first(); w.owesTask(i, q.demand) {
			return q, byShare
		}
	}
	return w.classes[first].flows.first().queues.first(), byPriority
}

// maxDeficit bounds how long a priority may go first without a break, in seconds of service: its
// share is a mean, not a claim on the past.
const maxDeficit = 2.0

// charge is what one pick was counted as, so that it can be refunded.
type charge struct {
	seconds  float64
	deficits [priorities]float64 // change of each priority's deficit
}

// charge counts a task of the queue's demand as served. Work that a priority gets while no higher one
// has waiting tasks is not held against its share, unless the share is why it got it.
func (w *window) charge(q *queue, seconds float64, why entitlement) charge {
	own, contended := q.flow.key.priority, why == byShare
	for _, c := range w.classes[:own] {
		contended = contended || c.backlogged > 0
	}
	ch := charge{seconds: seconds}
	for i, c := range w.classes {
		before := c.deficit
		if i > 0 && c.backlogged > 0 && (i != own || contended) {
			c.deficit = min(c.deficit+c.share*seconds, maxDeficit)
		}
		if i == own && contended {
			c.deficit = max(c.deficit-seconds, -maxDeficit)
		}
		ch.deficits[i] = c.deficit - before
	}
	if w.typical == 0 {
		w.typical = seconds
	}
	w.typical += (seconds - w.typical) / 16
	c, f := w.classes[own], q.flow
	c.clock = max(c.clock, f.vtime)
	w.advance(f, seconds)
	return ch
}

// refund takes back a charge: the task got no credit. Other tasks may have come and gone since, and
// deficits stop at their bound, so exactly what was counted is taken back.
func (w *window) refund(q *queue, ch charge) {
	for i, c := range w.classes {
		c.deficit = min(max(c.deficit-ch.deficits[i], -maxDeficit), maxDeficit)
	}
	w.advance(q.flow, -ch.seconds)
}

func (w *window) advance(f *flow, seconds float64) {
	f.vtime += seconds / f.weight
	if f.at >= 0 {
		w.classes[f.key.priority].flows.fix(f.at)
	}
	if f.hunger >= 0 {
		w.classes[f.key.priority].hungry.fix(f.hunger)
	}
}

// accrue adds the priority's share of work that others got elsewhere.
func (w *window) accrue(priority int, seconds float64) {
	c := w.classes[priority]
	c.deficit = min(c.deficit+c.share*seconds, maxDeficit)
}

// owesTask reports whether the priority's share owes it a whole task of the demand.
func (w *window) owesTask(priority int, d *demand) bool {
	c := w.classes[priority]
	return c.deficit > 0 && c.deficit >= w.costOf(d)
}

// costOf is the seconds of service of one task of the demand; if its candidates are not known yet,
// that of a typical recent task.
func (w *window) costOf(d *demand) float64 {
	if d.snapshot == nil || d.snapshot.cost == 0 {
		return w.typical
	}
	return d.snapshot.cost
}
