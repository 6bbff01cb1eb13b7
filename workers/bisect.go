package workers

import (
	"math/bits"
	"slices"
	"sync"

	"github.com/batchyard/batchyard/workers/verdict"
)

// trial is a batched request that failed because of its size, or perhaps of one task, and is sent again in
// ever smaller parts. The parts do not count as attempts of their tasks, until one has a single task.
//
// Its failures are not charged to the device: one bad task fails every part that it is in. That is
// at most one part of each size before a part goes well. If more fail, all tasks do, and it is the device.
type trial struct {
	mu             sync.Mutex
	free           int // failures that one task alone may cause
	failed, worked int
}

func newTrial(tasks int) *trial { return &trial{free: bits.Len(uint(tasks)) + 1} }

// ended counts a part. It returns whether a failure of it is charged to the tasks.
func (t *trial) ended(well bool) bool { //nolint:revive // it is counted, and selects no path
	t.mu.Lock()
	defer t.mu.Unlock()
	if well {
		t.worked++
	} else {
		t.failed++
	}
	return t.worked > 0 || t.failed <= t.free
}

// bisect queues the two halves of a batched request that failed.
func (r *runner) bisect(c *call, f *Failure) {
	r.workers.deps.Logger.Debug("a batched request failed; sending its halves", "device_id", r.id, "tasks", len(c.works), "kind", f.Kind)
	t := c.trial
	if t == nil {
		t = newTrial(len(c.works))
	}
	works := slices.DeleteFunc(slices.Clone(c.works), func(w *work) bool { return w.concluded.Load() }) // deadlines passed
	for _, w := range works {
		w.localAttempts--
	}
	half := len(works) / 2
	parts := append(r.callsOf(works[:half], 0), r.callsOf(works[half:], 0)...)
	if f.Kind != verdict.BatchTooLarge {
		for _, p := range parts {
			p.trial = t
		}
	}
	r.resubmit(parts...)
}

// tooLarge returns the parts of a batched request that is larger than the device takes; nil if it is not.
func (r *runner) tooLarge(c *call) []*call {
	if c.group == nil {
		return nil
	}
	most := r.batches.Most(c.works[0].task().Model)
	if most == 0 || c.group.Items <= most {
		return nil
	}
	parts := r.callsOf(c.works, most)
	for _, p := range parts {
		p.trial = c.trial
	}
	return parts
}

// callsOf makes requests of tasks that were one before, of at most most items; 0 means as many as they were.
func (r *runner) callsOf(works []*work, most int) []*call {
	if len(works) == 0 {
		return nil
	}
	if most == 0 {
		most = len(works) * r.workers.cfg.MaxBatchedTasks
	}
	return batchedCalls(works, most)
}
