package router

import (
	"math"
	"slices"
	"time"

	"github.com/batchyard/batchyard/device"
)

// view is what the scheduler knows of the fleet: heartbeats and learned rates
// as of the last refresh, and the credits in use as of the last round. It is
// owned by the scheduler's goroutine.
type view struct {
	cfg     Config
	devices []*state // sorted by id
	byID    map[string]*state
	pools   map[string]*pool
	picks   uint64
}

// state is one device.
type state struct {
	device.Device
	health   device.Health
	rates    map[string]time.Duration // service time of one task by model, single requests
	merged   map[string]time.Duration // the same for merged requests
	lastPick uint64
	each     *pool
	batch    *pool
}

// pool is one of a device's two pools of credits.
type pool struct {
	name    string
	slots   int // in tasks
	limit   int
	used    int
	waiting int // tasks that this round keeps back for the device
}

func newView(cfg Config) *view {
	return &view{cfg: cfg, byID: map[string]*state{}, pools: map[string]*pool{}}
}

// update takes what was read from Redis. What is known of credits stays.
func (v *view) update(ds []device.Device, rates map[device.RateKey]device.Rate, healths map[string]device.Health) {
	byID := make(map[string]*state, len(ds))
	pools := make(map[string]*pool, 2*len(ds))
	v.devices = v.devices[:0]
	for _, d := range ds {
		s := v.byID[d.ID]
		if s == nil {
			s = &state{}
			s.each = &pool{name: device.Pool(d.ID, device.ClassEach)}
			s.batch = &pool{name: device.Pool(d.ID, device.ClassMerged)}
		}
		s.Device, s.health = d, healths[d.ID]
		s.rates, s.merged = map[string]time.Duration{}, map[string]time.Duration{}
		slots := max(1, d.Slots)
		ahead := max(1, int(math.Ceil(float64(slots)*v.cfg.CreditsAhead)))
		if s.health.State == "half-open" {
			slots, ahead = 1, 0 // one request tests whether it is well again
		}
		s.each.slots, s.each.limit = slots, slots+ahead
		s.batch.slots, s.batch.limit = slots*v.cfg.MergedCredit, (slots+ahead)*v.cfg.MergedCredit
		byID[d.ID] = s
		pools[s.each.name], pools[s.batch.name] = s.each, s.batch
		v.devices = append(v.devices, s)
	}
	for k, r := range rates {
		if s := byID[k.Device]; s != nil {
			service := time.Duration(r.ServiceMS * float64(time.Millisecond))
			if k.Merged {
				s.merged[k.Model] = service
			} else {
				s.rates[k.Model] = service
			}
		}
	}
	v.byID, v.pools = byID, pools
	slices.SortFunc(v.devices, func(a, b *state) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
}

// credits takes how many credits are in use, of some pools. A count that is
// older than our last grants is corrected by the next.
func (v *view) credits(used map[string]int) {
	for name, n := range used {
		if p := v.pools[name]; p != nil {
			p.used = n
		}
	}
}

// candidates returns the devices that may run a task of the class. A device
// that the class avoids comes back when no other is left: better a second try
// there than none.
func (v *view) candidates(c *class, now time.Time, out []*state) []*state {
	out = out[:0]
	avoided := 0
	for _, s := range v.devices {
		if !s.usable(c, now) {
			continue
		}
		if slices.Contains(c.avoid, s.ID) {
			avoided++
			continue
		}
		out = append(out, s)
	}
	if len(out) > 0 || avoided == 0 {
		return out
	}
	for _, s := range v.devices {
		if s.usable(c, now) {
			out = append(out, s)
		}
	}
	return out
}

// usable reports whether the device can take a task of the class at all.
func (s *state) usable(c *class, now time.Time) bool {
	return !s.Silent() && !s.Draining && s.Serves(c.model) && s.HasTags(c.needs) &&
		!s.health.OpenUntil.After(now) && !s.health.SlowUntil.After(now)
}

func (s *state) pool(merged bool) *pool {
	if merged {
		return s.batch
	}
	return s.each
}

// service is the learned time of one task on one slot; a model that the device
// has not answered yet takes the mean of those it has.
func (s *state) service(c *class) time.Duration {
	known := s.rates
	if c.merged {
		known = s.merged
	}
	if d, ok := known[c.model]; ok {
		return d
	}
	var sum time.Duration
	for _, d := range known {
		sum += d
	}
	if len(known) == 0 {
		return 0
	}
	return sum / time.Duration(len(known))
}

// describe fills the candidates for the policy.
func (v *view) describe(c *class, states []*state, out []Candidate) []Candidate {
	out = out[:0]
	for _, s := range states {
		p := s.pool(c.merged)
		out = append(out, Candidate{
			Device: s.ID, Slots: p.slots, Limit: p.limit, Used: p.used, Waiting: p.waiting,
			Service: s.service(c), CPU: s.CPU, Mem: s.Mem, IO: s.IO,
			Latency: time.Duration(s.LatencyMS * float64(time.Millisecond)), Weight: s.Weight, LastPick: s.lastPick,
		})
	}
	return out
}
