package decide

import (
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/waiting"
)

// Report is what waits here, and where the records are that were asked for.
type Report struct {
	waiting.List
	Known map[Owner]map[int64]bool // the records that were asked for, and are here
}

// Question is what [Decider.Oldest] is asked.
type Question struct {
	Now      time.Time                 // as for Step
	At       time.Time                 // the same moment by the monotonic clock, which is never set
	Lowest   map[Owner]int64           // the lowest record of each owner that is not finished: is it here?
	Position func(Owner, int64) string // the words for a record
	Allow    time.Duration             // how long credits may be in use without moving
}

// Oldest reports what has waited longest here, for each reason. It looks at everything in the window, so it is called
// about once a second. What has not moved since it was called last is judged by Question.At.
func (d *Decider) Oldest(q Question) Report {
	o := &observation{Question: q, d: d, demands: map[*demand]waiting.Oldest{}, report: Report{Known: map[Owner]map[int64]bool{}}}
	for _, pl := range d.view.pools {
		pl.moved.look(q.At, uint64(pl.Used), pl.Last, pl.freed) //nolint:gosec // a count
	}
	for _, it := range d.window.byKey {
		if !it.lost() {
			o.item(it)
		}
	}
	for l := range d.window.lists {
		if !l.owner.Lost() {
			o.list(l)
		}
	}
	for at, c := range d.window.coming {
		if c.since.IsZero() {
			c.since = q.At
			d.window.coming[at] = c
		}
		o.found(at.owner, at.offset)
		if !at.owner.Lost() {
			o.add(waiting.Oldest{Reason: waiting.Kafka, Since: c.since, Still: c.since, Cause: "it is read again"}, at.owner, at.offset)
		}
	}
	if !o.overdue {
		d.overdue = time.Time{}
	}
	return o.report
}

// observation is one call of Oldest.
type observation struct {
	Question
	d       *Decider
	demands map[*demand]waiting.Oldest // why the tasks of a demand wait
	overdue bool                       // there is a task whose time has come, and that is not ready
	report  Report
}

// since is when something began that began at a time of Now.
func (o *observation) since(at time.Time) time.Time { return o.At.Add(-max(0, o.Now.Sub(at))) }

// found notes that a record is here, if it was asked for.
func (o *observation) found(owner Owner, offset int64) {
	if lowest, ok := o.Lowest[owner]; !ok || lowest != offset {
		return
	}
	if o.report.Known[owner] == nil {
		o.report.Known[owner] = map[int64]bool{}
	}
	o.report.Known[owner][offset] = true
}

// add reports something; the text for it is made only if it is needed.
func (o *observation) add(w waiting.Oldest, owner Owner, offset int64) {
	if o.report.Needs(&w) {
		w.What = o.Position(owner, offset)
		o.report.Add(w)
	}
}

func (o *observation) item(it *Item) {
	o.found(it.Owner, it.Offset)
	for _, r := range it.riders {
		o.found(r.Owner, r.Offset)
	}
	since := o.since(it.Since())
	switch {
	case it.index >= 0:
		w := o.why(it.demand)
		w.Since = since
		if !w.Still.IsZero() {
			w.Still = latest(w.Still, since)
		}
		o.add(w, it.Owner, it.Offset)
	case it.ReadyAt.After(o.Now):
		o.add(waiting.Oldest{Reason: waiting.Later, Since: o.since(it.added)}, it.Owner, it.Offset)
	default:
		o.late(since, it.Owner, it.Offset)
	}
}

// late reports a task whose time has come, and that is not ready. Usually it is within moments.
func (o *observation) late(since time.Time, owner Owner, offset int64) {
	o.overdue = true
	if o.d.overdue.IsZero() {
		o.d.overdue = o.At
	}
	o.add(waiting.Oldest{Reason: waiting.Stuck, Since: since, Still: o.d.overdue, Cause: "its time has come"}, owner, offset)
}

// list reports the first task of a list: the others are younger, or wait behind it.
func (o *observation) list(l *list) {
	o.found(l.owner, l.head.offset)
	since := o.since(time.UnixMilli(l.head.at))
	switch {
	case l.queue != nil:
		w := o.why(l.queue.demand)
		w.Since = since
		o.add(w, l.owner, l.head.offset)
	case time.Unix(l.wait, 0).After(o.Now):
		o.add(waiting.Oldest{Reason: waiting.Later, Since: since}, l.owner, l.head.offset)
	default:
		o.late(since, l.owner, l.head.offset)
	}
}

// why says what the ready tasks of a demand wait for, those that were set aside included.
func (o *observation) why(dm *demand) waiting.Oldest {
	w, ok := o.demands[dm]
	if !ok {
		w = o.judge(dm)
		o.demands[dm] = w
	}
	return w
}

func (o *observation) judge(dm *demand) waiting.Oldest {
	snap := o.d.view.snapshotOf(dm, o.Now, o.d.rng)
	if len(snap.devices) == 0 {
		dm.idleSince = time.Time{}
		return waiting.Oldest{Reason: snap.unable()}
	}
	assigned := dm.moved.look(o.At, dm.assigned)
	free, moved := false, dm.moved.at
	for _, s := range snap.devices {
		pl := s.pool(dm)
		free = free || pl.Free() > 0
		moved = latest(moved, pl.moved.at)
	}
	switch {
	case !free:
		dm.idleSince = time.Time{}
	case dm.idleSince.IsZero() || assigned:
		dm.idleSince = o.At
	case o.At.Sub(dm.idleSince) >= idleGrace:
		return waiting.Oldest{Reason: waiting.Stuck, Still: dm.idleSince, Cause: "a device has room for it"}
	}
	return waiting.Oldest{Reason: waiting.Busy, Still: moved, Allow: o.Allow}
}

// idleGrace is how long a device may have room for tasks of a demand that wait before that is worth reporting. Between two
// rounds, or while a faster device is worth the wait, it is usual.
const idleGrace = 10 * time.Second

// movement is when figures that change with each movement were seen to change last.
type movement struct {
	seen [3]uint64
	at   time.Time
}

// look takes the figures as they are now, and reports whether they have changed since the last look.
func (m *movement) look(at time.Time, figures ...uint64) (changed bool) {
	var seen [3]uint64
	copy(seen[:], figures)
	if changed = m.at.IsZero() || seen != m.seen; changed {
		m.seen, m.at = seen, at
	}
	return changed
}

// unable says why no device can run tasks of the demand: what is wrong with the device that has least wrong with it.
func (f *snapshot) unable() waiting.Reason {
	nearest := device.ModelNotServed
	for why, n := range f.excluded {
		if n > 0 {
			nearest = max(nearest, device.Reason(why))
		}
	}
	return nearest.Waiting()
}
