package decide

import "time"

// windowShare is the share of Config.MaxPendingTasks and MaxPendingBytes that tasks in the window may use.
// The rest is for records on their way: while there is room for these, the log is read on.
const windowShare = 0.625

// maxTasks and maxBytes bound what the window holds of a source.
func (w *window) maxTasks() int   { return max(1, int(windowShare*float64(w.cfg.MaxPendingTasks))) }
func (w *window) maxBytes() int64 { return max(1, int64(windowShare*float64(w.cfg.MaxPendingBytes))) }

// hasRoom reports whether the window can take another task of a source within a share of its bounds.
func (w *window) hasRoom(s *source, share float64) bool {
	return float64(s.tasks+s.coming) < share*float64(w.maxTasks()) && float64(s.bytes+s.comingBytes) < share*float64(w.maxBytes())
}

// quota is how many tasks of a queue the window holds while there are more than it can hold. As many
// queues of the priority share it as have tasks that some device can run, and one share stays free, so
// that the first tasks of another queue find room at once. (Choudhury and Hahne 1998, dynamic thresholds.)
func (w *window) quota(q *queue) int {
	return max(1, w.maxTasks()/(w.classOf(q).backlogged+1))
}

// Open reports whether tasks of a source may enter the window without being sorted: most of it is free,
// and nothing waits outside but for a time.
func (d *Decider) Open(source string) bool {
	s := d.window.source(source)
	return s.aside == s.waiting && d.window.hasRoom(s, 0.5)
}

// Sort decides which of the items that were read have room in the window; they must be added, and then
// be [Decider.Land]ed. The others are set aside: their records are to be forgotten, and will be recalled.
// False means that there is no room for either; nothing has changed, and they have to be sorted later.
func (d *Decider) Sort(items []*Item, now time.Time) (kept, aside []*Item, ok bool) {
	w := d.window
	for _, it := range items {
		s := w.source(it.Source)
		if _, recalled := w.coming[place{it.Owner, it.Offset}]; !recalled && s.asideBytes >= d.cfg.MaxAsideBytes && !w.hasRoom(s, 1) {
			return nil, nil, false
		}
	}
	for _, it := range items {
		if d.keeps(it, now) {
			kept = append(kept, it)
			continue
		}
		w.land(place{it.Owner, it.Offset})
		w.setAside(it, now)
		aside = append(aside, it)
	}
	return kept, aside, true
}

// keeps reports whether an item enters the window, and makes room for it there.
func (d *Decider) keeps(it *Item, now time.Time) bool {
	w := d.window
	at := place{it.Owner, it.Offset}
	c, recalled := w.coming[at]
	if recalled && !c.sort {
		return true // it has room
	}
	var q *queue
	s := w.source(it.Source)
	switch deadline := it.Task.Deadline; {
	case !deadline.IsZero() && !deadline.After(now): // it leaves at once
	case !w.hasRoom(s, 1):
		return false
	case s.asideBytes >= d.cfg.MaxAsideBytes: // there is room only here
	case it.ReadyAt.After(now.Add(nearby)):
		if !w.hasRoom(s, 0.5) {
			return false
		}
	default:
		q = w.queueOf(it.Task)
		if q.demand.unservable && !w.hasRoom(s, 0.5) {
			return false
		}
		if q.aside.len() > 0 && q.aside.first().rank <= w.rank(it.Task, now) { // others go first
			return false
		}
		if !w.hasRoom(s, 0.5) && q.ready.len()+q.coming >= w.quota(q) {
			return false
		}
	}
	w.expect(at, coming{queue: q, source: it.Source, size: it.Size})
	return true
}

// Land says that a task of an owner, which was sorted in or recalled, has been added, or will not be.
func (d *Decider) Land(o Owner, offset int64) { d.window.land(place{o, offset}) }

// Aside returns how many tasks of a source were set aside, and the memory that this takes.
func (d *Decider) Aside(source string) (tasks int, bytes int64) {
	s := d.window.source(source)
	return s.aside, s.asideBytes
}
