package device

import (
	"sync"
	"time"
)

// Outcome is what the end of a request says of the device.
type Outcome int

// The outcomes.
const (
	OK        Outcome = iota // it answered; that the task was wrong is an answer too
	Fault                    // its own fault: 5xx, a broken answer, no connection
	TimedOut                 // its own fault: no answer in time
	Throttled                // 429: it is well, and has too much to do
	Neutral                  // nothing: the request was cancelled, or the worker stops
)

func (o Outcome) String() string {
	switch o {
	case OK:
		return "ok"
	case Fault:
		return "fault"
	case TimedOut:
		return "timed out"
	case Throttled:
		return "throttled"
	}
	return "neutral"
}

// Concurrency is how many requests at a time a device takes. Devices say how
// many slots they have, and some say more than they can: they answer 429 or not
// in time. Then half as many are sent, and one more again after each round of
// good answers, up to what the device says: additive increase and
// multiplicative decrease, as in Chiu and Jain, Analysis of the Increase and
// Decrease Algorithms for Congestion Avoidance, 1989.
//
// The requests that were under way when it was halved tell of the time before:
// they do not halve it again (RFC 5681 says so of a window of TCP).
//
// It has no clock, and may be used by many goroutines.
type Concurrency struct {
	mu    sync.Mutex
	most  int // what the device says
	slots int
	good  int       // good answers since it last grew
	cut   time.Time // when it was last halved
}

// NewConcurrency begins with what the device says.
func NewConcurrency(slots int) *Concurrency {
	slots = max(1, slots)
	return &Concurrency{most: slots, slots: slots}
}

// Slots is how many requests the device takes at a time; at least 1.
func (c *Concurrency) Slots() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.slots
}

// Below is Slots when that is less than what the device says, else 0: what a
// [Health] tells.
func (c *Concurrency) Below() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.slots < c.most {
		return c.slots
	}
	return 0
}

// SetSlots is what the device says now. A device that says more than before is
// believed as far as it has shown no trouble.
func (c *Concurrency) SetSlots(n int) {
	n = max(1, n)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.slots == c.most || c.slots > n {
		c.slots, c.good = n, 0
	}
	c.most = n
}

// Ended takes the end of a request that took so long.
func (c *Concurrency) Ended(now time.Time, o Outcome, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch o {
	case OK:
		if c.slots >= c.most {
			return
		}
		if c.good++; c.good >= c.slots {
			c.slots, c.good = c.slots+1, 0
		}
	case Throttled, TimedOut:
		if !c.cut.IsZero() && !now.Add(-took).After(c.cut) {
			return
		}
		c.slots, c.good, c.cut = max(1, c.slots/2), 0, now
	case Fault, Neutral:
	}
}
