package router

import (
	"fmt"
	"strconv"

	"github.com/batchyard/batchyard/task"
)

// Who goes first. The ready tasks wait in three levels of heaps:
//
//	band (high, normal, low)     strict, but each has a guaranteed share
//	  └ flow: a tenant in it     by virtual time: work done so far / weight
//	      └ queue: a class       by the rank of its first task
//	          └ task             by rank: time of submission, levels ahead
//
// Work is counted in seconds of service, so a tenant of a large model pays for
// it. A band that has tasks waiting while others work is owed its share; when that
// is a whole task, it is served first. A band or tenant with nothing
// to do saves nothing up. (Start-time fair queueing: Goyal, Vin, Cheng 1996;
// deficit: Shreedhar, Varghese 1995.)

// bands is the number of priorities.
const bands = 3

// bandOf is the place of a priority among the bands.
func bandOf(p task.Priority) int {
	switch p {
	case task.High:
		return 0
	case task.Low:
		return 2
	}
	return 1
}

// band is one priority.
type band struct {
	flows  heapOf[*flow]
	clock  float64 // virtual time of the flow that was served last
	share  float64 // guaranteed
	debt   float64 // seconds of service that it is owed
	queued int     // queues with ready tasks, those put aside included
}

// flow is a tenant's tasks in one band.
type flow struct {
	key    flowKey
	weight float64
	vtime  float64
	queues heapOf[*queue]
	at     int // in the band's heap
	queued int // queues with ready tasks, those put aside included
	tasks  int // tasks in the window, waiting ones included
}

type flowKey struct {
	tenant string
	band   int
}

// queue is the ready tasks of one class in one flow.
type queue struct {
	class *class
	flow  *flow
	ready heapOf[*item]
	at    int  // in the flow's heap
	aside bool // taken out of the flow's heap until the round ends or the fleet changes
	out   bool // aside because no device can run it: as if it were not there
}

func newBand(share float64) *band {
	b := &band{share: share}
	b.flows.less = func(a, b *flow) bool { return a.vtime < b.vtime }
	b.flows.at = func(f *flow, i int) { f.at = i }
	return b
}

func newFlow(k flowKey, weight float64) *flow {
	f := &flow{key: k, weight: weight, at: -1}
	f.queues.less = func(a, b *queue) bool { return a.ready.first().rank < b.ready.first().rank }
	f.queues.at = func(q *queue, i int) { q.at = i }
	return f
}

func newQueue(c *class, f *flow) *queue {
	q := &queue{class: c, flow: f, at: -1}
	q.ready.less = func(a, b *item) bool { return a.rank < b.rank }
	q.ready.at = func(it *item, i int) { it.index = i }
	return q
}

// enter puts a queue that has got its first ready task among those to be served.
func (w *window) enter(q *queue) {
	f, b := q.flow, w.bands[q.flow.key.band]
	if f.queued == 0 { // it was idle: it saved nothing up
		f.vtime = max(f.vtime, b.now())
	}
	f.queued++
	b.queued++
	q.aside = false
	w.show(q)
}

// now is the virtual time of the band: that of who is served next. Who was served
// last may be far ahead of it, on devices of its own.
func (b *band) now() float64 {
	if b.flows.len() > 0 {
		return min(b.clock, b.flows.first().vtime)
	}
	return b.clock
}

// maxLead bounds, in seconds of service, how far ahead of the others a flow may be:
// tenants of other models have other devices, and more or fewer of them, so that
// their virtual times part; who meets the others later must not wait for that.
const maxLead = 30.0

// level brings back who is ahead of the others by more than maxLead. The order of
// the heap stays: nobody passes another.
func (b *band) level() {
	if b.flows.len() == 0 {
		return
	}
	most := b.flows.first().vtime + maxLead
	b.clock = min(b.clock, most)
	for _, f := range b.flows.all {
		f.vtime = min(f.vtime, most)
	}
}

// leave takes a queue without ready tasks out.
func (w *window) leave(q *queue) {
	w.hide(q)
	q.aside = false
	if q.out { // it left before
		q.out = false
		return
	}
	w.less(q)
}

// less says that a queue is none of those to be served any more.
func (w *window) less(q *queue) {
	q.flow.queued--
	b := w.bands[q.flow.key.band]
	if b.queued--; b.queued == 0 {
		b.debt = min(b.debt, 0)
	}
}

// show puts a queue into its flow's heap, and the flow into its band's.
func (w *window) show(q *queue) {
	if q.at >= 0 {
		return
	}
	f := q.flow
	f.queues.push(q)
	if f.at < 0 {
		w.bands[f.key.band].flows.push(f)
	}
}

