package decide

import (
	"cmp"
	"slices"
	"time"

	"github.com/batchyard/batchyard/device"
)

// Routers keep credits for each other with asks: while tasks of a priority wait here for devices that
// are full, the other routers take no credit of these devices for a lower priority. Such a router
// yields for a moment, and then tries again.
const (
	askInterval = 300 * time.Millisecond // renewed this often, before the other routers forget
	maxAsks     = 512                    // pools; tasks with more devices than this are soon served anyway
	yieldFor    = 25 * time.Millisecond
)

// ask is how many tasks of which priority wait for a pool.
type ask struct{ priority, n int }

// yields reports whether tasks of the demand and priority leave its devices to a higher priority that
// waits at another router.
func (d *Decider) yields(dm *demand, priority int, now time.Time) bool {
	if !dm.yieldUntil.After(now) || priority < dm.yieldFrom {
		return false
	}
	d.resumeBy(dm.yieldUntil)
	return true
}

// yield makes the demand leave its devices to a higher priority elsewhere for a moment. If the other
// router never stops asking, the guaranteed share of this priority still counts: it accrues what the
// devices do meanwhile, divided by the routers, which share them.
func (d *Decider) yield(dm *demand, priority int, now time.Time) {
	if dm.yieldUntil.Before(now) || priority < dm.yieldFrom {
		dm.yieldFrom = priority
	}
	dm.yieldUntil = now.Add(yieldFor)
	d.resumeBy(dm.yieldUntil)
	if now.Before(d.accruedUntil[priority]) { // counted with another demand
		return
	}
	d.accruedUntil[priority] = dm.yieldUntil
	slots := 0
	for _, s := range dm.snapshot.devices {
		slots += max(1, s.Slots)
	}
	d.window.accrue(priority, float64(slots)*yieldFor.Seconds()/float64(d.view.routers))
}

func (d *Decider) resumeBy(at time.Time) {
	if d.resumeAt.IsZero() || at.Before(d.resumeAt) {
		d.resumeAt = at
	}
}

// asks returns what to tell the other routers: which pools this router's tasks wait for, and which they
// no longer wait for. Nil if the others know already and will not forget soon.
func (d *Decider) asks(now time.Time) []device.Ask {
	if d.view.routers < 2 || now.Before(d.retryAt) {
		clear(d.asked)
		return nil
	}
	waiting := d.waitingPools()
	known := len(waiting) == len(d.asked)
	var out []device.Ask
	for name, a := range waiting {
		old, ok := d.asked[name]
		known = known && ok && old.priority == a.priority
		out = append(out, device.Ask{Pool: name, Priority: a.priority, N: a.n})
	}
	if known && (len(waiting) == 0 || now.Before(d.askAt)) {
		return nil
	}
	for name, a := range d.asked {
		if _, ok := waiting[name]; !ok {
			out = append(out, device.Ask{Pool: name, Priority: a.priority})
		}
	}
	slices.SortFunc(out, func(a, b device.Ask) int { return cmp.Compare(a.Pool, b.Pool) })
	d.asked, d.askAt = waiting, now.Add(askInterval)
	return out
}

// waitingPools finds the full pools that tasks wait for, with the highest priority among them.
func (d *Decider) waitingPools() map[string]ask {
	waiting := map[string]ask{}
	for _, dm := range d.window.demands {
		if !dm.exhausted || dm.round != d.round.number || dm.unservable || dm.snapshot == nil || len(waiting) >= maxAsks {
			continue
		}
		a, ok := dm.highestWaiting()
		if !ok || a.priority == priorities-1 { // there is no lower priority to hold back
			continue
		}
		for _, s := range dm.snapshot.devices {
			pl := s.pool(dm)
			if pl.Free() > 0 { // the tasks could have it, and wait for a better device
				continue
			}
			switch old, ok := waiting[pl.name]; {
			case !ok && len(waiting) < maxAsks, ok && a.priority < old.priority:
				waiting[pl.name] = a
			case ok && a.priority == old.priority:
				waiting[pl.name] = ask{a.priority, old.n + a.n}
			}
		}
	}
	return waiting
}

// highestWaiting is the highest priority with ready tasks of the demand, and how many they are.
func (dm *demand) highestWaiting() (a ask, ok bool) {
	a.priority = priorities
	for f, q := range dm.queues {
		switch priority := f.key.priority; {
		case q.ready.len() == 0 || priority > a.priority:
		case priority < a.priority:
			a = ask{priority, q.ready.len()}
		default:
			a.n += q.ready.len()
		}
	}
	return a, a.priority < priorities
}
