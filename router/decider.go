package router

import (
	"math/rand/v2"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
)

// effects is what a decider does to the world. The scheduler does it for real; a
// simulation takes note of it.
type effects interface {
	// acquire takes credits, and says for which pools tasks of which band wait; one
	// atomic step.
	acquire(wants []device.Want, asks []device.Ask) ([]device.Grant, error)
	// assigned takes the picks of a round, sorted by device; their tasks are out of
	// the window.
	assigned(picks []pick, now time.Time)
	expired(it *item, now time.Time)
	// park sets a task aside in the log, where it waits by time.
	park(it *item, reason string, now time.Time)
	// arrived lets what has come meanwhile into the window, between two rounds.
	arrived()
}

// decider is the router without its log, its Redis and its clock: the tasks that
// wait, what is known of the fleet, and the decisions. Everything happens on the
// goroutine of its owner, at the time that the owner says it is.
type decider struct {
	cfg    Config
	policy Policy
	window *window
	view   *view
	rng    *rand.Rand
	fx     effects

	round   uint64
	parked  bool      // tasks parked for want of a device are to be looked at
	retryAt time.Time // after an error of Redis: no round before
	backoff time.Duration
	relief  time.Time           // no relief of the window before
	resume  time.Time           // a class pauses for tasks of other routers until then; zero: none does
	asked   map[string]askedFor // what other routers know of our waiting tasks
	askAt   time.Time           // not told again before
	wants   []device.Want
	wantAt  map[*pool]int
	held    []*item
	aside   []*queue
	kept    int              // picks of the last round that got no credit because a higher band elsewhere asks for it
	owedAt  [bands]time.Time // what others get of the band's share is counted up to then
}

type askedFor struct{ band, n int }

func newDecider(cfg Config, policy Policy, seed uint64, fx effects) (*decider, error) {
	weights, err := weightsOf("router.tenant_weights", cfg.Tenants)
	if err != nil {
		return nil, err
	}
	d := &decider{
		cfg: cfg, window: newWindow(cfg, weights), view: newView(cfg), fx: fx,
		rng:   rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15)), //nolint:gosec // choices, not secrets
		asked: map[string]askedFor{}, wantAt: map[*pool]int{},
	}
	d.setPolicy(policy, cfg.Binding, time.Time{}) // there is no device yet
	return d, nil
}

// setPolicy takes another policy, from the next pick on. How many credits a device
// has depends on it, too.
func (d *decider) setPolicy(p Policy, binding string, now time.Time) {
	d.policy = p
	d.view.late = binding == "late" || binding != "early" && p.Late()
	d.view.gen++
	o, ok := p.(byArrival)
	d.window.byArrival(ok && o.ByArrival())
	for _, pl := range d.view.pools {
		pl.Note = 0
	}
	d.view.limits(now)
}

// add takes a task into the window; false if it is in it already. A task that
// nothing can run is set aside at once when the window is filling: a crowd of
// them passes through and holds up nobody behind it.
func (d *decider) add(it *item, now time.Time) bool {
	d.parked = d.parked || it.early
	if !d.window.add(it, now) {
		return false
	}
	if it.class.unable && it.index >= 0 && d.window.full(it.source, crowdedShare) {
		d.setAside(it, parkedForDevice, now)
	}
	return true
}

// fleet takes what was read from Redis.
func (d *decider) fleet(f Fleet, now time.Time) {
	d.view.update(f, now)
	d.parked = true
	d.window.sweep()
	d.unblock(now)
}

// freed takes how many credits are in use of pools that got room; nil: it is not
// known of which.
func (d *decider) freed(used map[string]int) {
	if used == nil { // the next grant tells the truth
		for _, p := range d.view.pools {
			p.Used = 0
		}
	}
	d.view.credits(used)
}

// unblock shows the queues of classes that a device can run now, the fleet being
// another.
func (d *decider) unblock(now time.Time) {
	for _, c := range d.window.classes {
		if !c.unable || len(d.view.look(c, now, d.rng).states) == 0 {
			continue
		}
		c.unable = false
		for _, q := range c.queues {
			if q.ready.len() > 0 {
				d.window.bring(q)
			}
		}
	}
}

// step does everything that can be done now and returns how long nothing needs
// to be looked at.
func (d *decider) step(now time.Time) time.Duration {
	if d.view.pass(now) {
		d.parked = true
		d.unblock(now)
	}
	if d.parked { // some came, or the fleet is another
		d.parked = false
		d.window.wakeEarly(now, func(c *class) bool { return len(d.view.look(c, now, d.rng).states) > 0 })
	}
	d.window.due(now, func(it *item) { d.fx.expired(it, now) })
	d.resume = time.Time{}
	for !now.Before(d.retryAt) && d.rounds(now) {
		d.fx.arrived()
	}
	wait := d.cfg.Refresh
	if d.relieve(now) {
		wait = min(wait, reliefEvery)
	}
	again := time.Time{} // before the others forget what they know
	if len(d.asked) > 0 {
		again = d.askAt
	}
	for _, at := range []time.Time{d.window.next(), d.view.changes, d.resume, again} {
		if !at.IsZero() {
			wait = min(wait, max(0, at.Sub(now)))
		}
	}
	if now.Before(d.retryAt) {
		wait = min(wait, d.retryAt.Sub(now))
	}
	return max(wait, time.Millisecond)
}

// rounds makes one round of picks; true when another one may find more.
func (d *decider) rounds(now time.Time) bool {
	picks, more := d.plan(now)
	asks := d.asks(now)
	if len(picks)+len(asks) == 0 {
		return false
	}
	wanted := len(picks)
	picks, err := d.take(picks, asks, now)
	if err != nil {
		d.backoff = min(max(2*d.backoff, 50*time.Millisecond), 2*time.Second)
		d.retryAt = now.Add(d.backoff/2 + time.Duration(d.rng.Int64N(int64(d.backoff))))
		return false
	}
	d.backoff = 0
	if len(picks) > 0 {
		d.fx.assigned(picks, now)
	}
	// What is kept for others stays so for now, whatever class asks next.
	return more || len(picks)+d.kept < wanted
}

// cancel takes a task that somebody cancelled out of the window.
func (d *decider) cancel(k task.Key) (*item, bool) {
	it := d.window.byKey[k]
	if it == nil {
		return nil, false
	}
	d.window.remove(it)
	return it, true
}
