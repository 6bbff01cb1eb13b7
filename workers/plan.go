package workers

import (
	"container/heap"
	"math"
	"time"
)

// deviceLoad is how much work a device has, and how much of it could be moved.
type deviceLoad struct {
	id      string
	slots   float64
	load    float64 // busy slot-milliseconds of the work that it has
	service float64 // milliseconds that one task of the demand takes there
	takes   bool    // it may get more tasks
	gives   int     // waiting tasks that may be moved
}

// eta returns in how many milliseconds the device will be done: all slots share the load, and a task
// takes at least its service time.
func (s *deviceLoad) eta() float64 { return max(s.service, s.load/s.slots) }

// with returns the eta with one more task.
func (s *deviceLoad) with() float64 { return max(s.service, (s.load+s.service)/s.slots) }

// move is a number of tasks that would be done sooner on another device. They go back to their topic,
// and the router decides where they really go.
type move struct {
	from, to  string
	n         int
	here      float64 // milliseconds until the first of them would be done on from
	there     float64 // and on to
	imbalance float64
}

// moveCost is roughly how long it takes to go back through Kafka and the router.
const moveCost = 100 * time.Millisecond

// maxMoves bounds the tasks of one plan.
const maxMoves = 4096

// plan says which waiting tasks should move, and updates the loads accordingly.
//
// Nothing moves while the loads per slot are about even: standard deviation / mean is at most spread.
// Otherwise, the last task of the device with the latest eta moves to the device that would be done
// with it first, if that is sooner by at least the share spread, including the cost; and so on. So a
// task moves only if it gains, no device becomes later than the one that the task came from, and
// planning again from the result moves nothing back. Workers that plan from the same loads make the
// same plan for all devices, and each carries out its own part, so together they move no more than
// one would.
func plan(all []*deviceLoad, spread float64, cost time.Duration, most int) []move {
	imbalance := spreadOf(all)
	if imbalance <= spread {
		return nil
	}
	from := &loadHeap{before: func(a, b *deviceLoad) bool { return a.eta() > b.eta() || a.eta() == b.eta() && a.id < b.id }}
	to := &loadHeap{before: func(a, b *deviceLoad) bool { return a.with() < b.with() || a.with() == b.with() && a.id < b.id }}
	for _, s := range all {
		if s.gives > 0 {
			from.add(s)
		}
		if s.takes {
			to.add(s)
		}
	}
	heap.Init(from)
	heap.Init(to)
	at := map[[2]string]int{}
	var moves []move
	for range most {
		if from.Len() == 0 || to.Len() == 0 {
			break
		}
		a, b := from.list[0], to.list[0]
		// If a is b, the device would be later with one more task than it is now, so this ends.
		here, there := a.eta(), b.with()+float64(cost)/float64(time.Millisecond)
		if there > (1-spread)*here {
			break
		}
		// One change at a time: a heap can be fixed only after each.
		a.load, a.gives = max(0, a.load-a.service), a.gives-1
		if a.gives > 0 {
			from.fix(a)
		} else {
			from.drop(a)
		}
		to.fix(a)
		b.load += b.service
		from.fix(b)
		to.fix(b)
		k := [2]string{a.id, b.id}
		i, ok := at[k]
		if !ok {
			i = len(moves)
			at[k] = i
			moves = append(moves, move{from: a.id, to: b.id, here: here, there: there, imbalance: imbalance})
		}
		moves[i].n++
	}
	return moves
}

// spreadOf returns standard deviation / mean of the devices' loads per slot; 0 when there is no load.
func spreadOf(all []*deviceLoad) float64 {
	sum, squares := 0.0, 0.0
	for _, s := range all {
		d := s.load / s.slots
		sum += d
		squares += d * d
	}
	n := float64(len(all))
	if sum <= 0 {
		return 0
	}
	mean := sum / n
	return math.Sqrt(max(0, squares/n-mean*mean)) / mean
}

// loadHeap is a heap of loads that also finds the place of each.
type loadHeap struct {
	list   []*deviceLoad
	before func(a, b *deviceLoad) bool
	at     map[*deviceLoad]int
}

func (h *loadHeap) add(s *deviceLoad) {
	if h.at == nil {
		h.at = map[*deviceLoad]int{}
	}
	h.at[s] = len(h.list)
	h.list = append(h.list, s)
}

func (h *loadHeap) Len() int           { return len(h.list) }
func (h *loadHeap) Less(i, j int) bool { return h.before(h.list[i], h.list[j]) }
func (h *loadHeap) Swap(i, j int) {
	h.list[i], h.list[j] = h.list[j], h.list[i]
	h.at[h.list[i]], h.at[h.list[j]] = i, j
}

// Push implements heap.Interface.
func (h *loadHeap) Push(x any) { h.add(x.(*deviceLoad)) } //nolint:forcetypeassert // only we call it

// Pop implements heap.Interface.
func (h *loadHeap) Pop() any {
	s := h.list[len(h.list)-1]
	h.list = h.list[:len(h.list)-1]
	delete(h.at, s)
	return s
}

func (h *loadHeap) fix(s *deviceLoad) {
	if i, ok := h.at[s]; ok {
		heap.Fix(h, i)
	}
}

func (h *loadHeap) drop(s *deviceLoad) {
	if i, ok := h.at[s]; ok {
		heap.Remove(h, i)
	}
}
