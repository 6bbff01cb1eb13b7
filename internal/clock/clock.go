// Package clock is the time on which all processes of an installation agree.
//
// The clocks of machines differ: by milliseconds as a rule, by hours after a mistake. What one process
// writes and another compares with its own clock must not depend on that, so times that leave a process,
// and decisions about such times, use [Now]. It is the time of a reference, Redis, which every stage asks
// anyway: [Observe] takes what the reference said, and from then on Now counts from there by the monotonic
// clock, so that not even a step of the machine's clock changes it. docs/time.md lists which clock
// decides what.
//
// Until the reference has answered once, Now is the machine's clock. Durations within a process (timeouts,
// backoffs, latencies) use time.Now and its monotonic reading as usual.
//
// For tests, the variable BATCHYARD_TEST_CLOCK sets the machine's clock wrong: see [Skew].
package clock

import (
	"sync/atomic"
	"time"
)

// tolerance is how much the reference may differ from what is expected, beyond the uncertainty of the
// answer's age, before the time is corrected. Corrections are rare that way.
const tolerance = 20 * time.Millisecond

// anchor is a moment by both clocks.
type anchor struct {
	local     time.Time // with its monotonic reading
	reference time.Time
}

func (a *anchor) at(local time.Time) time.Time { return a.reference.Add(local.Sub(a.local)) }

var agreed atomic.Pointer[anchor]

// Now returns the time on which all processes agree.
func Now() time.Time {
	if a := agreed.Load(); a != nil {
		return a.at(time.Now())
	}
	return Machine()
}

// Until returns how long it takes until then.
func Until(then time.Time) time.Duration { return then.Sub(Now()) }

// Since returns how long ago that was.
func Since(then time.Time) time.Duration { return Now().Sub(then) }

// Machine returns what this machine's clock says, which may be wrong.
func Machine() time.Time {
	now := time.Now()
	if s := skew(); s != nil {
		return now.Add(s.at(now))
	}
	return now
}

// Observe takes the answer of the reference to a question that was asked at the given time (of time.Now),
// and was answered just now. It returns how far this machine's clock is ahead of the reference. It may be
// called from any goroutine.
func Observe(reference, asked time.Time) (ahead time.Duration) {
	now, machine := time.Now(), Machine()
	half := now.Sub(asked) / 2
	a := &anchor{local: asked.Add(half), reference: reference.Round(0)}
	old := agreed.Load()
	if old == nil || old.at(a.local).Sub(a.reference).Abs() > half+tolerance {
		agreed.Store(a)
	}
	return machine.Round(0).Sub(a.at(now))
}
