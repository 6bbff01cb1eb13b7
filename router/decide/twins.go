package decide

import "time"

// Two records of one task can meet in a window although each holds the claim: Redis was emptied
// between them, or one was written when the task was requeued, and the other, read again after a router
// died, is from before that. One of them continues, and its twin rides along:
//
//	record A ─▶ window ─▶ assigned ─▶ acknowledged ─▶ A is done
//	record B ─▶ rides with A ──────────────────────▶ B is done
//
// The one that was requeued more often continues. If it were dropped instead, its claim would outlive
// it, and the record that the other is requeued as would be taken for a duplicate, and lost. The twin is
// not done until the one that continues has arrived where it goes: Redis may hold the claim of either,
// so if the router dies, only one of the two is accepted by the next, and it is not known which.

// Only the window is searched. What was set aside is known by its place in the log, and not by its id: with
// ids, the index would take several times the memory. Such a task meets the other when it is recalled: then it is
// claimed and looked up like a record that was just read, and admitted only if its id is still its own. If it
// was in the window before, it has the claim, and its event is in the log, so the other is refused. If it was
// not, nothing has let it in yet, and the id belongs to the one that was let in first. (Claims lost, Postgres
// away, and the first one set aside: both may run, and the recorder keeps the answer of the one that the id
// belongs to.)

// Other returns the item in the window that has the same identity and asks something else; nil if there is
// none. Until it has left, the item must not be added: it would ride with the other, whose answer is not its own.
func (d *Decider) Other(it *Item) *Item {
	old := d.window.byKey[it.Task.Key()]
	if old == nil || old.lost() || !old.Fingerprint.Differs(it.Fingerprint) {
		return nil
	}
	return old
}

// Evict takes an item out of the window for good, because its id belongs to another request.
func (d *Decider) Evict(it *Item) { d.window.remove(it) }

// Add takes an item into the window, or unites it with its twin there. It returns the one of the two
// that rides along; nil if there is no twin.
func (d *Decider) Add(it *Item, now time.Time) (rider *Item) {
	old := d.window.byKey[it.Task.Key()]
	switch {
	case old == nil:
		d.window.add(it, now)
		return nil
	case old.lost(): // another router reads its record
		d.Forget(old, now)
		return d.Add(it, now) // perhaps to meet one that rode along
	case it.later(old):
		d.window.remove(old)
		it.carry(old)
		d.window.add(it, now)
		return old
	}
	old.carry(it)
	return it
}

// later reports whether the item's record is a later copy of the task than the other's.
func (it *Item) later(other *Item) bool {
	if it.Task.Generation() != other.Task.Generation() {
		return it.Task.Generation() > other.Task.Generation()
	}
	return it.Task.Requeues() > other.Task.Requeues()
}

// carry makes another item of the task, and its riders, ride with this one.
func (it *Item) carry(other *Item) {
	it.riders = append(append(it.riders, other), other.riders...)
	other.riders = nil
}

// Forget drops an item that another router reads from now on, before it went anywhere. Its riders are
// still this router's, and are added again.
func (d *Decider) Forget(it *Item, now time.Time) {
	d.window.remove(it)
	riders := it.riders
	it.riders = nil
	for _, r := range riders {
		if !r.lost() {
			d.Add(r, now)
		}
	}
}
