package decide

import (
	"cmp"
	"slices"
	"time"

	"github.com/batchyard/batchyard/device"
)

// Why tasks are parked. A task parked for want of a device becomes ready early when one joins.
const (
	ParkedForDevice = "no_device"
	parkedForTime   = "not_before"
	parkedForBusy   = "busy_devices"
)

// reliefInterval is the least time between two looks through a full window.
const reliefInterval = 100 * time.Millisecond

// maxRelief bounds the tasks that are parked at a time.
const maxRelief = 1024

// fullShare of the window in use means that a partition may be stuck. Half of the window is divided
// among the partitions, and a partition stops when its own part and the common half are used up, even if
// the parts of the others are empty.
const fullShare = 0.45

// crowdedShare of the window in use means that it fills faster than it is relieved: tasks that cannot
// run are parked as they arrive.
const crowdedShare = 0.49

// Park writes a task back to the log, to be read again later, so that what it waits for (a device, a
// time) does not hold up others.
func (d *Decider) Park(it *Item, reason string, now time.Time) {
	d.window.remove(it)
	d.effects.Park(it, Parking{Reason: reason, Now: now, Until: latest(now.Add(d.cfg.ParkRetry), it.ReadyAt)})
}

// relieve makes room when the window of a source is full of tasks that cannot run, so that the tasks
// behind them in the log can. It parks tasks that no device can take now, and tasks whose time is far
// away; and, while a device idles for which the window holds nothing, the last tasks of the largest
// demand that waits for busy devices. Each parked task costs one more record, so this is done only when
// the window is full, for a bounded number of tasks at a time.
func (d *Decider) relieve(now time.Time) (full bool) {
	if now.Before(d.reliefAt) {
		return false
	}
	d.reliefAt = now.Add(reliefInterval)
	for source := range d.window.tasks {
		if d.window.full(source, fullShare) {
			full = true
			d.relieveSource(source, now)
		}
	}
	return full
}

func (d *Decider) relieveSource(source string, now time.Time) {
	var unservable, far []*Item
	ready := map[*demand]int{}
	for _, it := range d.window.byKey {
		if it.Source != source {
			continue
		}
		switch {
		case it.index < 0 && it.ReadyAt.After(now.Add(d.cfg.ParkRetry)):
			// A task that was parked before is parked again only after a while.
			if !it.Parked || now.Sub(it.added) >= d.cfg.ParkRetry {
				far = append(far, it)
			}
		case it.index >= 0 && it.demand.unservable:
			unservable = append(unservable, it)
		case it.index >= 0:
			ready[it.demand]++
		}
	}
	d.parkOldest(unservable, ParkedForDevice, now)
	d.parkOldest(far, parkedForTime, now)
	if len(unservable)+len(far) == 0 && d.deviceIdlesForWork(now) {
		d.parkLargest(ready, source, now)
	}
}

// parkOldest parks a bounded number of items, oldest first.
func (d *Decider) parkOldest(items []*Item, reason string, now time.Time) {
	slices.SortFunc(items, byAge)
	for _, it := range items[:min(len(items), maxRelief)] {
		d.Park(it, reason, now)
	}
}

// parkLargest parks half of the largest demand's tasks, those that would be served last.
func (d *Decider) parkLargest(ready map[*demand]int, source string, now time.Time) {
	var largest *demand
	for dm, n := range ready {
		if largest == nil || n > ready[largest] || n == ready[largest] && dm.key < largest.key {
			largest = dm
		}
	}
	if largest == nil {
		return
	}
	var items []*Item
	for _, q := range largest.queues {
		items = append(items, q.ready.all...)
	}
	slices.SortFunc(items, func(a, b *Item) int { // last served first
		return cmp.Or(cmp.Compare(b.flow.key.priority, a.flow.key.priority), cmp.Compare(b.rank, a.rank), cmp.Compare(a.Task.ID, b.Task.ID))
	})
	for _, it := range items[:min(len(items)/2, maxRelief)] {
		if it.Source == source {
			d.Park(it, parkedForBusy, now)
		}
	}
}

// deviceIdlesForWork reports whether a device has nothing to do and the window nothing for it.
func (d *Decider) deviceIdlesForWork(now time.Time) bool {
	for _, s := range d.view.devices {
		if s.idle() && !d.window.hasWorkFor(s, now) {
			return true
		}
	}
	return false
}

func (w *window) hasWorkFor(s *deviceView, now time.Time) bool {
	for _, d := range w.demands {
		if d.ready > 0 && s.eligible(d, now) == device.CanRun {
			return true
		}
	}
	return false
}
