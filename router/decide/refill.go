package decide

import (
	"cmp"
	"slices"
	"time"
)

// Tasks that were set aside come back in the order in which they would be served: a queue that runs out
// of tasks in the window is hungry, and the hungry queue of the flow with the lowest virtual time is
// filled first. A queue with a better task aside than its worst in the window is hungry, too.

const (
	refillInterval = 2 * time.Millisecond  // least time between two looks at the hungry queues
	roomInterval   = 20 * time.Millisecond // least time between two looks through a full window
	maxVisits      = 512                   // hungry queues that are looked at, at a time
	maxEvicted     = 512                   // tasks that are set aside to make room, at a time
	maxUnfed       = 16                    // queues that find no room before the search ends
	maxResorted    = 1024                  // tasks that are read again because their time has come, at a time
)

// hungers reports whether more tasks of a queue should be read again.
func (w *window) hungers(q *queue) bool {
	if q.aside.len() == 0 || q.blocked {
		return false
	}
	quota := w.quota(q)
	return q.ready.len()+q.coming < max(1, quota/2) || q.aside.first().rank < q.worst && q.coming < max(1, quota/4)
}

// touch puts a queue among the hungry ones if it is, or takes it out.
func (w *window) touch(q *queue) {
	f, c := q.flow, w.classOf(q)
	switch hungry := w.hungers(q); {
	case hungry && q.hunger >= 0:
		f.hungry.fix(q.hunger)
	case hungry:
		if f.hungry.push(q); f.hunger < 0 {
			c.hungry.push(f)
		}
	case q.hunger >= 0:
		w.sate(q)
	}
}

// sate takes a queue out of the hungry ones.
func (w *window) sate(q *queue) {
	if q.hunger < 0 {
		return
	}
	f := q.flow
	if f.hungry.remove(q.hunger); f.hungry.len() == 0 {
		w.classOf(q).hungry.remove(f.hunger)
	}
}

// refill recalls tasks that were set aside.
func (d *Decider) refill(now time.Time) {
	w := d.window
	d.lookAt = time.Time{}
	for _, s := range w.sources {
		if over := s.tasks - w.maxTasks(); over > 0 || s.bytes > w.maxBytes() {
			d.makeRoom(s, max(1, over), nil, now)
		}
	}
	if len(w.lists) == 0 {
		return
	}
	if now.Before(d.refillAt) {
		d.lookAgain(d.refillAt)
		return
	}
	d.refillAt = now.Add(refillInterval)
	d.recallDue(now)
	d.recallForIdle(now)
	for _, c := range w.classes {
		d.feed(c, now)
	}
	d.flushRecalls()
}

// lookAgain notes that refill has something to do at a time.
func (d *Decider) lookAgain(at time.Time) {
	if d.lookAt.IsZero() || at.Before(d.lookAt) {
		d.lookAt = at
	}
}

// recallDue reads again the tasks whose time or deadline has come, to be sorted.
func (d *Decider) recallDue(now time.Time) {
	w := d.window
	n := 0
	for ; n < maxResorted && w.times.len() > 0 && w.times.first().wait <= now.Add(leadTime).Unix(); n++ {
		d.recallToSort(w.times.first())
	}
	for ; n < maxResorted && w.expiries.len() > 0 && w.expiries.first().head.deadline <= now.UnixMilli(); n++ {
		if !w.hasRoom(w.source(w.expiries.first().source), 1) {
			break // they leave the window at once, but they have to pass through it
		}
		d.recallToSort(w.expiries.first())
	}
}

// recallForIdle recalls tasks for devices that have credits and nothing in the window that they could run.
func (d *Decider) recallForIdle(now time.Time) {
	var idle []*demand
	for dm := range d.window.shelvedDemands {
		if !dm.unservable && dm.ready+dm.coming == 0 && d.freeCredits(dm, now) > 0 {
			idle = append(idle, dm)
		}
	}
	slices.SortFunc(idle, func(a, b *demand) int { return cmp.Compare(a.key, b.key) })
	for _, dm := range idle {
		if q := dm.nextShelved(); q != nil {
			d.recallFrom(q, min(d.freeCredits(dm, now), d.window.quota(q)), now)
		}
	}
}

