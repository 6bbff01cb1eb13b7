package decide

import (
	"encoding/binary"
	"time"
)

// What the window has no room for is set aside: its memory is freed, and a few bytes say where its record
// is. So a backlog is seen as a whole, however long it is, and whatever fills the window does not hide
// what comes behind it in the log. Tasks that belong to one queue, partition and level are in one list, in
// the order of the log:
//
//	queue: a demand of a tenant ──▶ list: tasks.low/3, level 0    12, 13, 17, …
//	                            └─▶ list: tasks.low/3, level 9    21
//	time: a bucket of not_before ─▶ list: tasks.low/3             14, 15, …
//
// A task takes 3 to 8 bytes, and a list about 400. Both count against Config.MaxAsideBytes.

// Owner is a partition of the log from the moment that this router gained it until it is lost.
type Owner interface {
	// Lost reports whether another router reads it from now on.
	Lost() bool
}

// Wanted is a task that was set aside and should be read again.
type Wanted struct {
	Offset int64
	Seen   bool // it was in the window before
}

// listCost is the memory of a list in bytes, with its share of a queue and a flow that only it needs.
const listCost = 400

// sizeUnit is the precision with which a list notes the size of a task, in bytes.
const sizeUnit = 256

// listKey is what the tasks of a list have in common.
type listKey struct {
	owner    Owner
	source   string
	tenant   string
	priority int
	level    int
	seen     bool
	expires  bool  // they have deadlines
	wait     int64 // when they are looked at again, in Unix seconds; 0: they are ready, and in a queue
}

// list holds tasks that were set aside, in the order of their offsets.
type list struct {
	listKey
	queue   *queue // nil: they wait for a time
	at      int    // in the heap of that queue, or in that of the times
	expiry  int    // in the heap of deadlines; -1: not there
	n       int
	head    entry
	last    entry
	rank    int64  // of the head
	entries []byte // after the head: differences, as variable-length numbers
	read    int    // of entries
}

// entry is a task in a list.
type entry struct {
	offset   int64
	at       int64 // submitted; Unix milliseconds
	size     int64 // in sizeUnit
	deadline int64 // Unix milliseconds
}

func (l *list) cost() int64 { return listCost + int64(cap(l.entries)) }

// add appends a task; its offset must be above the last one's.
func (l *list) add(e entry) {
	if l.n == 0 {
		l.head = e
	} else {
		l.entries = binary.AppendUvarint(l.entries, uint64(e.offset-l.last.offset)) //nolint:gosec // it is positive
		l.entries = binary.AppendVarint(l.entries, e.at-l.last.at)
		l.entries = binary.AppendUvarint(l.entries, uint64(e.size)) //nolint:gosec // it is positive
		if l.expires {
			l.entries = binary.AppendVarint(l.entries, e.deadline-l.last.deadline)
		}
	}
	l.last = e
	l.n++
}

// minCompact is how much of a list must have been read before it is copied to free that.
const minCompact = 1024

// next takes the head out.
func (l *list) next() entry {
	e := l.head
	if l.n--; l.n == 0 {
		return e
	}
	unsigned := func() int64 {
		v, n := binary.Uvarint(l.entries[l.read:])
		l.read += n
		return int64(v) //nolint:gosec // as it was written
	}
	signed := func() int64 {
		v, n := binary.Varint(l.entries[l.read:])
		l.read += n
		return v
	}
	l.head.offset += unsigned()
	l.head.at += signed()
	l.head.size = unsigned()
	if l.expires {
		l.head.deadline += signed()
	}
	if l.read >= minCompact && l.read > len(l.entries)/2 {
		l.entries, l.read = append([]byte(nil), l.entries[l.read:]...), 0
	}
	return e
}

// place is where a record is.
type place struct {
	owner  Owner
	offset int64
}

// coming is a task on its way into the window: it was sorted in, or is read again.
type coming struct {
	queue  *queue // nil: it is not known
	source string
	size   int64
	sort   bool      // it is sorted again when it arrives, and has no room yet
	since  time.Time // when Oldest saw it first; zero: not yet
}

// nearby is how far away the time of a task may be that is treated as ready.
const nearby = 30 * time.Second

// leadTime is how long before their time tasks are read again.
const leadTime = 2 * time.Second

// minBucket is the shortest time whose tasks share a list.
const minBucket = 10 * time.Second

// bucketOf returns the beginning of the bucket for tasks that become ready at a time. A bucket is at most
// a sixteenth of the time until then, so there are few; its tasks are read again when it begins, and
// sorted into finer ones: five times for a task that waits a year.
func bucketOf(ready, now time.Time) int64 {
	width := minBucket
	for ready.Sub(now) > 32*width {
		width *= 2
	}
	seconds := int64(width / time.Second)
	return ready.Unix() / seconds * seconds
}

