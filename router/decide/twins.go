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
//
// If no device can run the task and the window is filling up, it is parked at once, so that many such
// tasks do not hold up what is behind them in the log.
func (d *Decider) Add(it *Item, now time.Time) (rider *Item) {
	old := d.window.byKey[it.Task.Key()]
	switch {
	case old == nil:
		d.insert(it, now)
		return nil
	case old.lost(): // another router reads its record
		d.Forget(old, now)
		return d.Add(it, now) // perhaps to meet one that rode along
	case it.later(old):
		d.window.remove(old)
		it.carry(old)
		d.insert(it, now)
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

// insert puts an item without a twin into the window.
func (d *Decider) insert(it *Item, now time.Time) {
	d.checkParked = d.checkParked || it.WakesForDevice
	d.window.add(it, now)
	if it.demand.unservable && it.index >= 0 && d.window.full(it.Source, crowdedShare) {
		d.Park(it, ParkedForDevice, now)
	}
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
