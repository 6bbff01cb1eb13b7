package workers

import (
	"container/heap"
	"math"
	"time"
)

// standing is how much work a device has, of which some could be moved.
type standing struct {
	id      string
	slots   float64
	load    float64 // busy slot-milliseconds of the work it has
	service float64 // milliseconds that one of the tasks in question takes there
	takes   bool    // it may be given some
	gives   int     // tasks that wait there and may be moved
}

// eta is when the last of the work that the device has is done, in milliseconds:
// it is worked on by all slots, and takes at least its own time.
func (s *standing) eta() float64 { return max(s.service, s.load/s.slots) }

// with is the eta with one more task.
func (s *standing) with() float64 { return max(s.service, (s.load+s.service)/s.slots) }

// move is tasks that are to go from one device to another. The router decides
// where they do go; that they would be better there is why they go at all.
type move struct {
	from, to  string
	n         int
	here      float64 // milliseconds until the first of them would be done here
	there     float64 // and there
	imbalance float64
}

// moveCost is about what it takes to go back through the log and the router.
const moveCost = 100 * time.Millisecond

// maxMoves bounds the tasks of one plan.
const maxMoves = 4096

// plan says which waiting tasks go elsewhere, and takes them from and adds them
// to the standings' loads.
//
// Nothing moves while the times in which the devices are done are about even:
// standard deviation / mean at most spread. Else the last task of the device that
// is done last goes to the device that would be done with it first, if that is
// sooner by the share spread, the cost of the way included; and so on until it is
// not. So a task only moves when it gains, no device gets more than makes it as
// late as where the task came from, and a plan made again from the result moves
// nothing back: what it would gain, it has gained. All who plan from the same
// figures plan the same, each for all devices, and each does its own part:
// together they do not move more than one would.
func plan(all []*standing, spread float64, cost time.Duration, most int) []move {
	imbalance := spreadOf(all)
	if imbalance <= spread {
		return nil
	}
	from := &standings{before: func(a, b *standing) bool { return a.eta() > b.eta() || a.eta() == b.eta() && a.id < b.id }}
	to := &standings{before: func(a, b *standing) bool { return a.with() < b.with() || a.with() == b.with() && a.id < b.id }}
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
		// Should a be b, everybody would be done later with one more than it is now.
		here, there := a.eta(), b.with()+float64(cost)/float64(time.Millisecond)
		if there > (1-spread)*here {
			break
		}
		// One after the other: a heap is mended after one change at a time.
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

// spreadOf is standard deviation / mean of the times in which the devices are
// done with what they have; 0 when they have nothing.
func spreadOf(all []*standing) float64 {
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

// standings is a heap of them.
type standings struct {
	list   []*standing
	before func(a, b *standing) bool
	at     map[*standing]int
}

func (h *standings) add(s *standing) {
	if h.at == nil {
		h.at = map[*standing]int{}
	}
	h.at[s] = len(h.list)
	h.list = append(h.list, s)
}

func (h *standings) Len() int           { return len(h.list) }
func (h *standings) Less(i, j int) bool { return h.before(h.list[i], h.list[j]) }
func (h *standings) Swap(i, j int) {
	h.list[i], h.list[j] = h.list[j], h.list[i]
	h.at[h.list[i]], h.at[h.list[j]] = i, j
}

// Push and Pop are for package heap.
func (h *standings) Push(x any) { h.add(x.(*standing)) } //nolint:forcetypeassert // only we call it

// Pop is for package heap.
func (h *standings) Pop() any {
	s := h.list[len(h.list)-1]
	h.list = h.list[:len(h.list)-1]
	delete(h.at, s)
	return s
}

func (h *standings) fix(s *standing) {
	if i, ok := h.at[s]; ok {
		heap.Fix(h, i)
	}
}

func (h *standings) drop(s *standing) {
	if i, ok := h.at[s]; ok {
		heap.Remove(h, i)
	}
}
