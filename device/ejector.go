package device

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"
)

// The states of an [Ejector], as [Health] tells them.
const (
	StateClosed   = "closed"    // requests go through
	StateOpen     = "open"      // ejected: none does
	StateHalfOpen = "half-open" // one request tests whether the device is well again
)

// EjectorConfig says when a device is let alone, and for how long. The zero
// value is usable.
type EjectorConfig struct {
	Faults  int           // faults in a row that eject a device; 0 means 5
	Ratio   float64       // share of faults that does, of at least Least requests within Window; 0 means 0.5
	Least   int           // 0 means 20
	Window  time.Duration // 0 means 10 s
	Open    time.Duration // the first ejection's time; doubled for each further one; 0 means 5 s
	OpenMax time.Duration // the longest; 0 means 2 min
	Healthy time.Duration // so long without an ejection, and the next is a first one again; 0 means 1 min
	Hang    float64       // nothing ended for so many times what a request takes: it hangs; 0 means 20
	HangMin time.Duration // but not before this; 0 means 1 s

	// Jitter returns a number from 0 to 1, and makes an ejection by up to a fifth
	// longer, so that devices that failed together are not tested together. Nil
	// means none.
	Jitter func() float64
}

func (c EjectorConfig) withDefaults() EjectorConfig {
	orElse := func(d *time.Duration, def time.Duration) {
		if *d <= 0 {
			*d = def
		}
	}
	orElse(&c.Window, 10*time.Second)
	orElse(&c.Open, 5*time.Second)
	orElse(&c.OpenMax, 2*time.Minute)
	orElse(&c.Healthy, time.Minute)
	orElse(&c.HangMin, time.Second)
	c.OpenMax = max(c.OpenMax, c.Open)
	if c.Faults <= 0 {
		c.Faults = 5
	}
	if c.Ratio <= 0 {
		c.Ratio = 0.5
	}
	if c.Least <= 0 {
		c.Least = 20
	}
	if c.Hang <= 0 {
		c.Hang = 20
	}
	return c
}

// Ejector decides when a device is let alone, from how its requests end.
//
//	        faults in a row, a share of faults,
//	        or it hangs                             Open × 2ⁿ, at most OpenMax
//	closed ──────────────────────────▶ open ────────────────────────────────▶ half-open
//	  ▲                                 ▲                                      │    │
//	  │                                 └────── its test fails or hangs ───────┘    │
//	  └──────────────────────────── its one test ends well ────────────────────────┘
//
// A device that fails at once is worse than one that fails slowly: its slots are
// free again while others work, it looks idle, and every policy that prefers
// idle devices feeds it. Faults that took less than half of what a request
// usually takes eject it after half as many.
//
// A device hangs when requests run there and none ended for Hang times what one
// usually takes. That is a suspicion, since long tasks are rare but exist: when
// one of them does end well, the device is tested at once, and the ejection does
// not count.
//
// The time of an ejection doubles each time, and is short again after the device
// was well for Healthy (Envoy's outlier detection does about this).
//
// How the breaker library is used: gobreaker counts and trips; what it would do
// by the clock (its rolling window, the end of the open state) is done here,
// because it asks the machine's clock and this type is told the time: by workers
// the real one, by a simulation a virtual one. So a breaker lasts one term, from
// the device being let in until it is ejected. In the half-open state the term is
// a probation: its first fault trips it, one request goes through at a time. The
// ends of requests of an earlier term go to that term's breaker, where they
// change nothing any more.
//
// It may be used by many goroutines.
type Ejector struct {
	cfg EjectorConfig

	mu        sync.Mutex
	state     string
	why       string // it was ejected, in figures
	hung      bool   // it was for hanging
	ejected   time.Time
	openUntil time.Time // while open
	opened    int       // ejections in a row
	closedAt  time.Time // when it was last let in
	expected  time.Duration

	term    int
	breaker *gobreaker.TwoStepCircuitBreaker[struct{}]
	cause   string // set by readyToTrip and by Check: why the breaker trips
	tripped bool   // set by the breaker's callback, which runs within a call of ours

	running  []flight
	lastLife time.Time // the last end that showed life
	fast     int       // quick faults in a row
	window   window
	changes  []Change
}

// flight is one request under way.
type flight struct {
	began time.Time
	term  int
	done  func(error)
}

// Change is a change of an ejector's state.
type Change struct {
	At    time.Time
	State string
	Why   string // of an ejection: in figures
	Hung  bool   // of an ejection: it hangs, what runs there may never end
}

// maxChanges bounds the changes that nobody asks for.
const maxChanges = 32

var (
	errFault   = errors.New("the device's fault")
	errNeutral = errors.New("not the device's fault")
)

