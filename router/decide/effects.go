package decide

import (
	"time"

	"github.com/batchyard/batchyard/device"
)

// Effects is what a [Decider] does to the world. The router does it for real; a simulation keeps
// books of it.
type Effects interface {
	// Acquire takes the credits of a round and publishes which full pools tasks of this router
	// wait for, in one atomic step. The grants are in the order of the wants.
	Acquire(wants []device.Want, asks []device.Ask) ([]device.Grant, error)
	// Assign sends tasks to their devices. The picks are sorted by device; their items have left
	// the window. It must not keep the slice.
	Assign(picks []Pick, now time.Time)
	// Expire ends a task whose deadline passed while it waited. It has left the window.
	Expire(it *Item, now time.Time)
	// Park writes a task back to the log. It has left the window.
	Park(it *Item, p Parking)
	// SetAside frees the memory of a task that has left the window. It will be recalled.
	SetAside(it *Item)
	// Recall reads tasks of an owner again that were set aside. They are to be sorted when they come.
	Recall(o Owner, wanted []Wanted)
	// Admit adds what has arrived meanwhile. The decider calls it between two rounds.
	Admit()
}

// Parking is why and when a task is parked.
type Parking struct {
	Reason string
	Now    time.Time
}

// Pick is a task on its way to a device.
type Pick struct {
	Item      *Item
	Device    *device.Device // as of its last heartbeat; valid during the call
	Pool      string         // that the credit is from
	Lease     string         // of the credit
	IdleSlots int            // of the device, when it was picked
	Probe     bool           // its breaker is open, and this task tests it
	Why       []byte         // JSON for the audit log

	view     *deviceView
	charge   charge // what the flow was charged for it
	priority int    // whose credits it takes: its own, or the highest when its share owes it the turn
}

func (p *Pick) pool() *pool { return p.view.pool(p.Item.demand) }
