package learn

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/batchyard/batchyard/device"
)

// BreakerConfig determines when the breaker of a device opens, and for how long. The zero
// value is usable.
type BreakerConfig struct {
	Faults      int           // consecutive faults that open it; 0 means 5
	Ratio       float64       // fraction of faults that opens it, among at least MinRequests requests within Window; 0 means 0.5
	MinRequests int           // 0 means 20
	Window      time.Duration // 0 means 10 s
	Open        time.Duration // how long it opens first; doubled each further time; 0 means 5 s
	MaxOpen     time.Duration // longest time it opens; 0 means 2 min
	Healthy     time.Duration // after this long without opening, Open applies again; 0 means 1 min
	HangFactor  float64       // no response for this many times the usual duration counts as a hang; 0 means 20
	MinHang     time.Duration // but not sooner than this; 0 means 1 s

	// Jitter returns a number from 0 to 1. It lengthens the open time by up to a fifth, so
	// that devices that failed together are not tested together. Nil means no jitter.
	Jitter func() float64
}

func (c BreakerConfig) withDefaults() BreakerConfig {
	orElse := func(d *time.Duration, def time.Duration) {
		if *d <= 0 {
			*d = def
		}
	}
	orElse(&c.Window, 10*time.Second)
	orElse(&c.Open, 5*time.Second)
	orElse(&c.MaxOpen, 2*time.Minute)
	orElse(&c.Healthy, time.Minute)
	orElse(&c.MinHang, time.Second)
	c.MaxOpen = max(c.MaxOpen, c.Open)
	if c.Faults <= 0 {
		c.Faults = 5
	}
	if c.Ratio <= 0 {
		c.Ratio = 0.5
	}
	if c.MinRequests <= 0 {
		c.MinRequests = 20
	}
	if c.HangFactor <= 0 {
		c.HangFactor = 20
	}
	return c
}

// Breaker is the circuit breaker of a device. It decides from the outcomes of requests
// whether more may be sent.
//
//	        consecutive faults, fraction of
//	        faults, or hang                         Open × 2ⁿ, at most MaxOpen
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
// A task may be at fault instead: some make every device answer 500. A fault of a task that failed on
// another device before is charged to the task, and counts only for a probe. Other answers that are
// faults count a quarter each while the device answers others: until it has answered none for a Window.
//
// A device hangs when requests are running and none has ended for HangFactor times the usual
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
type Breaker struct {
	cfg BreakerConfig

	mu        sync.Mutex
	state     string
	why       string // why it opened, in figures
	hung      bool   // it opened because the device hung
	openedAt  time.Time
	openUntil time.Time // while open
	opened    int       // how often it opened in a row
	closedAt  time.Time // when it last closed
	expected  time.Duration

	term    int
	breaker *gobreaker.TwoStepCircuitBreaker[struct{}]
	cause   string // why gobreaker trips; set by readyToTrip and CheckHang
	tripped bool   // set by gobreaker's callback, which runs within our calls

	running    []flight
	lastLife   time.Time // when the last request showed that the device works
	lastOK     time.Time // when the last request succeeded
	faults     int       // consecutive faults, in quarters
	fastFaults int       // consecutive fast faults, in quarters
	window     window
	changes    []Change
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

// NewBreaker returns a closed breaker.
func NewBreaker(cfg BreakerConfig) *Breaker {
	b := &Breaker{cfg: cfg.withDefaults(), state: device.StateClosed}
	b.window.width = b.cfg.Window / buckets
	b.begin(time.Time{})
	return b
}

// begin starts a term.
func (b *Breaker) begin(now time.Time) {
	b.term++
	b.cause, b.tripped, b.faults, b.fastFaults, b.lastLife = "", false, 0, 0, now
	b.window.clear()
	b.breaker = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Interval: 0, Timeout: never, // its clock must not matter
		ReadyToTrip:  b.readyToTrip,
		IsSuccessful: func(err error) bool { return err == nil },
		IsExcluded:   func(err error) bool { return errors.Is(err, errNeutral) },
		OnStateChange: func(string, gobreaker.State, gobreaker.State) {
			b.tripped = true
		},
	})
}

