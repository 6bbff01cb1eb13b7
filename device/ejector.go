package device

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"
)

// The states of a breaker, as in [Health.State].
const (
	StateClosed   = "closed"    // requests go through
	StateOpen     = "open"      // no requests
	StateHalfOpen = "half-open" // one request at a time tests whether the device has recovered
)

// EjectorConfig determines when the breaker of a device opens, and for how long. The zero
// value is usable.
type EjectorConfig struct {
	Faults  int           // consecutive faults that open it; 0 means 5
	Ratio   float64       // fraction of faults that opens it, among at least Least requests within Window; 0 means 0.5
	Least   int           // 0 means 20
	Window  time.Duration // 0 means 10 s
	Open    time.Duration // how long it opens first; doubled each further time; 0 means 5 s
	OpenMax time.Duration // longest time it opens; 0 means 2 min
	Healthy time.Duration // after this long without opening, Open applies again; 0 means 1 min
	Hang    float64       // no response for this many times the usual duration counts as a hang; 0 means 20
	HangMin time.Duration // but not sooner than this; 0 means 1 s

	// Jitter returns a number from 0 to 1. It lengthens the open time by up to a fifth, so
	// that devices that failed together are not tested together. Nil means no jitter.
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

// Ejector is the circuit breaker of a device. It decides from the outcomes of requests
// whether more may be sent.
//
//	        consecutive faults, fraction of
//	        faults, or hang                         Open × 2ⁿ, at most OpenMax
//	closed ──────────────────────────▶ open ────────────────────────────────▶ half-open
//	  ▲                                 ▲                                      │    │
//	  │                                 └────── its probe fails or hangs ──────┘    │
//	  └─────────────────────────────── its probe succeeds ──────────────────────────┘
//
// A device that fails fast is worse than one that fails slowly: its slots are free while
// others work, it looks idle, and every policy that prefers idle devices sends it more.
// Faults that took less than half the usual duration of a request open the breaker after
// half as many.
//
// A device hangs when requests are running and none has ended for Hang times the usual
// duration. That is only a suspicion, since long tasks are rare but exist: if one of them
// does succeed, the device is probed at once, and this opening does not count.
//
// The open time doubles each time and starts over once the device has been healthy for
// Healthy (Envoy's outlier detection is similar).
//
// How gobreaker is used: it counts and trips. Whatever it would do by the clock (its
// rolling window, the end of the open state) is done here, because it reads the machine's
// clock, and this type gets the time from its caller: workers pass the real time, a
// simulation a virtual one. So each gobreaker lasts one term, from the device being let in
// until the breaker opens. In the half-open state the term is a probation: the first fault
// trips it, and one request runs at a time. When a request of an earlier term ends,
// that term's gobreaker gets it, which changes nothing.
//
// It may be used by many goroutines.
type Ejector struct {
	cfg EjectorConfig

	mu        sync.Mutex
	state     string
	why       string // why it opened, in figures
	hung      bool   // it opened because the device hung
	ejected   time.Time
	openUntil time.Time // while open
	opened    int       // how often it opened in a row
	closedAt  time.Time // when it last closed
	expected  time.Duration

	term    int
	breaker *gobreaker.TwoStepCircuitBreaker[struct{}]
	cause   string // why gobreaker trips; set by readyToTrip and Check
	tripped bool   // set by gobreaker's callback, which runs within our calls

	running  []flight
	lastLife time.Time // when the last request showed that the device works
	fast     int       // consecutive fast faults
	window   window
	changes  []Change
}

// flight is a request in flight.
type flight struct {
	began time.Time
	term  int
	done  func(error)
}

// Change is a change of a breaker's state.
type Change struct {
	At    time.Time
	State string
	Why   string // why it opened, in figures; empty for other states
	Hung  bool   // it opened because the device hung: requests that run there may never end
}

// maxChanges is how many changes are kept until they are collected.
const maxChanges = 32

var (
	errFault   = errors.New("the device is at fault")
	errNeutral = errors.New("the device is not at fault")
)

// never is longer than any term: gobreaker must not leave its open state by its own clock.
const never = time.Duration(math.MaxInt64)

// NewEjector returns a closed breaker.
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
		Interval: 0, Timeout: never, // its clock must not matter
		ReadyToTrip:  e.readyToTrip,
		IsSuccessful: func(err error) bool { return err == nil },
		IsExcluded:   func(err error) bool { return errors.Is(err, errNeutral) },
		OnStateChange: func(string, gobreaker.State, gobreaker.State) {
			e.tripped = true
		},
	})
}

// readyToTrip is called by gobreaker after each fault, while we hold the lock.
func (e *Ejector) readyToTrip(c gobreaker.Counts) bool {
	all, faults := e.window.sum()
	share := 0.0
	if all > 0 {
		share = float64(faults) / float64(all)
	}
	switch {
	case e.cause != "": // it hangs
	case e.state == StateHalfOpen:
		e.cause = "its probe failed"
	case int(c.ConsecutiveFailures) >= e.cfg.Faults:
		e.cause = fmt.Sprintf("%d consecutive faults", c.ConsecutiveFailures)
	case e.fast >= (e.cfg.Faults+1)/2:
		e.cause = fmt.Sprintf("%d consecutive faults, each in less than half the usual %s", e.fast, round(e.expected))
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

// turn makes the transitions that are due by now.
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

// Start is Allow and Started in one step, for callers that start requests from several
// goroutines.
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

// StartProbe is Start for a request that may test the device although the breaker is open:
// routers send one now and then when the breakers of too many devices are open. It
// succeeds once the breaker has been open for the shortest time, Open.
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

// Started records that a request was sent. Each call needs a call of Ended.
func (e *Ejector) Started(now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.turn(now)
	e.started(now)
}

func (e *Ejector) started(now time.Time) {
	r := flight{began: now}
	if e.state != StateOpen { // requests that start while it is open do not count
		if done, err := e.breaker.Allow(); err == nil {
			r.term, r.done = e.term, done
		}
	}
	e.running = append(e.running, r)
}

// Ended records the outcome of a request that took the given time: its start tells it from
// the others.
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

// take finds the request that began then. Clocks are not exact everywhere: if none
// matches, it takes the oldest.
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

// late handles the end of a request that began before the breaker opened. A success shows
// that a device that seemed to hang does not: it is probed at once.
func (e *Ejector) late(now time.Time, o Outcome) {
	if o != OK || e.state != StateOpen || !e.hung {
		return
	}
	e.openUntil, e.hung = now, false
	e.opened = max(0, e.opened-1)
}

// eject opens the breaker for a growing time.
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

// Check looks for a hang. expected is how long the device's requests usually take, 0 if
// unknown. Call it regularly.
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
	e.cause = fmt.Sprintf("no request ended for %s, the usual is %s", round(quiet), round(expected))
	oldest.done(errFault) // gobreaker trips: readyToTrip finds the cause
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

// Health returns what routers need to know: state, until when, how often in a row and why.
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

// Changed reports whether Changes would return any.
func (e *Ejector) Changed() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.changes) > 0
}

// Changes returns the state changes since the last call, oldest first. If it is not called
// for long, the newest are dropped.
func (e *Ejector) Changes() []Change {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.changes
	e.changes = nil
	return c
}

// window counts the requests and faults of the last Window, in buckets.
type window struct {
	width  time.Duration
	counts [buckets]bucket
}

const buckets = 10

type bucket struct {
	slot        int64 // which stretch of time it covers
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
	for i := range w.counts { // drop what is too old
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
