package router

import (
	"slices"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
)

// Core is the decisions of a router without its log, its Redis and its clock: what
// a simulation drives. It is the same code that [Router] runs. Not for use by
// several goroutines.
type Core struct {
	d  *decider
	fx Effects
}

// Effects is what a [Core] does to the world.
type Effects interface {
	// Acquire takes credits for a round of picks, in one atomic step; grants are in
	// the order of the wants.
	Acquire(wants []device.Want, asks []device.Ask) ([]device.Grant, error)
	// Assigned is told of a task that leaves with a credit.
	Assigned(a Assigned)
	// Expired is told of a task whose deadline passed while it waited.
	Expired(t *task.Task, now time.Time)
	// Parked is told of a task that is set aside in the log: Add it again at until.
	Parked(t *task.Task, until time.Time, reason string)
}

// Assigned is a task on its way to a device.
type Assigned struct {
	Task        *task.Task
	Device      string
	Pool, Lease string
	Attempt     int
	IdleSlots   int // of the device, when it was picked
	Probe       bool
	At          time.Time
	Detail      []byte // why, the JSON of the event
}

// NewCore returns the decisions of one router; seed makes its random choices.
func NewCore(cfg Config, seed uint64, fx Effects) (*Core, error) {
	policy, err := NewPolicy(cfg.Policy, cfg)
	if err != nil {
		return nil, err
	}
	c := &Core{fx: fx}
	c.d, err = newDecider(cfg, policy, seed, c)
	return c, err
}

// Add takes a task that came from the topic; false: it is in the window already.
func (c *Core) Add(now time.Time, source string, t *task.Task) bool {
	it := &item{task: t, source: source, size: int64(len(t.Input)) + 256, ready: t.ReadyAt(), index: -1, wakeAt: -1}
	return c.d.add(it, now)
}

// Full says that the window takes no more of a topic: the log has to wait.
func (c *Core) Full(source string) bool { return c.d.window.full(source, 1) }

// Len is the number of tasks in the window.
func (c *Core) Len() int { return c.d.window.len() }

// Fleet takes what Redis says; call it every Config.Refresh.
func (c *Core) Fleet(now time.Time, f Fleet) {
	f.Devices = slices.Clone(f.Devices)
	c.d.fleet(f, now)
}

// Freed takes how many credits are in use of pools that got room.
func (c *Core) Freed(used map[string]int) { c.d.freed(used) }

// Step does all that can be done now, and says when to call it again at the latest.
func (c *Core) Step(now time.Time) time.Duration { return c.d.step(now) }

func (c *Core) acquire(wants []device.Want, asks []device.Ask) ([]device.Grant, error) {
	return c.fx.Acquire(wants, asks)
}

func (c *Core) assigned(picks []pick, now time.Time) {
	for i := range picks {
		p := &picks[i]
		c.fx.Assigned(Assigned{
			Task: p.item.task, Device: p.state.ID, Pool: p.pool().name, Lease: p.lease, Attempt: p.item.task.Tried() + 1,
			IdleSlots: p.idle, Probe: p.state.probe, At: now, Detail: p.detail,
		})
	}
}

func (c *Core) expired(it *item, now time.Time) { c.fx.Expired(it.task, now) }

func (c *Core) park(it *item, reason string, now time.Time) {
	c.fx.Parked(it.task, later(now.Add(c.d.cfg.ParkFor), it.ready), reason)
}

func (c *Core) arrived() {}
