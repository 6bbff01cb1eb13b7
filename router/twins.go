package router

import (
	"slices"
	"time"

	"github.com/batchyard/batchyard/stream"
)

// Two records of one task may meet in a window though each has its claim: Redis
// was emptied between them, or one was written when the task was given back and
// the other, read again after a router died, is from before that. One of them
// goes on, and its twin rides along:
//
//	record A ─▶ window ─▶ assigned ─▶ acknowledged ─▶ A is done
//	record B ─▶ rides with A ──────────────────────▶ B is done
//
// The one that was given back more often goes on. Were it dropped instead, its
// claim would outlive it, and what the other is given back as would pass for a
// duplicate of nothing. And until the one that goes on has arrived where it goes,
// its twin is not done: Redis may hold the claim of either, so that after our
// death only one of the two is taken, and nobody knows which.

// meet takes an item into the window, or brings it together with its twin there.
// It returns the one of the two that rides along; nil when there is no twin.
func (d *decider) meet(it *item, now time.Time) (rider *item) {
	old := d.window.byKey[it.task.Key()]
	switch {
	case old == nil:
		d.add(it, now)
		return nil
	case old.lost(): // its new owner reads it
		d.forget(old, now)
		return d.meet(it, now) // with one that rode along, perhaps
	case it.task.Requeues() > old.task.Requeues():
		d.window.remove(old)
		it.carry(old)
		d.add(it, now)
		return old
	}
	old.carry(it)
	return it
}

// carry lets another record of the task, and what rides with that, be done when
// this one is. Both wait in the window or are about to, so no ticket is read yet.
func (it *item) carry(other *item) {
	all := append([]*item{other}, other.riders...)
	other.riders = nil
	it.riders = append(it.riders, all...)
	if it.ticket == nil { // in a simulation
		return
	}
	other.ticket.with = nil
	for _, r := range all {
		it.ticket.with = append(it.ticket.with, r.ticket)
	}
}

// forget drops an item whose partition belongs to another router now, before it
// went anywhere: nothing will release its ticket. What rode along is ours still,
// and nobody else reads it.
func (d *decider) forget(it *item, now time.Time) {
	d.window.remove(it)
	riders := it.riders
	it.riders = nil
	for _, r := range riders {
		if !r.lost() {
			r.gone = false
			d.meet(r, now)
		}
	}
}

// of reports whether the item is from a record, or carries the one that is.
func (it *item) of(rec *stream.Record) bool {
	return it.rec == rec || slices.ContainsFunc(it.riders, func(r *item) bool { return r.rec == rec })
}
