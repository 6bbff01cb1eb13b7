package workers

import (
	"context"
	"maps"
	"math"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/learn"
	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// reportSoon makes the reporter report at once.
func (s *Workers) reportSoon() {
	select {
	case s.reportNow <- struct{}{}:
	default:
	}
}

// reporter reports what is learned to the routers, writes events of breakers that change, notices
// devices that hang, and retires runners of devices without work. One goroutine owns it.
type reporter struct {
	*Workers
	last map[*runner]report
}

// report is the health that was last reported for a device.
type report struct {
	health device.Health
	at     time.Time
}

func newReporter(s *Workers) *reporter { return &reporter{Workers: s, last: map[*runner]report{}} }

func (s *reporter) run(ctx context.Context) {
	tick := time.NewTicker(s.cfg.ReportInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-s.reportNow:
		}
		now := time.Now()
		runners := s.allRunners()
		learned := map[device.RateKey]device.Rate{}
		for _, r := range runners {
			r.checkBreaker(now)
			r.rates.Take(learned)
		}
		healths := s.healths(runners, now)
		if err := s.deps.Rates.Report(ctx, learned, healths); err != nil {
			s.unreported(runners, healths)
			if ctx.Err() == nil {
				s.deps.Logger.Debug("rates were not reported; they will be learned and reported again", "error", err)
			}
		}
		s.retire(retireAfter)
	}
}

// allRunners returns the runners that there are now.
func (s *Workers) allRunners() []*runner {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]*runner, 0, len(s.runners))
	for _, r := range s.runners {
		out = append(out, r)
	}
	return out
}

// checkBreaker notices a device that hangs, and a breaker that has changed.
func (r *runner) checkBreaker(now time.Time) {
	r.ejector.CheckHang(now, r.expected())
	changes := r.ejector.Changes()
	for _, c := range changes {
		if c.Hung {
			r.abandonHung()
		}
		if !r.retired.Load() {
			r.workers.breakerChanged(r.id, c)
		}
	}
	if len(changes) > 0 {
		r.dispatch() // when the device hangs, its queue goes elsewhere
	}
}

// abandonHung frees the slots and credits of the requests to a device that hangs. They may still be
// answered; once the device has shown that it works, others run beside them. Without free credits
// no router could send the probe before the hung requests time out.
func (r *runner) abandonHung() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.running {
		r.hung[c] = struct{}{}
		for _, w := range c.works {
			r.workers.returnCredit(w)
		}
		delete(r.running, c)
	}
}

// expected returns how long the longest of the running requests usually takes; 0 when that is unknown
// for one of them.
func (r *runner) expected() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	var most time.Duration
	for c := range r.running {
		t := c.works[0].task()
		d, known := r.rates.Service(r.rateKey(t))
		if !known {
			d, known = r.workers.slowestService(t)
		}
		if !known {
			return 0
		}
		most = max(most, d*time.Duration(len(c.works)))
	}
	return most
}

// repeatReportEvery is how often an unchanged health is reported again, in case Redis lost it.
const repeatReportEvery = 30 * time.Second

// figuresEvery is how often figures that changed are reported. Only people read them.
const figuresEvery = 3 * time.Second

// maxDeparted bounds the reports that wait for devices without a runner.
const maxDeparted = 100_000

// healths returns what to report. A device that is not healthy is reported every time, because a
// router that does not know of an open breaker sends it work; a healthy one when something changed.
func (s *reporter) healths(runners []*runner, now time.Time) map[string]device.Health {
	s.mu.Lock()
	out := s.departed
	s.departed = map[string]device.Health{}
	s.mu.Unlock()
	last := make(map[*runner]report, len(runners)) // forgets retired runners
	for _, r := range runners {
		if r.retired.Load() {
			continue
		}
		h, before := r.health(now), s.last[r]
		healthy := h.State == device.StateClosed && !h.ThrottledUntil.After(now) && len(h.Declines) == 0
		every := repeatReportEvery
		if h.Figures != before.health.Figures {
			every = figuresEvery
		}
		if healthy && sameHealth(h, before.health) && now.Sub(before.at) < every {
			last[r] = before
			continue
		}
		last[r] = report{h, now}
		out[r.id] = h
	}
	s.last = last
	return out
}

// unreported makes the next round report again what could not be reported.
func (s *reporter) unreported(runners []*runner, healths map[string]device.Health) {
	for _, r := range runners {
		delete(s.last, r)
		delete(healths, r.id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, h := range healths { // of devices without a runner
		if len(s.departed) < maxDeparted {
			s.departed[id] = h
		}
	}
}

// health returns what the routers should know of the device.
func (r *runner) health(now time.Time) device.Health {
	h := r.ejector.Health(now)
	h.Slots, h.DispatchMS = r.concurrency.Below(), math.Round(r.latency.value()*100)/100
	h.Declines, h.MaxBatch, h.Context = r.declines.List(now), r.batches.Known(), r.contexts.Known()
	r.figures.Add(&h, now)
	r.mu.Lock()
	h.Figures.Running = len(r.running) + len(r.hung)
	if r.slowUntil.After(now) {
		h.ThrottledUntil = r.slowUntil
	}
	r.mu.Unlock()
	return h
}

// sameHealth reports whether two healths are equal except for noise.
func sameHealth(a, b device.Health) bool {
	return a.State == b.State && a.Slots == b.Slots && a.Opened == b.Opened && a.ThrottledUntil.Equal(b.ThrottledUntil) && a.Failing == b.Failing &&
		len(a.Declines) == len(b.Declines) && maps.Equal(a.MaxBatch, b.MaxBatch) && maps.Equal(a.Context, b.Context) &&
		math.Abs(a.DispatchMS-b.DispatchMS) <= 0.1*max(a.DispatchMS, b.DispatchMS)
}

// breakerChanged records that a device's breaker opened, half-opened or closed.
func (s *Workers) breakerChanged(id string, c learn.Change) {
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
		Time: clock.Now().Add(-time.Since(c.At)).UTC(), Action: action, Outcome: task.OutcomeOK, Tenant: task.DefaultTenant, ActorType: task.ActorStage,
		ActorID: s.deps.Instance, ResourceType: "device", ResourceID: id, DeviceID: id, Detail: detail(note),
	}}})
}

// retireAfter is how long a device may be without work before its breaker and rates are forgotten
// here. The rates stay in Redis.
const retireAfter = 30 * time.Minute

// retire forgets the runners that have been idle for longer than after.
func (s *Workers) retire(after time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, r := range s.runners {
		if since, idle := r.idleSince(); idle && time.Since(since) > after {
			h := r.health(time.Now())
			if h.ThrottledUntil.After(time.Now()) {
				continue // it reports the pause
			}
			r.retired.Store(true)
			// The breaker goes with it, so its last report no longer holds.
			s.departed[id] = device.Health{State: device.StateClosed, Declines: h.Declines, MaxBatch: h.MaxBatch, Context: h.Context}
			delete(s.runners, id)
		}
	}
}