// readyToTrip is called by gobreaker after each fault, while we hold the lock.
func (b *Breaker) readyToTrip(c gobreaker.Counts) bool {
	all, faults := b.window.sum()
	share := 0.0
	if all > 0 {
		share = float64(faults) / float64(all)
	}
	switch {
	case b.cause != "": // it hangs
	case b.state == device.StateHalfOpen:
		b.cause = "its probe failed"
	case b.faults >= whole*b.cfg.Faults:
		b.cause = fmt.Sprintf("%d consecutive faults", c.ConsecutiveFailures)
	case b.fastFaults >= whole*((b.cfg.Faults+1)/2):
		b.cause = fmt.Sprintf("%d consecutive faults, the last ones in less than half the usual %s", c.ConsecutiveFailures, round(b.expected))
	case all >= b.cfg.MinRequests && share >= b.cfg.Ratio:
		b.cause = fmt.Sprintf("%.0f %% of %d requests failed", 100*share, all)
	}
	return b.cause != ""
}

// whole is a fault in quarters.
const whole = 4

// weigh adds a fault, in quarters.
func (b *Breaker) weigh(now time.Time, o Outcome, took time.Duration) {
	n := whole
	if o == Suspect && b.state == device.StateClosed && !b.lastOK.IsZero() && now.Sub(b.lastOK) < b.cfg.Window {
		n = 1
	}
	b.faults += n
	if b.fastFaults += n; 2*took >= b.expected {
		b.fastFaults = 0
	}
}

// Allow reports whether a request may start now. In the half-open state that is
// one at a time.
func (b *Breaker) Allow(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advance(now)
	return b.allows()
}

func (b *Breaker) allows() bool {
	return b.state == device.StateClosed || b.state == device.StateHalfOpen && !b.probing()
}

func (b *Breaker) probing() bool {
	for _, r := range b.running {
		if r.term == b.term {
			return true
		}
	}
	return false
}

// advance makes the transitions that are due by now.
func (b *Breaker) advance(now time.Time) {
	switch {
	case b.state == device.StateOpen && !now.Before(b.openUntil):
		b.begin(now)
		b.change(now, device.StateHalfOpen, "")
	case b.state == device.StateClosed && b.opened > 0 && now.Sub(b.closedAt) >= b.cfg.Healthy:
		b.opened = 0
	}
}

func (b *Breaker) change(now time.Time, state, why string) {
	b.state, b.why = state, why
	if len(b.changes) < maxChanges {
		b.changes = append(b.changes, Change{At: now, State: state, Why: why, Hung: state == device.StateOpen && b.hung})
	}
}

// Start is Allow and Started in one step, for callers that start requests from several
// goroutines.
func (b *Breaker) Start(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advance(now)
	if !b.allows() {
		return false
	}
	b.started(now)
	return true
}

// StartProbe is Start for a request that may test the device although the breaker is open:
// routers send one now and then when the breakers of too many devices are open. It
// succeeds once the breaker has been open for the shortest time, Open.
func (b *Breaker) StartProbe(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state == device.StateOpen && !now.Before(b.openedAt.Add(b.cfg.Open)) && now.Before(b.openUntil) {
		b.openUntil = now
	}
	b.advance(now)
	if !b.allows() {
		return false
	}
	b.started(now)
	return true
}

// Started records that a request was sent. Each call needs a call of Ended.
func (b *Breaker) Started(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advance(now)
	b.started(now)
}

func (b *Breaker) started(now time.Time) {
	r := flight{began: now}
	if b.state != device.StateOpen { // requests that start while it is open do not count
		if done, err := b.breaker.Allow(); err == nil {
			r.term, r.done = b.term, done
		}
	}
	b.running = append(b.running, r)
}

// Ended records the outcome of a request that took the given time: its start tells it from
// the others.
func (b *Breaker) Ended(now time.Time, o Outcome, took time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advance(now)
	r, ok := b.take(now.Add(-took))
	if !ok {
		return
	}
	if r.term != b.term || r.done == nil || b.state == device.StateOpen {
		b.endedLate(now, o)
		return
	}
	if o == OK || o == Throttled {
		b.lastLife = now
	}
	if o == Charged && b.state == device.StateHalfOpen { // a probe has to succeed
		o = Fault
	}
	switch o {
	case OK:
		b.lastOK, b.faults, b.fastFaults = now, 0, 0
		b.window.add(now)
		r.done(nil)
		if b.state == device.StateHalfOpen {
			b.begin(now)
			b.closedAt = now
			b.change(now, device.StateClosed, "")
		}
	case Fault, TimedOut, Suspect:
		b.weigh(now, o, took)
		b.window.add(now).faults++
		r.done(errFault)
		if b.tripped {
			b.open(now, false)
		}
	default:
		r.done(errNeutral)
	}
}

