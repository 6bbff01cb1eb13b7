package routesim

import (
	"maps"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/router"
	"github.com/batchyard/batchyard/router/decide"
	"github.com/batchyard/batchyard/task"
)

// node is one router: the real routing code, its share of the log, and its timer.
type node struct {
	s       *sim
	i       int32
	name    string
	decider *decide.Decider
	logs    []*backlog // by topic
	recalls []recall   // tasks that it wants to read again
	gen     uint32     // of its timer
	wakeAt  int64      // -1: none
	view    []int      // by device: credits in use, as it must have believed at least
	held    int        // tasks that it was given and has not let go
	rests   int64      // until then some may wait for their time, and not for a device
	open    int        // credits taken and not given to a task yet
}

// backlog is what is outside the window of a topic.
type backlog struct {
	source string
	q      fifo           // not read yet
	read   int64          // records
	aside  map[int64]*job // read and set aside, by offset
}

// Lost is false: routers of a simulation neither join nor leave.
func (*backlog) Lost() bool { return false }

// Settled is true: nothing is written when a task comes.
func (*backlog) Settled() bool { return true }

// recall is a task to be read again.
type recall struct {
	log    *backlog
	wanted decide.Wanted
}

func (s *sim) addRouters() error {
	for i := range s.setup.Routers {
		n := &node{s: s, i: int32(i), name: "r" + string(rune('0'+i%10)), wakeAt: -1, view: make([]int, len(s.machines))}
		decider, err := router.NewDecider(s.rc, s.setup.Seed*64+uint64(i), n)
		if err != nil {
			return err
		}
		n.decider = decider
		s.nodes = append(s.nodes, n)
		// All routers read Redis at the start, and then each at its own phase.
		s.after(0, event{kind: evWake, i: n.i})
		s.after(1+s.random.phases.Int64N(int64(s.rc.RefreshInterval)), event{kind: evFleet, i: n.i})
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
	for _, l := range n.logs {
		if l.source == source {
			return l
		}
	}
	l := &backlog{source: source, aside: map[int64]*job{}}
	n.logs = append(n.logs, l)
	return l
}

// work lets the router read tasks and make decisions until it has read its log.
func (n *node) work() {
	s := n.s
	for s.bad == nil {
		n.read()
		wait := n.decider.Step(s.time())
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

// item is a task of the topic as the router reads it.
func (l *backlog) item(t *task.Task, offset int64) *decide.Item {
	return &decide.Item{
		Task: t, Owner: l, Offset: offset, Source: l.source, Size: int64(len(t.Input)) + 256, ReadyAt: t.ReadyAt(),
	}
}

// read reads the log, and again what the router has recalled.
func (n *node) read() {
	for _, l := range n.logs {
		for l.q.len() > 0 && n.s.bad == nil {
			j := l.q.pop()
			l.read++
			if !n.sort(l, j, decide.Wanted{Offset: l.read}) {
				n.s.fail("memory: router %s has no room for where task %s is", n.name, j.task.ID)
			}
		}
	}
	recalls := n.recalls
	n.recalls = nil
	for _, r := range recalls {
		j := r.log.aside[r.wanted.Offset]
		if j == nil {
			n.s.fail("conservation: router %s recalls offset %d, which it has not set aside", n.name, r.wanted.Offset)
			return
		}
		delete(r.log.aside, r.wanted.Offset)
		n.s.out.Recalled++
		n.sort(r.log, j, r.wanted)
	}
	if most := n.decider.Len(); most > n.s.out.MostHeld {
		n.s.out.MostHeld = most
	}
}

// sort puts a task into the window, or aside.
func (n *node) sort(l *backlog, j *job, at decide.Wanted) (ok bool) {
	it := l.item(j.task, at.Offset)
	it.Seen = at.Seen
	kept, _, ok := n.decider.Sort([]*decide.Item{it}, n.s.time())
	if len(kept) == 0 {
		l.aside[at.Offset] = j
		j.where = aside
		return ok
	}
	j.where = inWindow
	n.held++
	if at := j.task.ReadyAt(); !at.IsZero() {
		n.rests = max(n.rests, int64(at.Sub(epoch)))
	}
	if n.decider.Add(it, n.s.time()) != nil {
		n.s.fail("conservation: router %s says that it has task %s already", n.name, j.task.ID)
	}
	n.decider.Land(it.Owner, it.Offset)
	return ok
}

// more reports whether there is something to read.
func (n *node) more() bool {
	for _, l := range n.logs {
		if l.q.len() > 0 {
			return true
		}
	}
	return len(n.recalls) > 0
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
	f := decide.Fleet{
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
			s.fail("knowledge: the rate of %s is from the future", k.DeviceID)
		}
	}
	n.decider.UpdateFleet(f, now)
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
		n.decider.UpdateUsed(s.told)
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

// Assign sends tasks to their devices.
func (n *node) Assign(picks []decide.Pick, _ time.Time) {
	for i := range picks {
		n.assign(&picks[i])
	}
}

func (n *node) assign(a *decide.Pick) {
	s := n.s
	j := s.jobOf(a.Item.Task)
	if j == nil {
		return
	}
	d, ok := s.byID[a.Device.ID]
	l := s.acct.leases[a.Lease]
	switch {
	case j.where != inWindow || j.router != n.i:
		s.fail("conservation: router %s assigns task %s, which is not in its window", n.name, j.task.ID)
		return
	case !ok:
		s.fail("router %s assigns task %s to %q, which there is not", n.name, j.task.ID, a.Device.ID)
		return
	case l == nil || l.pool != a.Pool || l.pool != s.machines[d].pool || l.spent >= l.granted:
		s.fail("credits: the assignment of task %s to %s holds none", j.task.ID, a.Device.ID)
		return
	case a.Item.Task.Tried() != j.task.Tried():
		s.fail("task %s was tried %d times and router %s counts %d", j.task.ID, j.task.Tried(), n.name, a.Item.Task.Tried())
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

// Expire ends a task whose deadline passed while it waited.
func (n *node) Expire(it *decide.Item, now time.Time) {
	t := it.Task
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

// Park fails the run: no record of a simulation grows old.
func (n *node) Park(it *decide.Item, p decide.Parking) {
	n.s.fail("router %s parks task %s for %s", n.name, it.Task.ID, p.Reason)
}

// SetAside puts a task back into the log.
func (n *node) SetAside(it *decide.Item) {
	j := n.s.jobOf(it.Task)
	if j == nil {
		return
	}
	n.held--
	j.where = aside
	n.backlogOf(it.Source).aside[it.Offset] = j
}

// Recall reads tasks again.
func (n *node) Recall(o decide.Owner, wanted []decide.Wanted) {
	for _, w := range wanted {
		n.recalls = append(n.recalls, recall{o.(*backlog), w}) //nolint:forcetypeassert // they are all ours
	}
}

// Admit has nothing to do: whatever happens at the same virtual time comes as an event of its own.
func (n *node) Admit() {}
