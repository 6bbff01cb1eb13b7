package workers

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"github.com/batchyard/batchyard/task"
)

// demand is what a task needs of a device; tasks with the same demand can run on the same devices.
type demand struct {
	workload
	needs string // capability tags, sorted
}

const tagSeparator = "\x00"

func demandOf(t *task.Task) demand {
	c := demand{workload: workloadOf(t)}
	if len(t.Needs) > 0 {
		c.needs = strings.Join(slices.Sorted(slices.Values(t.Needs)), tagSeparator)
	}
	return c
}

// compare orders demands: by model, single before batched, then by tags.
func (d demand) compare(o demand) int {
	return cmp.Or(cmp.Compare(d.model, o.model), cmp.Compare(poolIndex(d.batched), poolIndex(o.batched)), cmp.Compare(d.needs, o.needs))
}

// maxDemands bounds how many demands one rebalancing considers.
const maxDemands = 64

// movable adds to into how many of the waiting tasks may be moved, by demand and device.
func (r *runner) movable(into map[demand]map[string]int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.queue {
		if !c.movable() {
			continue
		}
		k := demandOf(c.works[0].task())
		if into[k] == nil {
			if len(into) >= maxDemands {
				continue
			}
			into[k] = map[string]int{}
		}
		into[k][r.id] += len(c.works)
	}
}

// movable reports whether none of the tasks was tried here, or moved before without having run since.
func (c *call) movable() bool {
	for _, w := range c.works {
		if w.localAttempts > 0 || w.task().Progress != nil && w.task().Progress.Moved {
			return false
		}
	}
	return true
}

// takeTail takes up to n tasks of the demand from the end of the queue, which may run on one of the
// devices.
func (r *runner) takeTail(k demand, n int, to []string) (out []*call) {
	r.mu.Lock()
	defer r.mu.Unlock()
	kept := make([]*call, 0, len(r.queue))
	for _, c := range slices.Backward(r.queue) {
		if len(c.works) <= n && demandOf(c.works[0].task()) == k && c.movable() && c.mayRunOn(to) {
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

// mayRunOn reports whether one of the devices is excluded for none of the tasks.
func (c *call) mayRunOn(ids []string) bool {
	return slices.ContainsFunc(ids, func(id string) bool {
		return !slices.ContainsFunc(c.works, func(w *work) bool {
			return w.task().Progress != nil && slices.Contains(w.task().Progress.Exclude, id)
		})
	})
}

// movableTasks returns how many waiting tasks may be moved, by demand and device.
func movableTasks(runners []*runner) map[demand]map[string]int {
	waiting := map[demand]map[string]int{}
	for _, r := range runners {
		r.movable(waiting)
	}
	return waiting
}

// rebalance gives back waiting tasks of devices that will be busy for long while others will not.
func (s *Workers) rebalance(runners []*runner, waiting map[demand]map[string]int, f *fleetLoad) {
	mine := map[string]*runner{}
	for _, r := range runners {
		mine[r.id] = r
	}
	demands := make([]demand, 0, len(waiting))
	for k := range waiting {
		demands = append(demands, k)
	}
	slices.SortFunc(demands, demand.compare)
	for _, k := range demands {
		loads := f.candidates(k, waiting[k])
		targets := map[string][]string{}
		sum := map[string]move{}
		for _, m := range plan(loads, cmp.Or(s.cfg.RebalanceSpread, 0.2), moveCost, maxMoves) {
			targets[m.from] = append(targets[m.from], m.to)
			if before, ok := sum[m.from]; ok {
				m.n += before.n
				m.here, m.there = before.here, before.there
			}
			sum[m.from] = m
		}
		f.keep(loads)
		for id, m := range sum {
			if r := mine[id]; r != nil && waiting[k][id] > 0 {
				s.moveWaiting(r, k, m, targets[id])
			}
		}
	}
}

// moveWaiting gives back tasks that wait at a device.
func (s *Workers) moveWaiting(r *runner, k demand, m move, to []string) {
	calls := r.takeTail(k, m.n, to)
	n := 0
	for _, c := range calls {
		n += len(c.works)
	}
	if n == 0 {
		return
	}
	s.deps.Logger.Info("moving waiting tasks that other devices would finish sooner", "device_id", r.id, "tasks", n,
		"here_ms", math.Round(m.here), "there_ms", math.Round(m.there), "spread", m.imbalance)
	note := map[string]any{
		"reason": movedEven, "here_ms": math.Round(m.here), "there_ms": math.Round(m.there),
		"spread": math.Round(m.imbalance*100) / 100, "idle": to[:min(len(to), 3)], "moved": n,
	}
	for _, c := range calls {
		for _, w := range c.works {
			if cause := w.stopCause(); cause != nil {
				s.abandon(w, cause, nil)
			} else {
				s.requeueMoved(w, note)
			}
		}
	}
}
