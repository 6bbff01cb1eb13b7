package workers

import (
	"sync"
	"time"
)

// hop is the time from the assignment of a task to the start of its request
// when a slot was free as it came: what credits beyond the slots have to cover.
// It is a low quantile, since batches that wait to be filled and logs under load
// take longer and are not the way's fault.
//
// The quantile is followed by stochastic approximation (Robbins and Monro 1951)
// in relative steps: a longer time raises the estimate a little, a shorter one
// lowers it by more, in the ratio that leaves hopQuantile of the times below it.
//
// It is the difference of two machines' clocks, that of the router and ours. If
// they are apart it is wrong by as much; it is bounded so that this does no harm.
type hop struct {
	mu sync.Mutex
	ms float64
	n  int
}

const (
	hopQuantile = 0.25
	hopStep     = 0.05
	hopFirst    = 8 // of these the least is taken
	hopMax      = time.Second
)

func (h *hop) learn(d time.Duration) {
	if d <= 0 {
		return // the clocks are apart
	}
	ms := float64(min(d, hopMax)) / float64(time.Millisecond)
	h.mu.Lock()
	defer h.mu.Unlock()
	switch h.n++; {
	case h.n == 1:
		h.ms = ms
	case h.n <= hopFirst:
		h.ms = min(h.ms, ms)
	case ms > h.ms:
		h.ms = min(ms, h.ms*(1+hopStep*hopQuantile))
	default:
		h.ms = max(ms, h.ms*(1-hopStep*(1-hopQuantile)))
	}
}

// value is the estimate; 0: not known.
func (h *hop) value() float64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ms
}
