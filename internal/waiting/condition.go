package waiting

import (
	"sync/atomic"
	"time"
)

// Condition is something that lasts for a while and is in the way, such as a service that does not answer. The zero value
// does not hold. It may be used from any goroutine.
type Condition struct{ now atomic.Pointer[condition] }

type condition struct {
	since time.Time
	cause string
}

// Begin says that it holds; since when, the first of several calls decides.
func (c *Condition) Begin(cause string) {
	c.now.CompareAndSwap(nil, &condition{time.Now(), cause})
}

// End says that it holds no longer.
func (c *Condition) End() {
	if c.now.Load() != nil {
		c.now.Store(nil)
	}
}

// Add adds what waits because of it.
func (c *Condition) Add(l *List, r Reason, what string) (holds bool) {
	is := c.now.Load()
	if is == nil {
		return false
	}
	l.Add(Oldest{Reason: r, What: what, Since: is.since, Still: is.since, Cause: is.cause})
	return true
}