// freeCredits is how many tasks of a demand could be assigned now.
func (d *Decider) freeCredits(dm *demand, now time.Time) (free int) {
	for _, s := range d.view.snapshotOf(dm, now, d.rng).devices {
		free += max(0, s.pool(dm).Free())
	}
	return free
}

// nextShelved is the queue of the demand that would be served first among those with tasks aside.
func (dm *demand) nextShelved() (next *queue) {
	for _, q := range dm.queues {
		if q.aside.len() == 0 {
			continue
		}
		if next == nil || cmp.Or(cmp.Compare(q.flow.key.priority, next.flow.key.priority), cmp.Compare(q.flow.vtime, next.flow.vtime), cmp.Compare(q.flow.key.tenant, next.flow.key.tenant)) < 0 {
			next = q
		}
	}
	return next
}

// feed recalls tasks of the hungry queues of a priority. Those for which there is no room stay hungry:
// room comes when tasks leave the window, and then feed runs again.
func (d *Decider) feed(c *priorityClass, now time.Time) {
	w := d.window
	var unfed []*queue
	visits := 0
	for ; visits < maxVisits && c.hungry.len() > 0 && len(unfed) < maxUnfed; visits++ {
		q := c.hungry.first().hungry.first()
		if q.demand.unservable || !d.servable(q.demand, now) {
			q.demand.unservable = true
			w.block(q)
		} else if n := d.appetite(q); n > 0 && d.recallFrom(q, n, now) < n {
			unfed = append(unfed, q)
		}
		w.sate(q)
	}
	if visits == maxVisits {
		d.lookAgain(d.refillAt)
	}
	for _, q := range unfed {
		w.touch(q)
	}
}

// appetite is how many tasks of a queue to recall.
func (d *Decider) appetite(q *queue) int {
	quota := d.window.quota(q)
	n := quota - q.ready.len() - q.coming
	if q.aside.len() > 0 && q.aside.first().rank < q.worst {
		q.worst = q.worstRank()
		if q.aside.first().rank < q.worst {
			n = max(n, max(1, quota/4)-q.coming)
		}
	}
	return min(n, q.shelved)
}

// worstRank is the highest rank of the ready tasks.
func (q *queue) worstRank() int64 {
	worst := int64(0)
	for i, it := range q.ready.all {
		if i == 0 || it.rank > worst {
			worst = it.rank
		}
	}
	return worst
}

// recallFrom recalls tasks of a queue, best first, as long as there is room for them, and returns how many.
func (d *Decider) recallFrom(q *queue, n int, now time.Time) (got int) {
	w := d.window
	for ; got < n && q.aside.len() > 0; got++ {
		l := q.aside.first()
		if s := w.source(l.source); !w.hasRoom(s, 1) && !d.makeRoom(s, n-got, q, now) {
			return got
		}
		d.recall(l)
	}
	return got
}

// recall asks for the first task of a list, for which there is room in the window.
func (d *Decider) recall(l *list) {
	q := l.queue
	at, c := d.want(l)
	c.queue = q
	d.window.expect(at, c)
	if q != nil {
		d.window.finishQueue(q)
	}
}

// recallToSort asks for the first task of a list, which is sorted when it comes and needs no room now.
func (d *Decider) recallToSort(l *list) {
	q := l.queue
	at, c := d.want(l)
	c.sort = true
	d.window.expect(at, c)
	if q != nil {
		d.window.finishQueue(q)
	}
}

// want takes the first task out of a list, to be read again.
func (d *Decider) want(l *list) (place, coming) {
	owner, source := l.owner, l.source
	e := d.window.takeHead(l)
	if d.recalls[owner] == nil {
		d.owners = append(d.owners, owner)
	}
	d.recalls[owner] = append(d.recalls[owner], Wanted{Offset: e.offset, Seen: l.seen})
	return place{owner, e.offset}, coming{source: source, size: e.size * sizeUnit}
}

// flushRecalls passes on what was recalled.
func (d *Decider) flushRecalls() {
	for _, o := range d.owners {
		d.effects.Recall(o, d.recalls[o])
		delete(d.recalls, o)
	}
	d.owners = d.owners[:0]
}

