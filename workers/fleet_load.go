package workers

import (
	"context"
	"strings"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/clock"
)

// fleetLoad is what is known about the load of the fleet, for planning.
type fleetLoad struct {
	devices []device.Device
	rates   map[device.RateKey]device.Rate
	healths map[string]device.Health
	loads   map[string]float64    // busy slot-ms of the work that a device has; -1: not computed yet
	used    map[string][2]int     // credits in use, by poolIndex
	mean    map[string][2]float64 // service time in ms over all models, by poolIndex
	now     time.Time
}

// fleetLoad reads how many credits are in use.
func (s *Workers) fleetLoad(ctx context.Context, ds []device.Device, rates map[device.RateKey]device.Rate, healths map[string]device.Health) (*fleetLoad, error) {
	pools := make([]string, 0, 2*len(ds))
	for _, d := range ds {
		pools = append(pools, device.Pool(d.ID, device.ClassSingle), device.Pool(d.ID, device.ClassBatched))
	}
	used, err := s.deps.Credits.Used(ctx, pools)
	if err != nil {
		return nil, err
	}
	f := &fleetLoad{devices: ds, rates: rates, healths: healths, now: clock.Now(),
		loads: map[string]float64{}, used: map[string][2]int{}, mean: map[string][2]float64{}}
	sum, n := map[string][2]float64{}, map[string][2]float64{}
	for k, r := range rates {
		a, b, i := sum[k.DeviceID], n[k.DeviceID], poolIndex(k.Batched)
		a[i] += r.ServiceMS
		b[i]++
		sum[k.DeviceID], n[k.DeviceID] = a, b
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

// poolIndex returns the index of a device's pool: 0 for single requests, 1 for batched ones.
func poolIndex(batched bool) int { //nolint:revive // it maps a boolean, and selects no path
	if batched {
		return 1
	}
	return 0
}

// candidates returns the devices that can run tasks of the demand; none while no device is known to
// have run such tasks. waiting is how many of them wait at each device of this process.
func (f *fleetLoad) candidates(k demand, waiting map[string]int) []*deviceLoad {
	var needs []string
	if k.needs != "" {
		needs = strings.Split(k.needs, tagSeparator)
	}
	var out []*deviceLoad
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
		s := &deviceLoad{id: d.ID, slots: float64(max(1, slots)), service: f.service(d.ID, k.workload)}
		if s.service > 0 {
			sum, n = sum+s.service, n+1
		}
		s.takes = h.State != device.StateHalfOpen && !h.ThrottledUntil.After(f.now)
		var ours bool
		if s.gives, ours = waiting[d.ID]; !ours { // another worker's: roughly the tasks without a slot
			s.gives = max(0, f.used[d.ID][poolIndex(k.batched)]-slots)
		}
		out = append(out, s)
	}
	if n == 0 {
		return nil
	}
	for _, s := range out {
		if s.service <= 0 {
			s.service = sum / float64(n)
		}
		if f.loads[s.id] < 0 {
			f.loads[s.id] = f.load(s.id, k.workload, s.service)
		}
		s.load = f.loads[s.id]
	}
	return out
}

// service returns the device's service time in ms with the model, or else its mean over all models; 0
// when neither is known.
func (f *fleetLoad) service(id string, k workload) float64 {
	if r, ok := f.rates[device.RateKey{DeviceID: id, Model: k.model, Batched: k.batched}]; ok {
		return r.ServiceMS
	}
	return f.mean[id][poolIndex(k.batched)]
}

// load returns the work of all credits in use. It is not known which tasks they are for, so the mean
// service time stands for those of other workloads.
func (f *fleetLoad) load(id string, k workload, service float64) float64 {
	sum := 0.0
	for i, n := range f.used[id] {
		perTask := f.mean[id][i]
		if i == poolIndex(k.batched) {
			perTask = service
		}
		sum += float64(n) * perTask
	}
	return sum
}

// keep saves the loads that a plan has changed, for the next demand.
func (f *fleetLoad) keep(list []*deviceLoad) {
	for _, s := range list {
		f.loads[s.id] = s.load
	}
}
