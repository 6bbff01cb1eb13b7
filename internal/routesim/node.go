package routesim

import (
	"maps"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/router"
	"github.com/batchyard/batchyard/task"
)

// node is one router: the real routing code, its share of the log, and its timer.
type node struct {
	s      *sim
	i      int32
	name   string
	core   *router.Core
	logs   []backlog // by topic: tasks that the window has no room for
	gen    uint32    // of its timer
	wakeAt int64     // -1 means the timer is not set
	view   []int     // by device: credits in use, as far as the router must know
	held   int       // tasks added to the router that have not left it
	rests  int64     // until this time, tasks may be waiting for their NotBefore rather than a device
	open   int       // credits acquired but not yet used by an assignment
}

// backlog is the part of a topic that is outside the window.
type backlog struct {
	source string
	q      fifo
}

func (s *sim) addRouters() error {
	for i := range s.setup.Routers {
		n := &node{s: s, i: int32(i), name: "r" + string(rune('0'+i%10)), wakeAt: -1, view: make([]int, len(s.machines))}
		core, err := router.NewCore(s.rc, s.setup.Seed*64+uint64(i), n)
		if err != nil {
			return err
		}
		n.core = core
		s.nodes = append(s.nodes, n)
		// All routers read Redis at the start, and then each at its own phase.
		s.after(0, event{kind: evWake, i: n.i})
		s.after(1+s.random.phases.Int64N(int64(s.rc.Refresh)), event{kind: evFleet, i: n.i})
	}
	for _, n := range s.nodes {
		n.readFleet()
	}
	return nil
}

// enterLog appends a task to its router's log. The router reads it as soon as its
// window has room.
func (s *sim) enterLog(j *job) {
	n := s.nodes[j.router]
	j.where = inLog
	n.backlogOf(j.source).q.push(j)
	n.work()
}

func (n *node) backlogOf(source string) *backlog {
	for i := range n.logs {
		if n.logs[i].source == source {
			return &n.logs[i]
		}
	}
	n.logs = append(n.logs, backlog{source: source})
	return &n.logs[len(n.logs)-1]
}

// work lets the router read tasks and make decisions until its window is full or
// its log is empty.
func (n *node) work() {
	s := n.s
	for s.bad == nil {
		n.read()
		wait := n.core.Step(s.time())
		if n.open != 0 {
			s.fail("credits: router %s acquired %d that it did not use", n.name, n.open)
		}
		if !n.more() {
			n.wake(wait)
			break
		}
	}
	n.checkWork()
}

// read adds tasks from the log to the window while it has room.
func (n *node) read() {
	for i := range n.logs {
		l := &n.logs[i]
		for l.q.len() > 0 && !n.core.Full(l.source) {
			j := l.q.pop()
			j.where = inWindow
			n.held++
			if at := j.task.ReadyAt(); !at.IsZero() {
				n.rests = max(n.rests, int64(at.Sub(epoch)))
			}
			if !n.core.Add(n.s.time(), l.source, j.task) {
				n.s.fail("conservation: router %s claims that it already has task %s", n.name, j.task.ID)
				return
			}
		}
	}
	if most := n.core.Len(); most > n.s.out.MostHeld {
		n.s.out.MostHeld = most
	}
}

// more reports whether the log has tasks and the window has room for them.
func (n *node) more() bool {
	for i := range n.logs {
		if l := &n.logs[i]; l.q.len() > 0 && !n.core.Full(l.source) {
			return true
		}
	}
	return false
}

// wake sets the timer. An earlier timer is left alone and rearmed when it fires,
// which is cheaper than an event for every change.
func (n *node) wake(wait time.Duration) {
	at := n.s.now + int64(max(wait, time.Microsecond))
	if n.wakeAt > n.s.now && n.wakeAt <= at {
		return
	}
	n.wakeAt = at
	n.gen++
	n.s.events.push(event{at: at, kind: evWake, i: n.i, gen: n.gen})
}

