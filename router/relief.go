package router

import (
	"cmp"
	"slices"
	"time"

	"github.com/batchyard/batchyard/stream"
)

// parkedForDevice is why a task is parked that no device could run: one that
// joins brings it back before its time.
const parkedForDevice = "no_device"

// reliefEvery bounds how often the window is looked through.
const reliefEvery = 100 * time.Millisecond

// maxRelief bounds the tasks that are parked at a time.
const maxRelief = 1024

// fullShare of the window in use means that a partition may be stuck: half of
// the window is split among the partitions, and a partition stops when its own
// part and the common half are used up, however empty those of the others are.
const fullShare = 0.45

// crowdedShare of the window in use means that it fills faster than it is relieved:
// what comes and cannot go on is set aside at once.
const crowdedShare = 0.49

// relieve makes room when the window of a topic is full of tasks that cannot go
// on, so that what is behind them in the log can: tasks that no device can take
// now, tasks whose time is far away, and, while a device idles for which the
// window holds nothing, the last of the largest class that waits for devices
// that are busy. What is parked costs one more record each, so this is done
// only when the window is full, and a bounded number at a time.
func (d *decider) relieve(now time.Time) (full bool) {
	if now.Before(d.relief) {
		return false
	}
	d.relief = now.Add(reliefEvery)
	for topic := range d.window.bySrc {
		if d.window.full(topic, fullShare) {
			full = true
			d.relieveTopic(topic, now)
		}
	}
	return full
}

func (d *decider) relieveTopic(topic string, now time.Time) {
	var unable, far []*item
	largest := map[*class]int{}
	for _, it := range d.window.byKey {
		if it.source != topic {
			continue
		}
		switch {
		case it.index < 0 && it.ready.After(now.Add(d.cfg.ParkFor)):
			// What was parked before goes round again, but only after a while.
			if topic != stream.TasksParked || now.Sub(it.since) >= d.cfg.ParkFor {
				far = append(far, it)
			}
		case it.index >= 0 && it.class.unable:
			unable = append(unable, it)
		case it.index >= 0:
			largest[it.class]++
		}
	}
	byAge := func(a, b *item) int { return cmp.Or(a.since.Compare(b.since), cmp.Compare(a.task.ID, b.task.ID)) }
	slices.SortFunc(unable, byAge)
	slices.SortFunc(far, byAge)
	for _, it := range unable[:min(len(unable), maxRelief)] {
		d.setAside(it, parkedForDevice, now)
	}
	for _, it := range far[:min(len(far), maxRelief)] {
		d.setAside(it, "not_before", now)
	}
	if len(unable)+len(far) > 0 || !d.idleDevice(now) {
		return
	}
	var biggest *class
	for c, n := range largest {
		if biggest == nil || n > largest[biggest] || n == largest[biggest] && c.key < biggest.key {
			biggest = c
		}
	}
	if biggest == nil {
		return
	}
	var last []*item
	for _, q := range biggest.queues {
		last = append(last, q.ready.all...)
	}
	slices.SortFunc(last, func(a, b *item) int { // who would be served last goes first
		return cmp.Or(cmp.Compare(b.flow.key.band, a.flow.key.band), cmp.Compare(b.rank, a.rank), cmp.Compare(a.task.ID, b.task.ID))
	})
	for _, it := range last[:min(len(last)/2, maxRelief)] {
		if it.source == topic {
			d.setAside(it, "busy_devices", now)
		}
	}
}

// idleDevice reports whether a device has nothing to do and the window nothing
// for it.
func (d *decider) idleDevice(now time.Time) bool {
	for _, s := range d.view.devices {
		if s.Silent || s.Draining || s.ejected || s.each.Used+s.batch.Used > 0 {
			continue
		}
		wanted := false
		for _, c := range d.window.classes {
			if c.ready > 0 && s.fit(c, now) == fits {
				wanted = true
				break
			}
		}
		if !wanted {
			return true
		}
	}
	return false
}

// setAside parks a task in the log: it leaves the window and is read again
// later. What it waits for (a device, a time) does not hold up others.
func (d *decider) setAside(it *item, reason string, now time.Time) {
	d.window.remove(it)
	d.fx.park(it, reason, now)
}
