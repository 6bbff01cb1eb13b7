package workers

import (
	"sync"
	"time"
)

// dispatchLatency estimates the time from the assignment of a task to the start of its request, for
// tasks that found a free slot. Credits beyond the slots have to cover this time. The estimate is
// a low quantile, because waiting for a batch to fill and brokers under load take longer without
// being part of the latency.
//
// The quantile is tracked by stochastic approximation (Robbins and Monro 1951) in relative steps: a
// longer time raises the estimate a little, a shorter one lowers it by more, in the ratio that
// leaves latencyQuantile of the times below it.
//
// The time is the difference between the readings of two processes' clock.Now, which differ by
// milliseconds at most. The estimate is bounded, so that it does no harm if they differ by more.
type dispatchLatency struct {
	mu sync.Mutex
	ms float64
	n  int
}

const (
	latencyQuantile = 0.25
	latencyStep     = 0.05
	latencyWarmup   = 8 // the minimum of the first times is taken
	maxLatency      = time.Second
)

func (h *dispatchLatency) observe(d time.Duration) {
	if d <= 0 {
		return // the clocks disagree
	}
	ms := float64(min(d, maxLatency)) / float64(time.Millisecond)
	h.mu.Lock()
	defer h.mu.Unlock()
	switch h.n++; {
	case h.n == 1:
		h.ms = ms
	case h.n <= latencyWarmup:
		h.ms = min(h.ms, ms)
	case ms > h.ms:
		h.ms = min(ms, h.ms*(1+latencyStep*latencyQuantile))
	default:
		h.ms = max(ms, h.ms*(1-latencyStep*(1-latencyQuantile)))
	}
}

// value returns the estimate in milliseconds; 0 means unknown.
func (h *dispatchLatency) value() float64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ms
}
