package learn

import (
	"sync"
	"time"
)

// Outcome is what the end of a request says about the device.
type Outcome int

// The outcomes.
const (
	OK        Outcome = iota // it answered; an answer that the task was invalid counts, too
	Fault                    // it is at fault: 5xx, a broken answer, no connection
	TimedOut                 // it is at fault: no answer in time
	Suspect                  // it answered with a fault, such as 500: it is at fault, or else the task
	Charged                  // a fault that is charged to the task, which failed on another device, too
	Throttled                // 429: it works, but has too much to do
	Neutral                  // says nothing: the request was cancelled, or the worker is stopping
)

func (o Outcome) String() string {
	switch o {
	case OK:
		return "ok"
	case Fault:
		return "fault"
	case TimedOut:
		return "timed out"
	case Suspect:
		return "suspect"
	case Charged:
		return "charged to the task"
	case Throttled:
		return "throttled"
	}
	return "neutral"
}

// Concurrency learns how many concurrent requests a device can handle. Devices report
// their slots, and some report more than they can serve: they answer 429 or time out. Then
// half as many requests are sent, and one more after each round of good answers, up to the
// reported number: additive increase and multiplicative decrease, as in Chiu and Jain,
// Analysis of the Increase and Decrease Algorithms for Congestion Avoidance, 1989.
//
// Requests that were in flight when it was halved say nothing about the new number and do
// not halve it again (RFC 5681 has the same rule for TCP's window).
//
// It has no clock, and may be used by many goroutines.
type Concurrency struct {
	mu    sync.Mutex
	most  int // what the device reports
	slots int
	good  int       // good answers since it last grew
	cut   time.Time // when it was last halved
}

// NewConcurrency starts with the number of slots that the device reports.
func NewConcurrency(slots int) *Concurrency {
	slots = max(1, slots)
	return &Concurrency{most: slots, slots: slots}
}

// Slots returns how many concurrent requests the device can handle; at least 1.
func (c *Concurrency) Slots() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.slots
}

// Below returns Slots if that is less than the device reports, else 0, as in [device.Health].
func (c *Concurrency) Below() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.slots < c.most {
		return c.slots
	}
	return 0
}

// SetSlots sets what the device reports now. If it reports more than before, that is
// believed unless it has shown trouble.
func (c *Concurrency) SetSlots(n int) {
	n = max(1, n)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.slots == c.most || c.slots > n {
		c.slots, c.good = n, 0
	}
	c.most = n
}

// Ended records the outcome of a request that took the given time.
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
	case Fault, Suspect, Charged, Neutral:
	}
}