// hide takes a queue out of its flow's heap, and the flow out of its band's when
// it was the last.
func (w *window) hide(q *queue) {
	if q.at < 0 {
		return
	}
	f := q.flow
	f.queues.remove(q.at)
	if f.queues.len() == 0 {
		w.bands[f.key.band].flows.remove(f.at)
	}
}

// putAside takes a queue out of the order until it is shown again; its band and
// flow still have something to do.
func (w *window) putAside(q *queue) {
	w.hide(q)
	q.aside = true
}

// putOut takes out a queue whose tasks no device can run. Its band and flow have
// nothing to do on its account: they must not save anything up by it.
func (w *window) putOut(q *queue) {
	w.putAside(q)
	w.less(q)
	q.out = true
}

// bring is the reverse of putAside and putOut.
func (w *window) bring(q *queue) {
	q.aside = false
	if q.out {
		q.out = false
		w.enter(q)
		return
	}
	w.show(q)
}

// reorder tells the heaps that the first task of a queue is another.
func (w *window) reorder(q *queue) {
	if q.at >= 0 {
		q.flow.queues.fix(q.at)
	}
}

// nextQueue is whose turn it is; nil when all is put aside. turn says that it is
// the band's turn by its guaranteed share, before higher bands.
func (w *window) nextQueue() (q *queue, turn bool) {
	first := -1
	for i, b := range w.bands {
		if b.flows.len() > 0 {
			first = i
			break
		}
	}
	if first < 0 {
		return nil, false
	}
	for i := bands - 1; i > first; i-- {
		b := w.bands[i]
		if b.debt <= 0 || b.flows.len() == 0 {
			continue
		}
		if q := b.flows.first().queues.first(); w.owed(i, q.class) {
			return q, true
		}
	}
	return w.bands[first].flows.first().queues.first(), false
}

// maxDebt bounds how long a band may be served first without a pause, in seconds
// of service: its share is a mean, not a claim on the past.
const maxDebt = 2.0

// charge is what a pick was counted as, so that it can be taken back.
type charge struct {
	seconds float64
	debts   [bands]float64 // what each band's debt was changed by
}

// served counts work for a task of the queue's class. What a band gets while no
// higher one has anything to do is not held against its share, unless it was owed
// to it (turn).
func (w *window) served(q *queue, seconds float64, turn bool) charge {
	own, pressed := q.flow.key.band, turn
	for _, b := range w.bands[:own] {
		pressed = pressed || b.queued > 0
	}
	c := charge{seconds: seconds}
	for i, b := range w.bands {
		before := b.debt
		if i > 0 && b.queued > 0 && (i != own || pressed) {
			b.debt = min(b.debt+b.share*seconds, maxDebt)
		}
		if i == own && pressed {
			b.debt = max(b.debt-seconds, -maxDebt)
		}
		c.debts[i] = b.debt - before
	}
	if w.typical == 0 {
		w.typical = seconds
	}
	w.typical += (seconds - w.typical) / 16
	b, f := w.bands[own], q.flow
	b.clock = max(b.clock, f.vtime)
	w.advance(f, seconds)
	return c
}

// unserved takes back what served counted: the task got no credit. Others may have
// come and gone since, and debts stop at their bound: only what was counted is
// taken back.
func (w *window) unserved(q *queue, c charge) {
	for i, b := range w.bands {
		b.debt = min(max(b.debt-c.debts[i], -maxDebt), maxDebt)
	}
	w.advance(q.flow, -c.seconds)
}

func (w *window) advance(f *flow, seconds float64) {
	f.vtime += seconds / f.weight
	if f.at >= 0 {
		w.bands[f.key.band].flows.fix(f.at)
	}
}

// owe counts what others were given of the band's share meanwhile.
func (w *window) owe(band int, seconds float64) {
	b := w.bands[band]
	b.debt = min(b.debt+b.share*seconds, maxDebt)
}

// owed says that a whole task of the class is owed to its band.
func (w *window) owed(band int, c *class) bool {
	b := w.bands[band]
	return b.debt > 0 && b.debt >= w.costOf(c)
}

// costOf is the seconds of service of one task of the class; of one that was not
// looked at yet it is what tasks took lately.
func (w *window) costOf(c *class) float64 {
	if c.field == nil || c.field.cost == 0 {
		return w.typical
	}
	return c.field.cost
}

// weightsOf reads weights by name from the configuration.
func weightsOf(field string, texts map[string]string) (map[string]float64, error) {
	out := make(map[string]float64, len(texts))
	for name, text := range texts {
		v, err := strconv.ParseFloat(text, 64)
		if err != nil || !(v > 0) || v > 1e6 {
			return nil, fmt.Errorf("%s: the weight %q of %s is no number above 0, up to 1000000; write one such as 2 or 0.5", field, text, name)
		}
		out[name] = v
	}
	return out, nil
}
