package decide

import (
	"slices"
	"strings"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/router/policy"
)

// Fleet is one reading of what is known about the devices.
type Fleet struct {
	Devices []device.Device
	Rates   map[device.RateKey]device.Rate
	Healths map[string]device.Health // by device
	Used    map[string]int           // credits in use, by pool
	Routers int                      // that are alive, including this one; 0: unknown
}

// view is what the decider knows about the fleet: heartbeats and learned rates as of the last reading,
// credits in use as of the last round or news.
type view struct {
	cfg        Config
	late       bool          // tasks are bound late
	generation uint64        // changes with everything but credits in use
	devices    []*deviceView // sorted by id
	byID       map[string]*deviceView
	pools      map[string]*pool
	routers    int
	picks      uint64
	changesAt  time.Time // when a health changes next by the passing of time; zero: never
}

// deviceView is one device.
type deviceView struct {
	device.Device
	health   device.Health
	single   *pool       // credits of single requests
	batched  *pool       // credits of batched requests
	gate     device.Gate // as of the last update
	returned time.Time   // when it last came back
	picked   time.Time   // when it was last picked
}

// pool is one of a device's two pools of credits.
type pool struct {
	policy.Load
	name  string
	rates map[string]device.Rate // by model
	freed uint64                 // how often it was said to have room
	moved movement               // of its credits
}

func newView(cfg Config) *view {
	return &view{cfg: cfg, late: true, byID: map[string]*deviceView{}, pools: map[string]*pool{}, routers: 1}
}

func newDeviceView(id string) *deviceView {
	return &deviceView{single: &pool{name: device.Pool(id, device.ClassSingle)}, batched: &pool{name: device.Pool(id, device.ClassBatched)}}
}

// update takes a new reading. What is known about credits stays.
func (v *view) update(f Fleet, now time.Time) {
	v.generation++
	v.changesAt = time.Time{}
	v.routers = max(1, f.Routers)
	byID := make(map[string]*deviceView, len(f.Devices))
	v.devices = v.devices[:0]
	for _, d := range f.Devices {
		s := v.byID[d.ID]
		if s == nil {
			s = newDeviceView(d.ID)
		}
		if s.Silent && !d.Silent {
			s.returned = now
		}
		s.Device, s.health = d, f.Healths[d.ID]
		s.single.rates, s.batched.rates = nil, nil
		byID[d.ID] = s
		v.devices = append(v.devices, s)
	}
	v.setRates(byID, f.Rates)
	v.byID = byID
	slices.SortFunc(v.devices, func(a, b *deviceView) int { return strings.Compare(a.ID, b.ID) })
	v.setGates(now)
	v.setLimits(now)
	clear(v.pools)
	for _, s := range v.devices {
		v.pools[s.single.name], v.pools[s.batched.name] = s.single, s.batched
	}
	v.setUsed(f.Used)
}

func (v *view) setRates(byID map[string]*deviceView, rates map[device.RateKey]device.Rate) {
	for k, r := range rates {
		s := byID[k.DeviceID]
		if s == nil {
			continue
		}
		p := s.single
		if k.Batched {
			p = s.batched
		}
		if p.rates == nil {
			p.rates = make(map[string]device.Rate, 4)
		}
		p.rates[k.Model] = r
	}
}

// setGates applies [device.Gates] to the fleet.
func (v *view) setGates(now time.Time) {
	devices, healths := make([]*device.Device, len(v.devices)), make([]*device.Health, len(v.devices))
	for i, s := range v.devices {
		devices[i], healths[i] = &s.Device, &s.health
	}
	for i, gate := range device.Gates(devices, healths, now) {
		s := v.devices[i]
		was := s.gate
		s.gate = gate
		if s.Silent || s.Draining {
			continue
		}
		if s.health.OpenUntil.After(now) {
			v.expectChange(s.health.OpenUntil)
		} else if was == device.GateShut {
			s.returned = now
		}
		if s.health.ThrottledUntil.After(now) {
			v.expectChange(s.health.ThrottledUntil)
		}
		for _, d := range s.health.Declines {
			if d.Until.After(now) {
				v.expectChange(d.Until)
			}
		}
	}
}

// expectChange notes that the passing of time alone will change the view.
func (v *view) expectChange(at time.Time) {
	if v.changesAt.IsZero() || at.Before(v.changesAt) {
		v.changesAt = at
	}
}

// pass applies what has changed by the passing of time.
func (v *view) pass(now time.Time) (changed bool) {
	if v.changesAt.IsZero() || v.changesAt.After(now) {
		return false
	}
	v.generation++
	v.changesAt = time.Time{}
	v.setGates(now)
	v.setLimits(now)
	return true
}

// setUsed takes the credits in use of some pools. A count older than our last grants is corrected by
// the next one.
func (v *view) setUsed(used map[string]int) {
	for name, n := range used {
		if p := v.pools[name]; p != nil {
			p.Used = n
		}
	}
}

// eligible says whether the device can take tasks of the demand at all, and if not, why. A device that the
// tasks exclude, or that refuses them, is used after all if no other is left.
func (s *deviceView) eligible(d *demand, now time.Time) device.Reason {
	return device.Eligible(&s.Device, &s.health, s.gate, &d.Requirement, now)
}

// pool is the one whose credits tasks of the demand take.
func (s *deviceView) pool(d *demand) *pool {
	if d.batched {
		return s.batched
	}
	return s.single
}

// rateOf is what was learned about one task of the model on one slot. For a model that the device has
// not answered yet, it is the mean over its models.
func (p *pool) rateOf(model string) device.Rate {
	if r, ok := p.rates[model]; ok {
		return r
	}
	var mean device.Rate
	for _, r := range p.rates {
		mean.ServiceMS += r.ServiceMS / float64(len(p.rates))
	}
	return mean
}

// quickest is the shortest known service time, in ms; 0: unknown.
func (p *pool) quickest() float64 {
	least := 0.0
	for _, r := range p.rates {
		if r.ServiceMS > 0 && (least == 0 || r.ServiceMS < least) {
			least = r.ServiceMS
		}
	}
	return least
}
