package workers

import (
	"context"
	"slices"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/workers/verdict"
)

// knownFleet is the devices and their healths, as of a time.
type knownFleet struct {
	devices []device.Device
	healths map[string]device.Health
	at      time.Time
}

// fleetAge is how old what is known of the fleet may be when a task is about to fail by it.
const fleetAge = time.Second

// fleetNow returns the fleet as of a moment ago; nil if Redis does not answer.
func (s *Workers) fleetNow() *knownFleet {
	fresh := func() *knownFleet {
		if f := s.known.Load(); f != nil && time.Since(f.at) < fleetAge {
			return f
		}
		return nil
	}
	if f := fresh(); f != nil {
		return f
	}
	s.asking.Lock() // one question for all that ask meanwhile
	defer s.asking.Unlock()
	if f := fresh(); f != nil {
		return f
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.life), time.Second)
	defer cancel()
	f := &knownFleet{at: time.Now()}
	var err error
	if f.devices, err = s.deps.Registry.List(ctx); err == nil {
		_, f.healths, err = s.deps.Rates.Load(ctx)
	}
	if err != nil {
		s.deps.Logger.Debug("it is not known which other devices could run a task; it stays unfinished", "error", err)
		return nil
	}
	s.known.Store(f)
	return f
}

// others reports whether another device could run the task that has not refused it. If that is not known,
// there may be one.
func (s *Workers) others(w *work, id string) bool {
	if s.deps.Registry == nil {
		return false
	}
	f := s.fleetNow()
	return f == nil || f.has(requirementOf(w), id, time.Time{})
}

func requirementOf(w *work) *device.Requirement {
	t := w.task()
	return &device.Requirement{Endpoint: t.Endpoint, Model: t.Model, Size: device.SizeClass(len(t.Input)), Needs: t.Needs, Declined: task.DeclinedBy(t.Model, w.attempts)}
}

// has reports whether a device other than id could run a task that it has not refused, and at the time, if it
// is not zero, does not refuse its endpoint and model altogether.
func (f *knownFleet) has(want *device.Requirement, id string, now time.Time) bool {
	return slices.ContainsFunc(f.devices, func(d device.Device) bool {
		if d.ID == id || !d.CouldServe(want) || slices.Contains(want.Declined, d.ID) {
			return false
		}
		h := f.healths[d.ID]
		return now.IsZero() || !h.Declining(want.Endpoint, want.Model, want.Size, now)
	})
}

// wouldRefuse reports whether the device gets no requests like this call now, and the tasks have somewhere
// else to go.
func (r *runner) wouldRefuse(c *call, now time.Time) bool {
	t := c.works[0].task()
	if !r.declines.Declining(t.Endpoint, t.Model, c.size(), now) {
		return false
	}
	f := r.workers.known.Load()
	return f != nil && f.has(requirementOf(c.works[0]), r.id, now)
}

// size is the size class of the call. A batched request says nothing about the sizes of its tasks.
func (c *call) size() int {
	if c.group != nil {
		return 0
	}
	return device.SizeClass(len(c.works[0].task().Input))
}

// doubted returns why a request was refused, as far as the device can be trusted: one that has not answered any such
// request may call all of them invalid.
func (r *runner) doubted(c *call, f *Failure) *Failure {
	if t := c.works[0].task(); f != nil && f.Row().Next == verdict.Second && !r.declines.Proven(t.Endpoint, t.Model) {
		return f.Doubted()
	}
	return f
}

// learnOffer learns from the end of a request what the device takes: endpoints, models and sizes.
func (r *runner) learnOffer(c *call, f *Failure, now time.Time) {
	t := c.works[0].task()
	if f == nil {
		if c.group != nil {
			r.batches.Worked(t.Model, c.group.Items)
		}
		if r.declines.Answered(t.Endpoint, t.Model, c.size()) {
			r.workers.deps.Logger.Info("a device answers requests again that it refused", "device_id", r.id, "endpoint", t.Endpoint, "model", t.Model)
			r.workers.reportSoon()
		}
		return
	}
	if f.Kind == verdict.BatchTooLarge {
		r.batches.Refused(t.Model, c.group.Items)
		r.workers.reportSoon()
	}
	if f.Context > 0 {
		r.contexts.Said(t.Model, f.Context)
	}
	row := f.Row()
	if row.LetGo == 0 || c.trial != nil || len(t.DeclinedBy()) > 0 { // if others have refused it, too, it is the task
		return
	}
	d := device.Decline{Endpoint: t.Endpoint, Model: t.Model, Status: f.Status, Why: string(f.Kind)}
	if f.Kind == verdict.TooLong || f.Kind == verdict.BodyTooLarge {
		d.MinSize = c.size()
	}
	if r.declines.Refused(now, d, row.LetGo) {
		r.workers.deps.Logger.Warn("a device refuses all requests for an endpoint and model; it gets no more of them for a while",
			"device_id", r.id, "endpoint", t.Endpoint, "model", t.Model, "min_size", d.MinSize, "status", f.Status, "why", f.Kind)
		r.workers.reportSoon()
	}
}