// readFleet gives the router the current content of the virtual Redis.
func (n *node) readFleet() {
	s := n.s
	now := s.time()
	used := make(map[string]int, len(s.machines))
	for i, m := range s.machines {
		used[m.pool] = s.acct.used[m.pool]
		n.view[i] = used[m.pool]
	}
	f := router.Fleet{
		Devices: make([]device.Device, 0, len(s.redis.devices)), Rates: maps.Clone(s.redis.rates), Healths: maps.Clone(s.redis.healths),
		Used: used, Routers: len(s.nodes),
	}
	for _, d := range s.redis.devices {
		if d.At.After(now) {
			s.fail("knowledge: the heartbeat of %s is from the future", d.ID)
		}
		d.Age = now.Sub(d.At)
		f.Devices = append(f.Devices, d)
	}
	for k, r := range f.Rates {
		if r.At.After(now) {
			s.fail("knowledge: the rate of %s is from the future", k.Device)
		}
	}
	n.core.Fleet(now, f)
	if n.s.now > 0 {
		n.work()
	}
}

// hear tells the routers the credits in use of a pool that has room. The order of
// the routers is random.
func (s *sim) hear(i int32, used int) {
	clear(s.told)
	s.told[s.machines[i].pool] = used
	first := 0
	if len(s.nodes) > 1 {
		first = s.random.order.IntN(len(s.nodes))
	}
	for k := range s.nodes {
		n := s.nodes[(first+k)%len(s.nodes)]
		n.view[i] = used
		n.core.Freed(s.told)
		n.work()
	}
}

// Acquire takes credits from the account that all routers share.
func (n *node) Acquire(wants []device.Want, asks []device.Ask) ([]device.Grant, error) {
	s := n.s
	grants, freed := s.acct.acquire(s.now/int64(time.Millisecond), n.name, wants, asks)
	for i, g := range grants {
		if g.N > 0 && g.Used > wants[i].Limit {
			s.fail("credits: %d of %s are in use, but the limit is %d", g.Used, g.Pool, wants[i].Limit)
		}
		n.open += g.N
		if d, ok := s.byPool[g.Pool]; ok {
			n.view[d] = max(n.view[d]+g.N, g.Used) // room freed by other routers is announced separately
		}
	}
	s.announceFreed(freed)
	return grants, nil
}

// Assigned sends a task to its device.
func (n *node) Assigned(a router.Assigned) {
	s := n.s
	j := s.jobOf(a.Task)
	if j == nil {
		return
	}
	d, ok := s.byID[a.Device]
	l := s.acct.leases[a.Lease]
	switch {
	case j.where != inWindow || j.router != n.i:
		s.fail("conservation: router %s assigns task %s, which is not in its window", n.name, j.task.ID)
		return
	case !ok:
		s.fail("router %s assigns task %s to unknown device %q", n.name, j.task.ID, a.Device)
		return
	case l == nil || l.pool != a.Pool || l.pool != s.machines[d].pool || l.spent >= l.granted:
		s.fail("credits: the assignment of task %s to %s holds no credit", j.task.ID, a.Device)
		return
	case a.Attempt != j.task.Tried()+1:
		s.fail("task %s was tried %d times, but its next attempt has number %d", j.task.ID, j.task.Tried(), a.Attempt)
		return
	}
	l.spent++
	n.open--
	n.held--
	j.where, j.device, j.lease, j.here = onTheWay, d, a.Lease, 0
	j.chosen = s.now
	if !j.seen {
		j.seen = true
		if j.arrived >= s.from && j.arrived < s.to {
			s.out.Streams[j.stream].Chosen.Add(seconds(s.now - j.arrived))
		}
	}
	s.out.Routed++
	s.out.Trace = (s.out.Trace ^ uint64(d+1) ^ uint64(s.now)<<8) * 0x100000001b3
	s.after(s.hop, event{kind: evReach, job: j})
}

// Expired ends a task whose deadline passed while it waited.
func (n *node) Expired(t *task.Task, now time.Time) {
	j := n.s.jobOf(t)
	if j == nil {
		return
	}
	if t.Deadline.IsZero() || t.Deadline.After(now) {
		n.s.fail("router %s expires task %s before its deadline", n.name, t.ID)
	}
	n.held--
	n.s.end(j, failed)
}

// Parked keeps a task in the parked topic until it is due.
func (n *node) Parked(t *task.Task, until time.Time, _ string) {
	s := n.s
	j := s.jobOf(t)
	if j == nil {
		return
	}
	n.held--
	j.where, j.source, j.task = aside, topicParked, t
	s.out.Parked++
	s.after(int64(until.Sub(s.time())), event{kind: evUnpark, job: j})
}
