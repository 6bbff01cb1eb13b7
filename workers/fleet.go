package workers

import (
	"cmp"
	"context"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
)

// minCheckInterval is the minimum time between two checks of the fleet.
const minCheckInterval = 100 * time.Millisecond

// maxMissedChecks is how many regular checks in a row a registered device must be missing from the
// registry before its queue goes elsewhere. After Redis was emptied, all devices are missing until
// their next heartbeat.
const maxMissedChecks = 3

// checkKind says why the fleet is checked.
type checkKind int

const (
	triggeredCheck checkKind = iota // something changed
	regularCheck                    // also counts missing devices, and rebalances the load
)

// checkFleetSoon makes the fleet watcher check at once.
func (s *Workers) checkFleetSoon() {
	select {
	case s.checkFleetNow <- struct{}{}:
	default:
	}
}

// watchRegistry checks the fleet when the registry changes.
func (s *Workers) watchRegistry(ctx context.Context) {
	if err := s.deps.Registry.Watch(ctx, s.checkFleetSoon); err != nil && ctx.Err() == nil {
		s.deps.Logger.Error("watching devices ended", "error", err)
	}
}

// fleetWatcher notices devices that are silent, draining or gone, gives new runners the rates that
// earlier owners learned, and rebalances the load. One goroutine owns it.
type fleetWatcher struct {
	*Workers
	seeded map[*runner]struct{} // have their rates
}

func newFleetWatcher(s *Workers) *fleetWatcher {
	return &fleetWatcher{Workers: s, seeded: map[*runner]struct{}{}}
}

func (s *fleetWatcher) run(ctx context.Context) {
	tick := time.NewTicker(cmp.Or(s.cfg.RebalanceEvery, 5*time.Second))
	defer tick.Stop()
	for {
		kind := triggeredCheck
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			kind = regularCheck
		case <-s.checkFleetNow:
		}
		if err := s.check(ctx, kind); err != nil && ctx.Err() == nil {
			s.deps.Logger.Debug("the fleet could not be checked; queued tasks stay where they are", "error", err)
		}
		interval := time.NewTimer(minCheckInterval)
		select {
		case <-ctx.Done():
		case <-interval.C:
		}
		interval.Stop()
	}
}

// check looks up the devices of the runners here.
func (s *fleetWatcher) check(ctx context.Context, kind checkKind) error {
	runners := s.allRunners()
	if len(runners) == 0 {
		return nil
	}
	ds, err := s.deps.Registry.List(ctx)
	if err != nil {
		return err
	}
	known := make(map[string]*device.Device, len(ds))
	for i := range ds {
		known[ds[i].ID] = &ds[i]
	}
	for _, r := range runners {
		r.registered(known[r.id], kind)
	}
	rates, healths, err := s.deps.Rates.Load(ctx)
	if err != nil {
		return err
	}
	s.known.Store(&knownFleet{devices: ds, healths: healths, at: time.Now()})
	s.seed(runners, rates)
	if kind != regularCheck {
		return nil
	}
	waiting := movableTasks(runners)
	if len(waiting) == 0 {
		return nil
	}
	f, err := s.fleetLoad(ctx, ds, rates, healths)
	if err != nil {
		return err
	}
	s.rebalance(runners, waiting, f)
	return nil
}

// registered takes in what the registry says about the device; nil means that it is not registered.
// A device that never was sends no heartbeats, and is left alone.
func (r *runner) registered(d *device.Device, kind checkKind) {
	r.mu.Lock()
	before := r.away
	switch {
	case d == nil && !r.seen:
	case d == nil:
		if kind == regularCheck {
			r.missedChecks++
		}
		if r.missedChecks >= maxMissedChecks {
			r.away = awayLeft
		}
	default:
		r.seen, r.missedChecks, r.away = true, 0, ""
		if d.Silent {
			r.away = awaySilent
		} else if d.Draining {
			r.away = awayDraining
		}
	}
	away := r.away
	r.mu.Unlock()
	if away != before {
		r.workers.deps.Logger.Info("device", "device_id", r.id, "away", away)
	}
	if away != "" {
		r.dispatch()
	}
}

// workload is what service times are compared by.
type workload struct {
	model   string
	batched bool
}

func workloadOf(t *task.Task) workload { return workload{t.Model, task.Batched(t.Endpoint)} }

// serviceTimes is the longest service time of each workload among all devices.
type serviceTimes map[workload]time.Duration

// seed gives new runners the rates that earlier owners learned.
func (s *fleetWatcher) seed(runners []*runner, rates map[device.RateKey]device.Rate) {
	fresh := map[string]*runner{}
	seeded := make(map[*runner]struct{}, len(runners)) // forgets retired runners
	for _, r := range runners {
		if _, ok := s.seeded[r]; !ok {
			fresh[r.id] = r
		}
		seeded[r] = struct{}{}
	}
	s.seeded = seeded
	slowest := serviceTimes{}
	for k, rate := range rates {
		if r := fresh[k.DeviceID]; r != nil {
			r.rates.Seed(k, rate)
		}
		d := time.Duration(rate.ServiceMS * float64(time.Millisecond))
		w := workload{k.Model, k.Batched}
		slowest[w] = max(slowest[w], d)
	}
	s.slowest.Store(&slowest)
}

// slowestService returns how long a task takes on the slowest known device.
func (s *Workers) slowestService(t *task.Task) (time.Duration, bool) {
	m := s.slowest.Load()
	if m == nil {
		return 0, false
	}
	d, ok := (*m)[workloadOf(t)]
	return d, ok
}