// never is longer than any term: the breaker does not leave its open state by
// its own clock.
const never = time.Duration(math.MaxInt64)

// NewEjector returns an ejector that lets requests through.
func NewEjector(cfg EjectorConfig) *Ejector {
	e := &Ejector{cfg: cfg.withDefaults(), state: StateClosed}
	e.window.width = e.cfg.Window / buckets
	e.begin(time.Time{})
	return e
}

// begin starts a term.
func (e *Ejector) begin(now time.Time) {
	e.term++
	e.cause, e.tripped, e.fast, e.lastLife = "", false, 0, now
	e.window.clear()
	e.breaker = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Interval: 0, Timeout: never, // its clock has no say
		ReadyToTrip:  e.readyToTrip,
		IsSuccessful: func(err error) bool { return err == nil },
		IsExcluded:   func(err error) bool { return errors.Is(err, errNeutral) },
		OnStateChange: func(string, gobreaker.State, gobreaker.State) {
			e.tripped = true
		},
	})
}

// readyToTrip is asked by the breaker after each fault, under our lock.
func (e *Ejector) readyToTrip(c gobreaker.Counts) bool {
	all, faults := e.window.sum()
	share := 0.0
	if all > 0 {
		share = float64(faults) / float64(all)
	}
	switch {
	case e.cause != "": // it hangs
	case e.state == StateHalfOpen:
		e.cause = "its test failed"
	case int(c.ConsecutiveFailures) >= e.cfg.Faults:
		e.cause = fmt.Sprintf("%d faults in a row", c.ConsecutiveFailures)
	case e.fast >= (e.cfg.Faults+1)/2:
		e.cause = fmt.Sprintf("%d faults in a row, each in less than half of the usual %s", e.fast, round(e.expected))
	case all >= e.cfg.Least && share >= e.cfg.Ratio:
		e.cause = fmt.Sprintf("%.0f %% of %d requests failed", 100*share, all)
	}
	return e.cause != ""
}

// Allow reports whether a request may start now. In the half-open state that is
// one at a time.
func (e *Ejector) Allow(now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.turn(now)
	return e.allows()
}

func (e *Ejector) allows() bool {
	return e.state == StateClosed || e.state == StateHalfOpen && !e.testing()
}

func (e *Ejector) testing() bool {
	for _, r := range e.running {
		if r.term == e.term {
			return true
		}
	}
	return false
}

// turn does what is due by now.
func (e *Ejector) turn(now time.Time) {
	switch {
	case e.state == StateOpen && !now.Before(e.openUntil):
		e.begin(now)
		e.change(now, StateHalfOpen, "")
	case e.state == StateClosed && e.opened > 0 && now.Sub(e.closedAt) >= e.cfg.Healthy:
		e.opened = 0
	}
}

func (e *Ejector) change(now time.Time, state, why string) {
	e.state, e.why = state, why
	if len(e.changes) < maxChanges {
		e.changes = append(e.changes, Change{At: now, State: state, Why: why, Hung: state == StateOpen && e.hung})
	}
}

// Start is [Ejector.Allow] and [Ejector.Started] in one step, for who starts
// requests from several goroutines.
func (e *Ejector) Start(now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.turn(now)
	if !e.allows() {
		return false
	}
	e.started(now)
	return true
}

// StartProbe is [Ejector.Start] for a request that is to test the device although
// it is let alone: routers send one now and then when too many devices are. After
// the shortest time that a device is let alone for, such a request is its test.
func (e *Ejector) StartProbe(now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.state == StateOpen && !now.Before(e.ejected.Add(e.cfg.Open)) && now.Before(e.openUntil) {
		e.openUntil = now
	}
	e.turn(now)
	if !e.allows() {
		return false
	}
	e.started(now)
	return true
}

// Started says that a request goes out. Every one needs an Ended.
func (e *Ejector) Started(now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.turn(now)
	e.started(now)
}

func (e *Ejector) started(now time.Time) {
	r := flight{began: now}
	if e.state != StateOpen { // else it was not asked for: it runs, and counts nothing
		if done, err := e.breaker.Allow(); err == nil {
			r.term, r.done = e.term, done
		}
	}
	e.running = append(e.running, r)
}

