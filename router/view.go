package router

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/batchyard/batchyard/device"
)

// Fleet is one reading of Redis.
type Fleet struct {
	Devices []device.Device
	Rates   map[device.RateKey]device.Rate
	Healths map[string]device.Health
	Used    map[string]int // credits in use, by pool
	Routers int            // that are alive, this one included; 0: not known
}

// view is what the decider knows of the fleet: heartbeats and learned rates as
// of the last refresh, and the credits in use as of the last round. It is owned
// by the decider's goroutine.
type view struct {
	cfg     Config
	late    bool
	gen     uint64   // of what is known, but for credits
	devices []*state // sorted by id
	byID    map[string]*state
	pools   map[string]*pool
	routers int
	picks   uint64
	changes time.Time // when a health changes next by time alone; zero: never
}

// state is one device.
type state struct {
	device.Device
	health  device.Health
	rates   map[string]device.Rate // by model, single requests
	merged  map[string]device.Rate // the same for merged requests
	each    *pool
	batch   *pool
	probe   bool      // let alone by its worker, but too many are: it gets one task at a time
	ejected bool      // let alone, as of the last update
	back    time.Time // when it was last let in again
	tried   time.Time // when it was last picked
}

// pool is one of a device's two pools of credits.
type pool struct {
	Load
	name string
}

func newView(cfg Config) *view {
	return &view{cfg: cfg, late: true, byID: map[string]*state{}, pools: map[string]*pool{}, routers: 1}
}

// update takes what was read from Redis. What is known of credits stays.
func (v *view) update(f Fleet, now time.Time) {
	v.gen++
	v.changes = time.Time{}
	v.routers = max(1, f.Routers)
	byID := make(map[string]*state, len(f.Devices))
	v.devices = v.devices[:0]
	for _, d := range f.Devices {
		s := v.byID[d.ID]
		if s == nil {
			s = &state{each: &pool{name: device.Pool(d.ID, device.ClassEach)}, batch: &pool{name: device.Pool(d.ID, device.ClassMerged)}}
		}
		if s.Silent && !d.Silent {
			s.back = now
		}
		s.Device, s.health = d, f.Healths[d.ID]
		s.rates, s.merged = nil, nil
		byID[d.ID] = s
		v.devices = append(v.devices, s)
	}
	for k, r := range f.Rates {
		s := byID[k.Device]
		if s == nil {
			continue
		}
		known := &s.rates
		if k.Merged {
			known = &s.merged
		}
		if *known == nil {
			*known = make(map[string]device.Rate, 4)
		}
		(*known)[k.Model] = r
	}
	v.byID = byID
	slices.SortFunc(v.devices, func(a, b *state) int { return strings.Compare(a.ID, b.ID) })
	v.eject(now)
	v.limits(now)
	clear(v.pools)
	for _, s := range v.devices {
		v.pools[s.each.name], v.pools[s.batch.name] = s.each, s.batch
	}
	v.credits(f.Used)
}

// eject decides who is let alone. The workers say which devices fail; at most
// half of the fleet is left out, those that failed most often in a row first:
// when all fail, the fault is likely elsewhere, and somebody has to find out
// when it is gone. The others get one task at a time.
func (v *view) eject(now time.Time) {
	var out []*state
	alive := 0
	for _, s := range v.devices {
		was := s.ejected
		s.ejected, s.probe = false, false
		if s.Silent || s.Draining {
			continue
		}
		alive++
		if s.health.OpenUntil.After(now) {
			out = append(out, s)
			v.change(s.health.OpenUntil)
		} else if was {
			s.back = now
		}
		if s.health.SlowUntil.After(now) {
			v.change(s.health.SlowUntil)
		}
	}
	slices.SortStableFunc(out, func(a, b *state) int {
		return cmp.Or(cmp.Compare(b.health.Opened, a.health.Opened), b.health.OpenUntil.Compare(a.health.OpenUntil))
	})
	for i, s := range out {
		s.ejected = i < max(1, alive/2)
		s.probe = !s.ejected
	}
}

// change remembers when the view will be another by time alone.
func (v *view) change(at time.Time) {
	if v.changes.IsZero() || at.Before(v.changes) {
		v.changes = at
	}
}

// pass looks at what has changed by time alone.
func (v *view) pass(now time.Time) (changed bool) {
	if v.changes.IsZero() || v.changes.After(now) {
		return false
	}
	v.gen++
	v.changes = time.Time{}
	v.eject(now)
	v.limits(now)
	return true
}