// makeRoom sets aside the tasks of a source that are needed least in the window, up to n and a few more;
// false if there are none. For a queue that could be served now while others cannot, it takes theirs.
func (d *Decider) makeRoom(s *source, n int, q *queue, now time.Time) bool {
	if now.Before(s.roomAt) {
		d.lookAgain(s.roomAt)
		return false
	}
	s.roomAt = now.Add(roomInterval)
	out := d.expendable(s.name, q, now)
	for _, it := range out[:min(len(out), max(n, 16), maxEvicted)] {
		d.evict(it, now)
	}
	return len(out) > 0
}

// evict sets a task aside that is in the window.
func (d *Decider) evict(it *Item, now time.Time) {
	d.window.remove(it)
	it.Seen = true
	d.effects.SetAside(it)
	d.window.setAside(it, now)
}

// expendable lists the tasks of a source that the window needs least: those that no device can run, those
// that wait for a time, and those beyond the quota of their queue, last served first. If there are none of
// these, and q has devices with credits, it is those whose devices have none.
func (d *Decider) expendable(source string, q *queue, now time.Time) []*Item {
	var blocked, far, over []*Item
	ready := map[*queue][]*Item{}
	for _, it := range d.window.byKey {
		switch {
		case it.Source != source || it.Owner == nil || len(it.riders) > 0 || it.lost() || !it.settled():
		case it.index < 0 && it.ReadyAt.After(now.Add(nearby)):
			far = append(far, it)
		case it.index >= 0 && it.demand.unservable:
			blocked = append(blocked, it)
		case it.index >= 0:
			ready[it.queue] = append(ready[it.queue], it)
		}
	}
	for owner, items := range ready {
		if quota := d.window.quota(owner); len(items) > quota {
			slices.SortFunc(items, func(a, b *Item) int { return cmp.Compare(a.rank, b.rank) })
			over = append(over, items[quota:]...)
			owner.worst = items[quota-1].rank
		}
	}
	slices.SortFunc(blocked, lastServedFirst)
	slices.SortFunc(far, lastServedFirst)
	slices.SortFunc(over, lastServedFirst)
	out := append(append(blocked, far...), over...)
	if len(out) > 0 || q == nil || q.demand.ready+q.demand.coming > 0 || d.freeCredits(q.demand, now) == 0 {
		return out
	}
	for owner, items := range ready {
		if d.freeCredits(owner.demand, now) == 0 {
			out = append(out, items...)
		}
	}
	slices.SortFunc(out, lastServedFirst)
	return out
}

func lastServedFirst(a, b *Item) int {
	return cmp.Or(
		cmp.Compare(b.flow.key.priority, a.flow.key.priority), cmp.Compare(b.flow.vtime, a.flow.vtime),
		cmp.Compare(b.rank, a.rank), cmp.Compare(a.Task.ID, b.Task.ID))
}

// RecallBefore recalls tasks that were set aside whose offset is below that given for their owner, up to
// so many: their records are old, and have to be written again.
func (d *Decider) RecallBefore(offset func(Owner) int64, most int) {
	limits := map[Owner]int64{}
	for l := range d.window.lists {
		limit, ok := limits[l.owner]
		if !ok {
			limit = offset(l.owner)
			limits[l.owner] = limit
		}
		for ; most > 0 && l.n > 0 && l.head.offset < limit; most-- {
			d.recall(l)
		}
	}
	d.flushRecalls()
}

// RecallAt recalls the task of an owner at an offset, if it was set aside and is the lowest one that was.
func (d *Decider) RecallAt(o Owner, offset int64) {
	for l := range d.window.lists {
		if l.owner == o && l.head.offset == offset {
			d.recall(l)
			d.flushRecalls()
			return
		}
	}
}

// DropLost forgets what was set aside and belongs to another router now.
func (d *Decider) DropLost() { d.window.dropLost() }

// Park writes a task back to the log, because its record must not wait there any longer: it is deleted
// soon, or holds up others.
func (d *Decider) Park(it *Item, reason string, now time.Time) {
	d.window.remove(it)
	d.effects.Park(it, Parking{Reason: reason, Now: now})
}
