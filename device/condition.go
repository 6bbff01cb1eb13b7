package device

import (
	"fmt"
	"time"
)

// State is how a device is, for people.
type State string

// The states, worst first. A device in any but [StateUp] and [StateFailing] gets no work.
const (
	StateSilent   State = "silent"   // it missed its heartbeats
	StateDown     State = "down"     // it does not answer its agent
	StateDraining State = "draining" // it, or an operator, asked for no new work
	StateUnserved State = "unserved" // no batcher reads its assignments, or no worker its batches
	StateBroken   State = "open"     // its circuit breaker is open
	StateFailing  State = "failing"  // the last request failed, or its breaker is half open
	StateUp       State = "up"
)

// States lists all states, worst first.
var States = []State{StateSilent, StateDown, StateDraining, StateUnserved, StateBroken, StateFailing, StateUp}

// Condition is the state of a device, why it is in it, and since when.
type Condition struct {
	State  State
	Reason string
	Since  time.Time // zero: not known
}

// Condition says how a device is. Its gate may be different from its breaker: see [Gates].
func (d *Device) Condition(h *Health, now time.Time) Condition {
	switch {
	case d.Silent:
		return Condition{StateSilent, "no heartbeat: its agent, or the API that the agent reports to, is not reached", d.At}
	case d.Problem != "":
		return Condition{StateDown, d.Problem, d.ChangedAt}
	case d.Drained:
		return Condition{StateDraining, "an operator drained it", d.DrainedAt}
	case d.Draining:
		return Condition{StateDraining, "its heartbeat says so", d.ChangedAt}
	case d.Unserved:
		return Condition{StateUnserved, "no batcher reads its assignments, or no worker its batches", time.Time{}}
	case h.State == StateOpen || h.State == StateHalfOpen:
		return h.broken()
	case h.Failing != "":
		return Condition{StateFailing, h.Failing, h.Since}
	case h.ThrottledUntil.After(now):
		return Condition{StateUp, fmt.Sprintf("it asked for a pause of %s", max(time.Second, h.ThrottledUntil.Sub(now).Round(time.Second))), d.ChangedAt}
	}
	return Condition{StateUp, "", d.ChangedAt}
}

// broken describes a device whose breaker is not closed.
func (h *Health) broken() Condition {
	c := Condition{StateBroken, h.Why, h.Since}
	if h.State == StateHalfOpen {
		c.State, c.Reason = StateFailing, "tested with one request at a time, after: "+h.Why
	}
	if h.Failing != "" {
		c.Reason += "; the last: " + h.Failing
	}
	return c
}
