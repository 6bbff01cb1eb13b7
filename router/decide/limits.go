package decide

import (
	"math"
	"time"

	"github.com/batchyard/batchyard/device"
)

// How many credits each device has.

// capacity is how many requests a device may work on now.
type capacity struct {
	slots   int
	testing bool // one request finds out whether it is well again; nothing beyond that
}

// setLimits sets the credits of all pools.
func (v *view) setLimits(now time.Time) {
	oldest := now
	for _, s := range v.devices {
		if !s.Silent && !s.JoinedAt.IsZero() && s.JoinedAt.Before(oldest) {
			oldest = s.JoinedAt
		}
	}
	for _, s := range v.devices {
		c := v.capacityOf(s, oldest, now)
		v.setLimit(s, s.single, 1, c)
		v.setLimit(s, s.batched, v.cfg.BatchCreditsPerSlot, c)
	}
}

func (v *view) capacityOf(s *deviceView, oldest, now time.Time) capacity {
	c := capacity{slots: max(1, s.Slots)}
	if s.health.Slots > 0 {
		c.slots = min(c.slots, s.health.Slots)
	}
	// Until its worker reports the breaker closed, one request at a time tests the device.
	c.testing = s.gate == device.GateProbe || s.health.State != "" && s.health.State != device.StateClosed
	if ramp := v.ramp(s, oldest, now); ramp < 1 {
		c.slots = max(1, int(ramp*float64(c.slots)))
		c.testing = c.testing || ramp < 1/float64(c.slots+1)
	}
	if c.testing {
		c.slots = 1
	}
	return c
}

// setLimit gives a pool its slots, and as many credits more as hide the dispatch latency: while the
// news of a free slot travels to the routers and a task travels back, n·h/s tasks finish on a device
// with n slots and service time s. One standard deviation (of a Poisson count) is added.
func (v *view) setLimit(s *deviceView, p *pool, perSlot int, c capacity) {
	p.Slots = c.slots * perSlot
	switch {
	case c.testing:
		p.Limit = c.slots * perSlot
	case !v.late:
		p.Limit = (c.slots + v.cfg.MaxDeviceQueue) * perSlot
	default:
		finished := float64(c.slots) / 4 // until the service time is known
		if service := p.quickest(); service > 0 {
			finished = float64(c.slots) * millis(v.dispatchLatency(s)) / (service * float64(perSlot))
		}
		prefetch := int(math.Ceil(finished + math.Sqrt(finished)))
		p.Limit = (c.slots + min(max(1, prefetch), v.cfg.MaxPrefetch)) * perSlot
	}
}

// dispatchLatency is the time from an assignment to the start of its request: as the workers measured
// it, or as configured.
func (v *view) dispatchLatency(s *deviceView) time.Duration {
	if s.health.HopMS > 0 {
		return time.Duration(s.health.HopMS * float64(time.Millisecond))
	}
	return v.cfg.DispatchLatency
}

// ramp is the share of its slots that a device gets after it joined, or came back to, a running fleet;
// 1: all of them. A fleet that starts as a whole has no ramp.
func (v *view) ramp(s *deviceView, oldest, now time.Time) float64 {
	if v.cfg.SlowStart <= 0 {
		return 1
	}
	since := s.returned
	if s.JoinedAt.After(since) && s.JoinedAt.Sub(oldest) > v.cfg.SlowStart {
		since = s.JoinedAt
	}
	if since.IsZero() || since.Sub(oldest) <= v.cfg.SlowStart { // the other devices are as new
		return 1
	}
	if len(v.devices) == 1 {
		return 1
	}
	return min(1, float64(now.Sub(since))/float64(v.cfg.SlowStart))
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