// take finds the request that began then. Clocks are not exact everywhere: if none
// matches, it takes the oldest.
func (b *Breaker) take(began time.Time) (flight, bool) {
	if len(b.running) == 0 {
		return flight{}, false
	}
	at := 0
	for i, r := range b.running {
		if r.began.Equal(began) {
			at = i
			break
		}
	}
	r := b.running[at]
	b.running = append(b.running[:at], b.running[at+1:]...)
	return r, true
}

// endedLate handles the end of a request that began before the breaker opened. A success shows
// that a device that seemed to hang does not: it is probed at once.
func (b *Breaker) endedLate(now time.Time, o Outcome) {
	if o != OK || b.state != device.StateOpen || !b.hung {
		return
	}
	b.openUntil, b.hung = now, false
	b.opened = max(0, b.opened-1)
}

// open opens the breaker for a growing time.
func (b *Breaker) open(now time.Time, hung bool) {
	b.opened++
	d := b.cfg.Open
	for i := 1; i < b.opened && d < b.cfg.MaxOpen; i++ {
		d *= 2
	}
	d = min(d, b.cfg.MaxOpen)
	if b.cfg.Jitter != nil {
		d += time.Duration(float64(d) / 5 * min(max(b.cfg.Jitter(), 0), 1))
	}
	b.openUntil, b.openedAt, b.hung = now.Add(d), now, hung
	b.change(now, device.StateOpen, b.cause)
}

// CheckHang looks for a hang. expected is how long the device's requests usually take, 0 if
// unknown. Call it regularly.
func (b *Breaker) CheckHang(now time.Time, expected time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advance(now)
	if expected <= 0 {
		return
	}
	b.expected = expected
	if b.state == device.StateOpen {
		return
	}
	var oldest *flight
	for i := range b.running {
		if r := &b.running[i]; r.term == b.term && r.done != nil && (oldest == nil || r.began.Before(oldest.began)) {
			oldest = r
		}
	}
	if oldest == nil {
		return
	}
	since := b.lastLife
	if oldest.began.After(since) {
		since = oldest.began
	}
	quiet := now.Sub(since)
	if quiet < b.cfg.MinHang || float64(quiet) < b.cfg.HangFactor*float64(expected) {
		return
	}
	b.cause = fmt.Sprintf("no request ended for %s, the usual is %s", round(quiet), round(expected))
	oldest.done(errFault) // gobreaker trips: readyToTrip finds the cause
	oldest.done = nil
	if b.tripped {
		b.open(now, true)
	}
}

func round(d time.Duration) time.Duration {
	if d > time.Second {
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Millisecond)
}

// Health returns what routers need to know: state, until when, how often in a row and why.
func (b *Breaker) Health(now time.Time) device.Health {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advance(now)
	h := device.Health{State: b.state, Opened: b.opened, Why: b.why, At: now}
	if b.state != device.StateClosed {
		h.Since = b.openedAt
	}
	if b.state == device.StateOpen {
		h.OpenUntil = b.openUntil
	}
	return h
}

// Changed reports whether Changes would return any.
func (b *Breaker) Changed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.changes) > 0
}

// Changes returns the state changes since the last call, oldest first. If it is not called
// for long, the newest are dropped.
func (b *Breaker) Changes() []Change {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.changes
	b.changes = nil
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

func (w *window) add(now time.Time) *bucket {
	slot := now.UnixNano() / int64(max(1, w.width))
	b := &w.counts[((slot%buckets)+buckets)%buckets]
	if b.slot != slot {
		*b = bucket{slot: slot}
	}
	b.all++
	for i := range w.counts { // drop what is too old
		if w.counts[i].slot <= slot-buckets {
			w.counts[i] = bucket{}
		}
	}
	return b
}

func (w *window) sum() (all, faults int) {
	for _, b := range w.counts {
		all += b.all
		faults += b.faults
	}
	return all, faults
}
