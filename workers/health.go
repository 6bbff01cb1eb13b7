package workers

import (
	"context"
	"math"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// poke has health told at once.
func (s *Workers) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// report shares what is learned with the routers, records changes of breakers,
// finds devices that hang, and retires runners of devices that get no work any
// more.
func (s *Workers) report(ctx context.Context) {
	tick := time.NewTicker(s.cfg.ReportInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-s.wake:
		}
		now := time.Now()
		runners := s.all()
		learned := map[device.RateKey]device.Rate{}
		for _, r := range runners {
			r.check(now)
			r.rates.Take(learned)
		}
		healths := s.healths(runners, now)
		if err := s.deps.Rates.Report(ctx, learned, healths); err != nil {
			s.untold(runners, healths)
			if ctx.Err() == nil {
				s.deps.Logger.Debug("rates were not reported; they are learned and told again", "error", err)
			}
		}
		s.retire(retireAfter)
	}
}

// all is the runners there are.
func (s *Workers) all() []*runner {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]*runner, 0, len(s.runners))
	for _, r := range s.runners {
		out = append(out, r)
	}
	return out
}

// check finds out whether the device hangs, and whether its breaker has changed.
func (r *runner) check(now time.Time) {
	r.ejector.Check(now, r.expected())
	changes := r.ejector.Changes()
	for _, c := range changes {
		if c.Hung {
			r.giveUp()
		}
		if !r.gone.Load() {
			r.w.breakerChanged(r.id, c)
		}
	}
	if len(changes) > 0 {
		r.dispatch() // nothing waits at a device that hangs
	}
}

// giveUp frees the slots and credits of what runs on a device that hangs. It may
// still be answered; when the device has shown that it works, others run beside it.
// Without the credits no router would ever send the test, or not before what hangs
// runs into its time-out.
func (r *runner) giveUp() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.running {
		r.hung[c] = struct{}{}
		for _, w := range c.works {
			r.w.giveCredit(w)
		}
		delete(r.running, c)
	}
}

// expected is what the longest of the requests that run usually takes; 0: that is
// not known of all of them.
func (r *runner) expected() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	var most time.Duration
	for c := range r.running {
		d, known := r.rates.Service(r.rateKey(&c.works[0].a.Task))
		if !known {
			d, known = r.w.elsewhere(&c.works[0].a.Task)
		}
		if !known {
			return 0
		}
		most = max(most, d*time.Duration(len(c.works)))
	}
	return most
}

// tellEvery is how often a device's health is told although it is the same:
// Redis may have forgotten it.
const tellEvery = 30 * time.Second

// maxFarewells bounds what waits to be told of devices that are forgotten.
const maxFarewells = 100_000

// healths are what is to be told: of devices that are not well each time, since
// a router that does not know of an open breaker sends them work; of the others
// when something has changed.
func (s *Workers) healths(runners []*runner, now time.Time) map[string]device.Health {
	s.mu.Lock()
	out := s.farewells
	s.farewells = map[string]device.Health{}
	s.mu.Unlock()
	for _, r := range runners {
		if r.gone.Load() {
			continue
		}
		h := r.health(now)
		well := h.State == device.StateClosed && !h.SlowUntil.After(now)
		if well && same(h, r.told) && now.Sub(r.toldAt) < tellEvery {
			continue
		}
		r.told, r.toldAt = h, now
		out[r.id] = h
	}
	return out
}

// untold has told again what could not be.
func (s *Workers) untold(runners []*runner, healths map[string]device.Health) {
	for _, r := range runners {
		r.toldAt = time.Time{}
		delete(healths, r.id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, h := range healths { // of devices that are forgotten here
		if len(s.farewells) < maxFarewells {
			s.farewells[id] = h
		}
	}
}

func (r *runner) health(now time.Time) device.Health {
	h := r.ejector.Health(now)
	h.Slots, h.HopMS = r.fit.Below(), math.Round(r.hop.value()*100)/100
	r.mu.Lock()
	if r.slowUntil.After(now) {
		h.SlowUntil = r.slowUntil
	}
	r.mu.Unlock()
	return h
}

// same reports whether two healths say the same but for noise.
func same(a, b device.Health) bool {
	return a.State == b.State && a.Slots == b.Slots && a.Opened == b.Opened && a.SlowUntil.Equal(b.SlowUntil) &&
		math.Abs(a.HopMS-b.HopMS) <= 0.1*max(a.HopMS, b.HopMS)
}

// breakerChanged records that a device's breaker opened, is tested or closed.
func (s *Workers) breakerChanged(id string, c device.Change) {
	action, level := task.BreakerClosed, 0.0
	note := map[string]any{}
	switch c.State {
	case device.StateOpen:
		action, level = task.BreakerOpened, 2
		note["why"] = c.Why
	case device.StateHalfOpen:
		action, level = task.BreakerHalfOpen, 1
	}
	s.deps.Metrics.Workers.BreakerState.WithLabelValues(id).Set(level)
	s.deps.Logger.Info("breaker", "device_id", id, "state", c.State, "why", c.Why)
	s.put(stream.Unit{Events: []task.Event{{
		Time: c.At.UTC(), Action: action, Outcome: task.OutcomeOK, Tenant: task.DefaultTenant, ActorType: task.ActorStage,
		ActorID: s.deps.Instance, ResourceType: "device", ResourceID: id, Device: id, Detail: detail(note),
	}}})
}

// retireAfter is how long a device may be without work before its breaker and
// rates are forgotten here (the rates stay in Redis).
const retireAfter = 30 * time.Minute

func (s *Workers) retire(after time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, r := range s.runners {
		if since, idle := r.idleSince(); idle && time.Since(since) > after {
			r.gone.Store(true)
			// Its breaker goes with it; what was told of it counts no more.
			s.farewells[id] = device.Health{State: device.StateClosed}
			delete(s.runners, id)
		}
	}
}