// limits says how many credits each pool has.
func (v *view) limits(now time.Time) {
	oldest := now
	for _, s := range v.devices {
		if !s.Silent && !s.JoinedAt.IsZero() && s.JoinedAt.Before(oldest) {
			oldest = s.JoinedAt
		}
	}
	for _, s := range v.devices {
		slots := max(1, s.Slots)
		if s.health.Slots > 0 {
			slots = min(slots, s.health.Slots)
		}
		// One request tests whether it is well again, also while its worker has not
		// said yet that the time is over.
		one := s.probe || s.health.State != "" && s.health.State != device.StateClosed
		if ramp := v.ramp(s, oldest, now); ramp < 1 {
			slots = max(1, int(ramp*float64(slots)))
			one = one || ramp < 1/float64(slots+1)
		}
		if one {
			slots = 1
		}
		v.limit(s.each, s, slots, 1, one, s.rates)
		v.limit(s.batch, s, slots, v.cfg.MergedCredit, one, s.merged)
	}
}

// limit is slots, and as many more as hide the hop: while the news of a free slot
// goes to the routers and a task comes back, n·h/s tasks end on a device of n
// slots and service time s. One standard deviation (of a Poisson count) is added.
func (v *view) limit(p *pool, s *state, slots, merged int, one bool, rates map[string]device.Rate) {
	p.Slots = slots * merged
	switch {
	case one:
		p.Limit = slots * merged
	case !v.late:
		p.Limit = (slots + v.cfg.QueueAhead) * merged
	default:
		ended := float64(slots) / 4 // until something is known
		if service := quickest(rates); service > 0 {
			ended = float64(slots) * ms(v.hop(s)) / (service * float64(merged))
		}
		ahead := int(math.Ceil(ended + math.Sqrt(ended)))
		p.Limit = (slots + min(max(1, ahead), v.cfg.AheadMost)) * merged
	}
}

// hop is the time from an assignment to the start of its request.
func (v *view) hop(s *state) time.Duration {
	if s.health.HopMS > 0 {
		return time.Duration(s.health.HopMS * float64(time.Millisecond))
	}
	return v.cfg.Hop
}

// quickest is the least service time known of a device, in ms; 0: none.
func quickest(rates map[string]device.Rate) float64 {
	least := 0.0
	for _, r := range rates {
		if r.ServiceMS > 0 && (least == 0 || r.ServiceMS < least) {
			least = r.ServiceMS
		}
	}
	return least
}

// ramp is the share of its slots that a device gets which joined a fleet at work
// or came back to it; 1: all. A fleet that starts as a whole has no ramp.
func (v *view) ramp(s *state, oldest, now time.Time) float64 {
	if v.cfg.SlowStart <= 0 {
		return 1
	}
	since := s.back
	if s.JoinedAt.After(since) && s.JoinedAt.Sub(oldest) > v.cfg.SlowStart {
		since = s.JoinedAt
	}
	if since.IsZero() || since.Sub(oldest) <= v.cfg.SlowStart { // the others are as new: all were away, or start
		return 1
	}
	if len(v.devices) == 1 {
		return 1
	}
	return min(1, float64(now.Sub(since))/float64(v.cfg.SlowStart))
}

// credits takes how many credits are in use, of some pools. A count that is
// older than our last grants is corrected by the next.
func (v *view) credits(used map[string]int) {
	for name, n := range used {
		if p := v.pools[name]; p != nil {
			p.Used = n
		}
	}
}

// Why a device is no candidate of a class.
type reason int

const (
	fits reason = iota
	wrongModel
	wrongTags
	isSilent
	isDraining
	isEjected
	isSlow
	isExcluded
	reasons
)

// reasonNames is how the audit log tells them.
var reasonNames = [reasons]string{"", "model", "tags", "silent", "draining", "breaker_open", "throttled", "excluded"}

// fit says whether the device can take a task of the class at all. A device that
// the class avoids is told apart: it comes back when no other is left.
func (s *state) fit(c *class, now time.Time) reason {
	switch {
	case !s.Serves(c.model):
		return wrongModel
	case !s.HasTags(c.needs):
		return wrongTags
	case s.Silent:
		return isSilent
	case s.Draining:
		return isDraining
	case s.ejected:
		return isEjected
	case s.health.SlowUntil.After(now):
		return isSlow
	case slices.Contains(c.avoid, s.ID):
		return isExcluded
	}
	return fits
}

func (s *state) pool(merged bool) *pool {
	if merged {
		return s.batch
	}
	return s.each
}

// rate is what was learned of one task on one slot; a model that the device has
// not answered yet takes the mean of those it has.
func (s *state) rate(c *class) device.Rate {
	known := s.rates
	if c.merged {
		known = s.merged
	}
	if r, ok := known[c.model]; ok {
		return r
	}
	var mean device.Rate
	for _, r := range known {
		mean.ServiceMS += r.ServiceMS / float64(len(known))
	}
	return mean
}
