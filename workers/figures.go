package workers

import (
	"context"
	"strings"
	"time"

	"github.com/batchyard/batchyard/device"
)

// figures is what is known of the fleet, for planning.
type figures struct {
	devices []device.Device
	rates   map[device.RateKey]device.Rate
	healths map[string]device.Health
	loads   map[string]float64 // busy slot-ms of the work that a device has
	used    map[string][2]int  // credits in use: single requests, merged ones
	mean    map[string][2]float64
	now     time.Time
}

// figures reads how many credits are in use.
func (s *Workers) figures(ctx context.Context, ds []device.Device, rates map[device.RateKey]device.Rate, healths map[string]device.Health) (*figures, error) {
	pools := make([]string, 0, 2*len(ds))
	for _, d := range ds {
		pools = append(pools, device.Pool(d.ID, device.ClassEach), device.Pool(d.ID, device.ClassMerged))
	}
	used, err := s.deps.Credits.Used(ctx, pools)
	if err != nil {
		return nil, err
	}
	f := &figures{devices: ds, rates: rates, healths: healths, now: time.Now(),
		loads: map[string]float64{}, used: map[string][2]int{}, mean: map[string][2]float64{}}
	sum, n := map[string][2]float64{}, map[string][2]float64{}
	for k, r := range rates {
		a, b, i := sum[k.Device], n[k.Device], index(k.Merged)
		a[i] += r.ServiceMS
		b[i]++
		sum[k.Device], n[k.Device] = a, b
	}
	for i, d := range ds {
		var mean [2]float64
		for k := range mean {
			if n[d.ID][k] > 0 {
				mean[k] = sum[d.ID][k] / n[d.ID][k]
			}
		}
		f.mean[d.ID] = mean
		f.used[d.ID] = [2]int{used[2*i], used[2*i+1]}
		f.loads[d.ID] = -1 // when service times are known
	}
	return f, nil
}

func index(merged bool) int {
	if merged {
		return 1
	}
	return 0
}

// standings is the devices that can run tasks of the class.
func (f *figures) standings(k class, waiting map[string]int) []*standing {
	var needs []string
	if k.needs != "" {
		needs = strings.Split(k.needs, tagSeparator)
	}
	var out []*standing
	sum, n := 0.0, 0
	for i := range f.devices {
		d, h := &f.devices[i], f.healths[f.devices[i].ID]
		if d.Silent || d.Draining || h.State == device.StateOpen && h.OpenUntil.After(f.now) || !d.Serves(k.model) || !d.HasTags(needs) {
			continue
		}
		slots := d.Slots
		if h.Slots > 0 {
			slots = min(slots, h.Slots)
		}
		s := &standing{id: d.ID, slots: float64(max(1, slots)), service: f.service(d.ID, k.kind)}
		if s.service > 0 {
			sum, n = sum+s.service, n+1
		}
		s.takes = h.State != device.StateHalfOpen && !h.SlowUntil.After(f.now)
		var ours bool
		if s.gives, ours = waiting[d.ID]; !ours { // another worker's: about what has no slot
			s.gives = max(0, f.used[d.ID][index(k.merged)]-slots)
		}
		out = append(out, s)
	}
	if n == 0 {
		return nil // nobody has run such a task yet
	}
	for _, s := range out {
		if s.service <= 0 {
			s.service = sum / float64(n)
		}
		if f.loads[s.id] < 0 {
			f.loads[s.id] = f.load(s.id, k.kind, s.service)
		}
		s.load = f.loads[s.id]
	}
	return out
}

// service is what is known of the device with the model, else with other models.
func (f *figures) service(id string, k kind) float64 {
	if r, ok := f.rates[device.RateKey{Device: id, Model: k.model, Merged: k.merged}]; ok {
		return r.ServiceMS
	}
	return f.mean[id][index(k.merged)]
}

// load is the work of all credits in use; what kind of tasks they are for nobody
// knows here.
func (f *figures) load(id string, k kind, service float64) float64 {
	sum := 0.0
	for i, n := range f.used[id] {
		each := f.mean[id][i]
		if i == index(k.merged) {
			each = service
		}
		sum += float64(n) * each
	}
	return sum
}

// took keeps what a plan has changed, for the next.
func (f *figures) took(list []*standing) {
	for _, s := range list {
		f.loads[s.id] = s.load
	}
}
