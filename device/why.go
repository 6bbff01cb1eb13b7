package device

import (
	"slices"
	"time"
)

// Barriers names why a device may be out for a task, in the order in which they
// are looked at; routers count them in the audit log under the same names.
var Barriers = []string{"model", "tags", "silent", "draining", "ejected", "slow", "excluded"}

// Barrier says why the device cannot take a task that asks for this, as one of
// [Barriers]; empty when it can. It is what routers go by, for whoever wants to
// tell why a task waits.
func Barrier(d *Device, h Health, model string, needs, exclude []string, now time.Time) string {
	switch {
	case !d.Serves(model):
		return "model"
	case !d.HasTags(needs):
		return "tags"
	case d.Silent:
		return "silent"
	case d.Draining:
		return "draining"
	case h.OpenUntil.After(now):
		return "ejected"
	case h.SlowUntil.After(now):
		return "slow"
	case slices.Contains(exclude, d.ID):
		return "excluded"
	}
	return ""
}
