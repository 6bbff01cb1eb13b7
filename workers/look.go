package workers

import (
	"cmp"
	"context"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
)

// lookPause is the least time between two looks that somebody asked for.
const lookPause = 100 * time.Millisecond

// missedLooks is in how many looks a device that was there has to be missing
// from the registry before what waits for it moves: when Redis was emptied, they
// all are missing until their next heartbeat.
const missedLooks = 3

// pokeLook has the fleet looked at now: something has changed there.
func (s *Workers) pokeLook() {
	select {
	case s.lookNow <- struct{}{}:
	default:
	}
}

// lookEvery looks at the fleet from time to time, and when something changes.
func (s *Workers) lookEvery(ctx context.Context) {
	tick := time.NewTicker(cmp.Or(s.cfg.RebalanceEvery, 5*time.Second))
	defer tick.Stop()
	for {
		regular := false
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			regular = true
		case <-s.lookNow:
		}
		if err := s.look(ctx, regular); err != nil && ctx.Err() == nil {
			s.deps.Logger.Debug("the fleet was not looked at; what waits at a device stays there", "error", err)
		}
		pause := time.NewTimer(lookPause)
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
	}
}

// look finds devices here that are silent, draining or gone, hands new runners
// what is known of their devices, and, at the regular looks, evens out the load.
func (s *Workers) look(ctx context.Context, regular bool) error {
	runners := s.all()
	if len(runners) == 0 {
		return nil
	}
	ds, err := s.deps.Registry.List(ctx)
	if err != nil {
		return err
	}
	known := make(map[string]*device.Device, len(ds))
	for i := range ds {
		known[ds[i].ID] = &ds[i]
	}
	for _, r := range runners {
		r.registered(known[r.id], regular)
	}
	rates, healths, err := s.deps.Rates.Load(ctx)
	if err != nil {
		return err
	}
	s.seed(runners, rates)
	if !regular {
		return nil
	}
	return s.evenOut(ctx, runners, ds, rates, healths)
}

// registered takes what the registry says of the device; nil: it is not there.
func (r *runner) registered(d *device.Device, regular bool) {
	r.mu.Lock()
	before := r.away
	switch {
	case d == nil && !r.seen: // somebody sends work to a device that sends no heartbeats
	case d == nil: // as it was, until it was missing for long
		if regular {
			r.missing++
		}
		if r.missing >= missedLooks {
			r.away = awayLeft
		}
	default:
		r.seen, r.missing, r.away = true, 0, ""
		if d.Silent {
			r.away = awaySilent
		} else if d.Draining {
			r.away = awayDraining
		}
	}
	away := r.away
	r.mu.Unlock()
	if away != before {
		r.w.deps.Logger.Info("device", "device", r.id, "away", away)
	}
	if away != "" {
		r.dispatch()
	}
}

// kind is what service times are compared by.
type kind struct {
	model  string
	merged bool
}

// services is the longest service time of each kind among all devices.
type services map[kind]time.Duration

// seed hands runners that are new what the owners before them have learned.
func (s *Workers) seed(runners []*runner, rates map[device.RateKey]device.Rate) {
	byID := map[string]*runner{}
	for _, r := range runners {
		if !r.seeded {
			r.seeded = true
			byID[r.id] = r
		}
	}
	most := services{}
	for k, rate := range rates {
		if r := byID[k.Device]; r != nil {
			r.rates.Seed(k, rate)
		}
		d := time.Duration(rate.ServiceMS * float64(time.Millisecond))
		most[kind{k.Model, k.Merged}] = max(most[kind{k.Model, k.Merged}], d)
	}
	s.service.Store(&most)
}

// elsewhere is what a task takes on the slowest device that is known.
func (s *Workers) elsewhere(t *task.Task) (time.Duration, bool) {
	m := s.service.Load()
	if m == nil {
		return 0, false
	}
	d, ok := (*m)[kind{t.Model, task.Merged(t.Endpoint)}]
	return d, ok
}

// class is tasks that the same devices can run.
type class struct {
	kind
	needs string // tags, sorted
}

const tagSeparator = "\x00"

func classOf(t *task.Task) class {
	c := class{kind: kind{t.Model, task.Merged(t.Endpoint)}}
	if len(t.Needs) > 0 {
		c.needs = strings.Join(slices.Sorted(slices.Values(t.Needs)), tagSeparator)
	}
	return c
}