// setAside remembers where an item is that is not in the window.
func (w *window) setAside(it *Item, now time.Time) {
	key := listKey{owner: it.Owner, source: it.Source, seen: it.Seen, expires: !it.Task.Deadline.IsZero()}
	submitted := it.Task.SubmittedAt
	if submitted.IsZero() || submitted.After(now) {
		submitted = now
	}
	e := entry{offset: it.Offset, at: submitted.UnixMilli(), size: (it.Size + sizeUnit - 1) / sizeUnit}
	if key.expires {
		e.deadline = it.Task.Deadline.UnixMilli()
	}
	var l *list
	if it.ReadyAt.After(now.Add(nearby)) {
		key.wait = bucketOf(it.ReadyAt, now)
		if l = w.waiting[key]; l == nil || l.last.offset >= e.offset {
			l = w.newList(key, nil, e)
			w.waiting[key] = l // an older one of the same key is found by its time only
			w.times.push(l)
		} else {
			w.lengthen(l, e)
		}
		return
	}
	key.tenant, key.priority, key.level = it.Task.Tenant, priorityIndex(it.Task.Priority), it.Task.Level
	q := w.queueOf(it.Task)
	if l = q.openList(key, e.offset); l == nil {
		l = w.newList(key, q, e)
		l.rank = w.rankOf(l)
		q.aside.push(l)
	} else {
		w.lengthen(l, e)
	}
	w.shelve(q, 1)
	w.count(q)
	w.touch(q)
}

// openList returns the list to which a task can be added, or nil.
func (q *queue) openList(key listKey, offset int64) *list {
	for _, l := range q.aside.all {
		if l.last.offset < offset && l.listKey == key {
			return l
		}
	}
	return nil
}

// newList makes a list of one task.
func (w *window) newList(key listKey, q *queue, e entry) *list {
	l := &list{listKey: key, queue: q, at: -1, expiry: -1}
	l.add(e)
	w.lists[l] = struct{}{}
	s := w.source(key.source)
	s.count(l, 1)
	s.asideBytes += l.cost()
	if key.expires {
		w.expiries.push(l)
	}
	return l
}

// lengthen adds a task to a list.
func (w *window) lengthen(l *list, e entry) {
	s := w.source(l.source)
	before := l.cost()
	l.add(e)
	s.count(l, 1)
	s.asideBytes += l.cost() - before
}

// count counts tasks that were put into a list, or no longer are in it.
func (s *source) count(l *list, n int) {
	s.aside += n
	if l.queue == nil {
		s.waiting += n
	}
}

// shelve counts tasks of a queue that are in lists, or no longer are.
func (w *window) shelve(q *queue, n int) {
	q.shelved += n
	q.demand.shelved += n
	q.demand.tasks += n
	q.flow.tasks += n
	if q.demand.shelved > 0 {
		w.shelvedDemands[q.demand] = struct{}{}
	} else {
		delete(w.shelvedDemands, q.demand)
	}
}

// rankOf is the rank of the first task of a list.
func (w *window) rankOf(l *list) int64 {
	at := time.UnixMilli(l.head.at)
	if w.order == byUrgency {
		at = at.Add(-time.Duration(l.level) * w.cfg.LevelBoost)
	}
	return at.UnixNano()
}

// takeHead takes the first task out of a list.
func (w *window) takeHead(l *list) entry {
	s := w.source(l.source)
	before := l.cost()
	e := l.next()
	s.count(l, -1)
	if l.n == 0 {
		s.asideBytes -= before
		w.dropList(l)
	} else {
		s.asideBytes += l.cost() - before
		if l.expiry >= 0 {
			w.expiries.fix(l.expiry)
		}
	}
	if q := l.queue; q != nil {
		if l.n > 0 {
			l.rank = w.rankOf(l)
			q.aside.fix(l.at)
		}
		w.shelve(q, -1)
		w.touch(q)
	}
	return e
}

// dropList takes a list out of every heap and index.
func (w *window) dropList(l *list) {
	delete(w.lists, l)
	if l.expiry >= 0 {
		w.expiries.remove(l.expiry)
	}
	if l.queue != nil {
		l.queue.aside.remove(l.at)
		return
	}
	w.times.remove(l.at)
	if w.waiting[l.listKey] == l {
		delete(w.waiting, l.listKey)
	}
}

// reattach moves the lists to the queues where they belong after the order of tasks has changed.
func (w *window) reattach() {
	for l := range w.lists {
		if l.queue == nil {
			continue
		}
		q := l.queue
		q.aside.remove(l.at)
		w.shelve(q, -l.n)
		w.touch(q)
		w.finishQueue(q)
		l.queue = w.queueFor(q.demand, w.flowFor(l.tenant, l.priority))
		l.rank = w.rankOf(l)
		l.queue.aside.push(l)
		w.shelve(l.queue, l.n)
		w.count(l.queue)
		w.touch(l.queue)
	}
}

// dropLost forgets the tasks that another router reads from now on.
func (w *window) dropLost() {
	for l := range w.lists {
		if !l.owner.Lost() {
			continue
		}
		s := w.source(l.source)
		s.count(l, -l.n)
		s.asideBytes -= l.cost()
		w.dropList(l)
		if q := l.queue; q != nil {
			w.shelve(q, -l.n)
			w.touch(q)
			w.finishQueue(q)
		}
	}
	for at := range w.coming {
		if at.owner.Lost() {
			w.land(at)
		}
	}
}

// expect makes room for a task that comes into the window.
func (w *window) expect(at place, c coming) {
	w.coming[at] = c
	if c.sort {
		return
	}
	s := w.source(c.source)
	s.coming++
	s.comingBytes += c.size
	if c.queue != nil {
		c.queue.coming++
		c.queue.demand.coming++
		w.count(c.queue)
	}
}

// land ends that a task is coming: it has been added to the window, or never will be.
func (w *window) land(at place) {
	c, ok := w.coming[at]
	if !ok {
		return
	}
	delete(w.coming, at)
	if c.sort {
		return
	}
	s := w.source(c.source)
	s.coming--
	s.comingBytes -= c.size
	if q := c.queue; q != nil {
		q.coming--
		q.demand.coming--
		w.touch(q)
		w.finishQueue(q)
	}
}
