package workers

import (
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/batchyard/batchyard/device"
)

// rates learns how long one task takes on one busy slot of a device.
type rates struct {
	mu      sync.Mutex
	m       map[device.RateKey]device.Rate
	changed map[device.RateKey]struct{}
}

// maxRates bounds the models remembered of one device.
const maxRates = 1024

// learnWeight is the weight of the newest request in the running mean.
const learnWeight = 0.1

func newRates() *rates {
	return &rates{m: map[device.RateKey]device.Rate{}, changed: map[device.RateKey]struct{}{}}
}

// learn takes a request of n tasks that kept a slot busy for d. The first
// requests are averaged, later ones weigh [learnWeight].
func (r *rates) learn(k device.RateKey, d time.Duration, n int) {
	each := float64(d) / float64(time.Millisecond) / float64(max(1, n))
	r.mu.Lock()
	defer r.mu.Unlock()
	old, ok := r.m[k]
	if !ok && len(r.m) >= maxRates {
		return
	}
	weight := max(learnWeight, 1/float64(old.Samples+1))
	r.m[k] = device.Rate{ServiceMS: old.ServiceMS + weight*(each-old.ServiceMS), Samples: old.Samples + 1, At: time.Now().UTC()}
	r.changed[k] = struct{}{}
}

// take returns what has changed since the last call.
func (r *rates) take(into map[device.RateKey]device.Rate) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k := range r.changed {
		into[k] = r.m[k]
	}
	clear(r.changed)
}

// breakers gathers changes of the devices' breakers: they are reported from
// under a lock, so nothing is done with them there.
type breakers struct {
	mu      sync.Mutex
	health  map[string]device.Health
	changes []breakerChange
	wake    chan struct{}
	open    time.Duration
}

type breakerChange struct {
	device string
	to     gobreaker.State
	at     time.Time
}

func newBreakers(open time.Duration) *breakers {
	return &breakers{health: map[string]device.Health{}, wake: make(chan struct{}, 1), open: open}
}

func (b *breakers) changed(id string, to gobreaker.State) {
	now := time.Now()
	b.mu.Lock()
	h := b.health[id]
	h.State, h.OpenUntil = to.String(), time.Time{}
	if to == gobreaker.StateOpen {
		h.OpenUntil = now.Add(b.open).UTC()
	}
	b.health[id] = h
	b.changes = append(b.changes, breakerChange{id, to, now})
	b.mu.Unlock()
	b.poke()
}

// fresh tells that the device's breaker is closed, because it is a new one or
// will be: what was told of the one before counts no more.
func (b *breakers) fresh(id string) {
	b.mu.Lock()
	b.health[id] = device.Health{State: gobreaker.StateClosed.String()}
	b.mu.Unlock()
}

// forget leaves the device to its next owner.
func (b *breakers) forget(id string) {
	b.mu.Lock()
	delete(b.health, id)
	b.mu.Unlock()
}

func (b *breakers) slow(id string, until time.Time) {
	b.mu.Lock()
	h := b.health[id]
	if h.State == "" {
		h.State = gobreaker.StateClosed.String()
	}
	h.SlowUntil = until.UTC()
	b.health[id] = h
	b.mu.Unlock()
	b.poke()
}

func (b *breakers) poke() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// take returns the healths to tell and the changes since the last call. A device
// that is not well is told again each time: Redis may have forgotten it, and a
// router that does not know of an open breaker sends it work.
func (b *breakers) take(now time.Time) (map[string]device.Health, []breakerChange) {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make(map[string]device.Health, len(b.health))
	for id, h := range b.health {
		h.At = now.UTC()
		out[id] = h
		if h.State == gobreaker.StateClosed.String() && !h.SlowUntil.After(now) {
			delete(b.health, id) // well again: told once
		}
	}
	c := b.changes
	b.changes = nil
	return out, c
}

// untold takes back healths that could not be told.
func (b *breakers) untold(hs map[string]device.Health) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, h := range hs {
		if _, ok := b.health[id]; !ok { // else it has changed since
			b.health[id] = h
		}
	}
}