// maxClasses bounds how many kinds of waiting tasks one look compares.
const maxClasses = 64

// movable counts what waits here, has not been moved before, and may be moved.
func (r *runner) movable(into map[class]map[string]int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.queue {
		if !c.movable() {
			continue
		}
		k := classOf(&c.works[0].a.Task)
		if into[k] == nil {
			if len(into) >= maxClasses {
				continue
			}
			into[k] = map[string]int{}
		}
		into[k][r.id] += len(c.works)
	}
}

// movable: what has been tried here, or was moved before and has not run since,
// stays.
func (c *call) movable() bool {
	for _, w := range c.works {
		if w.here > 0 || w.a.Task.Progress != nil && w.a.Task.Progress.Moved {
			return false
		}
	}
	return true
}

// takeTail takes up to n tasks of the class from the end of the queue.
func (r *runner) takeTail(k class, n int, to []string) (out []*call) {
	r.mu.Lock()
	defer r.mu.Unlock()
	kept := make([]*call, 0, len(r.queue))
	for _, c := range slices.Backward(r.queue) {
		if len(c.works) <= n && classOf(&c.works[0].a.Task) == k && c.movable() && c.mayRunOn(to) {
			n -= len(c.works)
			out = append(out, c)
		} else {
			kept = append(kept, c)
		}
	}
	slices.Reverse(kept)
	slices.Reverse(out)
	r.queue = kept
	return out
}

// mayRunOn reports whether one of the devices is not excluded for any of the tasks.
func (c *call) mayRunOn(ids []string) bool {
	return slices.ContainsFunc(ids, func(id string) bool {
		return !slices.ContainsFunc(c.works, func(w *work) bool {
			return w.a.Task.Progress != nil && slices.Contains(w.a.Task.Progress.Exclude, id)
		})
	})
}

// evenOut gives back waiting work of devices that will be busy for long while
// others will not be.
func (s *Workers) evenOut(ctx context.Context, runners []*runner, ds []device.Device, rates map[device.RateKey]device.Rate, healths map[string]device.Health) error {
	waiting := map[class]map[string]int{}
	mine := map[string]*runner{}
	for _, r := range runners {
		mine[r.id] = r
		r.movable(waiting)
	}
	if len(waiting) == 0 {
		return nil
	}
	f, err := s.figures(ctx, ds, rates, healths)
	if err != nil {
		return err
	}
	classes := make([]class, 0, len(waiting))
	for k := range waiting {
		classes = append(classes, k)
	}
	slices.SortFunc(classes, func(a, b class) int {
		m := 0
		if a.merged != b.merged {
			m = 1
			if b.merged {
				m = -1
			}
		}
		return cmp.Or(cmp.Compare(a.model, b.model), m, cmp.Compare(a.needs, b.needs))
	})
	for _, k := range classes {
		list := f.standings(k, waiting[k])
		to := map[string][]string{}
		sum := map[string]move{}
		for _, m := range plan(list, cmp.Or(s.cfg.RebalanceSpread, 0.2), moveCost, maxMoves) {
			to[m.from] = append(to[m.from], m.to)
			if _, ok := sum[m.from]; ok {
				m.n += sum[m.from].n
				m.here, m.there = sum[m.from].here, sum[m.from].there
			}
			sum[m.from] = m
		}
		f.took(list)
		for id, m := range sum {
			if r := mine[id]; r != nil && waiting[k][id] > 0 {
				s.moveOff(r, k, m, to[id])
			}
		}
	}
	return nil
}

// moveOff gives back tasks that wait at a device.
func (s *Workers) moveOff(r *runner, k class, m move, to []string) {
	calls := r.takeTail(k, m.n, to)
	n := 0
	for _, c := range calls {
		n += len(c.works)
	}
	if n == 0 {
		return
	}
	s.deps.Logger.Info("waiting work moves: others would be done sooner", "device", r.id, "tasks", n,
		"here_ms", math.Round(m.here), "there_ms", math.Round(m.there), "spread", m.imbalance)
	note := map[string]any{
		"reason": movedEven, "here_ms": math.Round(m.here), "there_ms": math.Round(m.there),
		"spread": math.Round(m.imbalance*100) / 100, "idle": to[:min(len(to), 3)], "moved": n,
	}
	for _, c := range calls {
		for _, w := range c.works {
			if cause := w.dead(); cause != nil {
				s.leave(w, cause, nil)
			} else {
				s.moveOver(w, note)
			}
		}
	}
}