// Ended says how a request ended that took so long: it is told from the others
// by when it began.
func (e *Ejector) Ended(now time.Time, o Outcome, took time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.turn(now)
	r, ok := e.take(now.Add(-took))
	if !ok {
		return
	}
	if r.term != e.term || r.done == nil || e.state == StateOpen {
		e.late(now, o)
		return
	}
	if o == OK || o == Throttled {
		e.lastLife = now
	}
	switch o {
	case OK:
		e.fast = 0
		e.window.add(now, false)
		r.done(nil)
		if e.state == StateHalfOpen {
			e.begin(now)
			e.closedAt = now
			e.change(now, StateClosed, "")
		}
	case Fault, TimedOut:
		if e.fast++; 2*took >= e.expected {
			e.fast = 0
		}
		e.window.add(now, true)
		r.done(errFault)
		if e.tripped {
			e.eject(now, false)
		}
	default:
		r.done(errNeutral)
	}
}

// take finds the request that began then. Clocks are not exact in every use: if
// there is none, it is the oldest.
func (e *Ejector) take(began time.Time) (flight, bool) {
	if len(e.running) == 0 {
		return flight{}, false
	}
	at := 0
	for i, r := range e.running {
		if r.began.Equal(began) {
			at = i
			break
		}
	}
	r := e.running[at]
	e.running = append(e.running[:at], e.running[at+1:]...)
	return r, true
}

// late takes the end of a request from before the device was ejected. A good one
// shows that a device that seemed to hang does not: it is tested at once.
func (e *Ejector) late(now time.Time, o Outcome) {
	if o != OK || e.state != StateOpen || !e.hung {
		return
	}
	e.openUntil, e.hung = now, false
	e.opened = max(0, e.opened-1)
}

// eject closes the device's door, for a time that grows.
func (e *Ejector) eject(now time.Time, hung bool) {
	e.opened++
	d := e.cfg.Open
	for i := 1; i < e.opened && d < e.cfg.OpenMax; i++ {
		d *= 2
	}
	d = min(d, e.cfg.OpenMax)
	if e.cfg.Jitter != nil {
		d += time.Duration(float64(d) / 5 * min(max(e.cfg.Jitter(), 0), 1))
	}
	e.openUntil, e.ejected, e.hung = now.Add(d), now, hung
	e.change(now, StateOpen, e.cause)
}

// Check looks whether the device hangs. expected is what its requests usually
// take, 0 when that is not known. To be called now and then.
func (e *Ejector) Check(now time.Time, expected time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.turn(now)
	if expected <= 0 {
		return
	}
	e.expected = expected
	if e.state == StateOpen {
		return
	}
	var oldest *flight
	for i := range e.running {
		if r := &e.running[i]; r.term == e.term && r.done != nil && (oldest == nil || r.began.Before(oldest.began)) {
			oldest = r
		}
	}
	if oldest == nil {
		return
	}
	since := e.lastLife
	if oldest.began.After(since) {
		since = oldest.began
	}
	quiet := now.Sub(since)
	if quiet < e.cfg.HangMin || float64(quiet) < e.cfg.Hang*float64(expected) {
		return
	}
	e.cause = fmt.Sprintf("nothing ended for %s where %s is usual", round(quiet), round(expected))
	oldest.done(errFault) // the breaker trips on it: readyToTrip finds the cause
	oldest.done = nil
	if e.tripped {
		e.eject(now, true)
	}
}

func round(d time.Duration) time.Duration {
	if d > time.Second {
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Millisecond)
}

// Health is what the routers are told: state, until when, how often in a row and
// why.
func (e *Ejector) Health(now time.Time) Health {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.turn(now)
	h := Health{State: e.state, Opened: e.opened, Why: e.why, At: now}
	if e.state == StateOpen {
		h.OpenUntil = e.openUntil
	}
	return h
}

// Changed reports whether there are Changes.
func (e *Ejector) Changed() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.changes) > 0
}

// Changes are the changes of state since the last call, the oldest first. When
// nobody asked for long the newest are missing.
func (e *Ejector) Changes() []Change {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.changes
	e.changes = nil
	return c
}

// window counts requests and faults of the last Window, in buckets.
type window struct {
	width  time.Duration
	counts [buckets]bucket
}

const buckets = 10

type bucket struct {
	slot        int64 // which stretch of time it counts
	all, faults int
}

func (w *window) clear() { w.counts = [buckets]bucket{} }

func (w *window) add(now time.Time, fault bool) {
	slot := now.UnixNano() / int64(max(1, w.width))
	b := &w.counts[((slot%buckets)+buckets)%buckets]
	if b.slot != slot {
		*b = bucket{slot: slot}
	}
	b.all++
	if fault {
		b.faults++
	}
	for i := range w.counts { // what is older is over
		if w.counts[i].slot <= slot-buckets {
			w.counts[i] = bucket{}
		}
	}
}

func (w *window) sum() (all, faults int) {
	for _, b := range w.counts {
		all += b.all
		faults += b.faults
	}
	return all, faults
}
