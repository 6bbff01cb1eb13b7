package device

import (
	"cmp"
	"slices"
	"time"

	"github.com/batchyard/batchyard/internal/waiting"
)

// Reason is why a device cannot run a task. The zero value means that it can.
type Reason int

// The reasons, in the order in which [Eligible] checks them.
const (
	CanRun          Reason = iota
	ModelNotServed         // it does not serve the model
	TagMissing             // it lacks a capability tag
	DeclinedTask           // it has refused the task, and would again
	DeclinesModel          // it lately refused every request for the endpoint and model, or its context is too short
	IsSilent               // it missed its heartbeats
	IsDown                 // it does not answer its agent
	IsDraining             // it, or an operator, asked for no new work
	IsUnserved             // no batcher reads its assignments, or no worker its batches
	BreakerIsOpen          // its breaker is open
	IsThrottled            // it asked for a pause
	ExcludedForTask        // the task has failed there
	ReasonCount     = iota // how many there are, CanRun included
)

var reasonNames = [ReasonCount]string{"", "model", "tags", "declined", "declines", "silent", "down", "draining", "unserved", "breaker_open", "throttled", "excluded"}

// String is the name in audit details and in `tasks why`; empty for [CanRun].
func (r Reason) String() string { return reasonNames[r] }

// ReasonNames lists the names of all reasons but [CanRun], in order.
func ReasonNames() []string { return slices.Clone(reasonNames[1:]) }

// waitingFor translates reasons.
var waitingFor = [ReasonCount]waiting.Reason{
	CanRun: waiting.Busy, ModelNotServed: waiting.NoDevice, TagMissing: waiting.NoDevice,
	DeclinedTask: waiting.NoDevice, DeclinesModel: waiting.NoDevice, IsSilent: waiting.Silent, IsDown: waiting.Down,
	IsDraining: waiting.Draining, IsUnserved: waiting.Unserved, BreakerIsOpen: waiting.BreakerOpen,
	IsThrottled: waiting.Throttled, ExcludedForTask: waiting.BreakerOpen,
}

// Waiting says why a task waits that no device can run: ask it of the greatest of the devices' reasons, which is that of
// the device that has least wrong with it.
func (r Reason) Waiting() waiting.Reason { return waitingFor[r] }

// Requirement is what a task needs of a device.
type Requirement struct {
	Endpoint string
	Model    string
	Size     int      // the [SizeClass] of the task
	Needs    []string // capability tags
	Exclude  []string // devices that must not be tried again
	Declined []string // devices that have refused the task
}

// MaxAwaited is how long a silent device is waited for by tasks that all others have refused.
const MaxAwaited = 5 * time.Minute

// CouldServe reports whether the device could run such tasks, now or when it is back.
func (d *Device) CouldServe(want *Requirement) bool {
	return d.Serves(want.Model) && d.HasTags(want.Needs) && !(d.Silent && d.Age > MaxAwaited)
}

// Eligible decides whether a device may run a task at all, regardless of whether it has
// room. It is the only place that decides this: routers assign by it, and `tasks why`
// explains by it. The gate comes from [Gates].
func Eligible(d *Device, h *Health, g Gate, want *Requirement, now time.Time) Reason {
	switch {
	case d.Problem != "" && len(d.Models) == 0 && d.HasTags(want.Needs):
		return IsDown // what it serves is not known
	case !d.Serves(want.Model):
		return ModelNotServed
	case !d.HasTags(want.Needs):
		return TagMissing
	case slices.Contains(want.Declined, d.ID):
		return DeclinedTask
	case h.Declining(want.Endpoint, want.Model, want.Size, now), d.tooShort(h, want):
		return DeclinesModel
	case d.Silent:
		return IsSilent
	case d.Problem != "":
		return IsDown
	case d.Draining:
		return IsDraining
	case d.Unserved:
		return IsUnserved
	case g == GateShut:
		return BreakerIsOpen
	case h.ThrottledUntil.After(now):
		return IsThrottled
	case slices.Contains(want.Exclude, d.ID):
		return ExcludedForTask
	}
	return CanRun
}

// Gate is what a device's breaker means for new tasks, given the rest of the fleet.
type Gate int

// The gates.
const (
	GateOpen  Gate = iota // the breaker lets requests through
	GateProbe             // the breaker is open, but so are too many others: one task at a time
	GateShut              // the breaker is open: no tasks
)

// Gates decides what each open breaker means. At most half of the live devices are shut
// out (but one that is alone may be), those whose breakers opened most often in a row
// first: if all devices fail, the cause is probably elsewhere, and some tasks must find
// out when it is over. The other devices with open breakers get one task at a time. The
// answer is in the order of the devices; healths has the health of each.
func Gates(devices []*Device, healths []*Health, now time.Time) []Gate {
	gates := make([]Gate, len(devices))
	var open []int
	alive := 0
	for i, d := range devices {
		if d.Silent || d.Draining || d.Problem != "" {
			continue
		}
		alive++
		if healths[i].OpenUntil.After(now) {
			open = append(open, i)
		}
	}
	slices.SortStableFunc(open, func(a, b int) int {
		return cmp.Or(cmp.Compare(healths[b].Opened, healths[a].Opened), healths[b].OpenUntil.Compare(healths[a].OpenUntil))
	})
	for rank, i := range open {
		gates[i] = GateProbe
		if rank < max(1, alive/2) {
			gates[i] = GateShut
		}
	}
	return gates
}
