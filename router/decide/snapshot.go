package decide

import (
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/router/policy"
)

// snapshot is the candidates of a demand, kept while nothing but their loads changes.
type snapshot struct {
	policy.Snapshot
	devices  []*deviceView           // of the candidates, in the same order
	excluded [device.ReasonCount]int // devices of the fleet that are no candidates, by reason
	cost     float64                 // seconds of service of one task, the mean over the candidates
}

// snapshotOf returns the demand's snapshot, rebuilt if the view has changed.
func (v *view) snapshotOf(d *demand, now time.Time, rng *rand.Rand) *snapshot {
	f := d.snapshot
	if f == nil {
		f = &snapshot{}
		d.snapshot = f
	}
	f.Now, f.Routers, f.Picks = now, v.routers, v.picks
	if f.Generation == v.generation && f.Rand != nil {
		return f
	}
	f.Generation, f.Rand, f.Cache = v.generation, rng, nil
	v.findDevices(f, d, now)
	v.describeDevices(f, d, now)
	return f
}

// findDevices sorts the fleet into candidates and excluded devices.
func (v *view) findDevices(f *snapshot, d *demand, now time.Time) {
	f.excluded = [device.ReasonCount]int{}
	f.devices = f.devices[:0]
	awaited := false // a device may come back that has not refused such tasks
	for _, s := range v.devices {
		why := s.eligible(d, now)
		f.excluded[why]++
		switch why {
		case device.CanRun:
			f.devices = append(f.devices, s)
		case device.IsSilent, device.IsDraining, device.IsUnserved, device.BreakerIsOpen, device.IsThrottled:
			awaited = awaited || s.CouldServe(&d.Requirement)
		}
	}
	switch {
	case len(f.devices) > 0:
	case f.excluded[device.ExcludedForTask] > 0:
		v.useAfterAll(f, d, device.ExcludedForTask, now) // a second try on the same device is better than none
	case awaited:
	case f.excluded[device.DeclinesModel] > 0:
		v.useAfterAll(f, d, device.DeclinesModel, now) // all that are left refuse such tasks, and each has to say so itself
	case f.excluded[device.DeclinedTask] > 0:
		v.useAfterAll(f, d, device.DeclinedTask, now) // all have: its worker ends the task
	}
}

// useAfterAll makes the devices candidates that are out for a reason.
func (v *view) useAfterAll(f *snapshot, d *demand, reason device.Reason, now time.Time) {
	f.excluded[reason] = 0
	anyway := d.Requirement // were it not for what they refuse
	anyway.Endpoint, anyway.Size, anyway.Declined = "", 0, nil
	for _, s := range v.devices {
		if s.eligible(d, now) != reason {
			continue
		}
		if reason == device.ExcludedForTask || device.Eligible(&s.Device, &s.health, s.gate, &anyway, now) == device.CanRun {
			f.devices = append(f.devices, s)
		} else {
			f.excluded[reason]++
		}
	}
}

// describeDevices writes the candidates, and the means over them.
func (v *view) describeDevices(f *snapshot, d *demand, now time.Time) {
	f.Candidates = f.Candidates[:0]
	var dispatch time.Duration
	rate, slots := 0.0, 0
	for _, s := range f.devices {
		p := s.pool(d)
		r := p.rateOf(d.Model)
		c := policy.Candidate{
			Device: s.ID, Load: &p.Load, Service: duration(r.ServiceMS),
			CPU: s.CPU, Mem: s.Mem, IO: s.IO, Latency: duration(s.LatencyMS), Queue: s.Queue, Weight: s.Weight,
			ProbeDue: v.late && v.probeDue(s, r, now),
		}
		dispatch += v.dispatchLatency(s)
		if r.ServiceMS > 0 {
			rate += float64(c.Slots) / r.ServiceMS
			slots += c.Slots
		}
		f.Candidates = append(f.Candidates, c)
	}
	f.cost = policy.UnknownService.Seconds()
	if rate > 0 {
		f.cost = float64(slots) / rate / 1000
	}
	f.DispatchLatency = v.cfg.DispatchLatency
	if n := len(f.devices); n > 0 {
		f.DispatchLatency = dispatch / time.Duration(n)
	}
}

// probeDue reports whether the device was neither measured nor picked for so long that it should get
// one task.
func (v *view) probeDue(s *deviceView, r device.Rate, now time.Time) bool {
	return r.ServiceMS > 0 && !r.At.IsZero() && now.Sub(r.At) > v.cfg.ProbeInterval && now.Sub(s.picked) > v.cfg.ProbeInterval
}

func duration(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }

// explain writes why a task goes to a device, as the JSON object of its audit event: the policy, the
// best candidates with their scores, and why the other devices of the fleet were out.
func (f *snapshot) explain(p policy.Policy, c *policy.Choice, b []byte) []byte {
	b = append(b, `{"policy":"`...)
	b = append(b, p.Name()...)
	b = append(b, `","why":"`...)
	b = append(b, c.Why...)
	b = append(b, `","of":`...)
	b = strconv.AppendInt(b, int64(len(f.Candidates)), 10)
	b = append(b, `,"candidates":[`...)
	b = f.appendCandidate(b, p, c.Index, c)
	for _, s := range c.Top[:c.Tops] {
		if s.Index != c.Index {
			b = append(b, ',')
			b = f.appendCandidate(b, p, s.Index, c)
		}
	}
	b = append(b, `],"out":{`...)
	first := true
	for r, n := range f.excluded {
		if device.Reason(r) == device.CanRun || n == 0 {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(b, '"')
		b = append(b, device.Reason(r).String()...)
		b = append(b, `":`...)
		b = strconv.AppendInt(b, int64(n), 10)
	}
	return append(b, `}}`...)
}

func (f *snapshot) appendCandidate(b []byte, p policy.Policy, index int, c *policy.Choice) []byte {
	d := &f.Candidates[index]
	b = append(b, `{"device_id":`...)
	b = strconv.AppendQuote(b, d.Device) // plain: ids are letters, digits and . _ - : @
	for _, s := range c.Top[:c.Tops] {
		if s.Index == index && p.Unit() != "" {
			b = append(b, `,"score":`...)
			b = strconv.AppendFloat(b, s.Score, 'f', 3, 64)
			b = append(b, `,"unit":"`...)
			b = append(b, p.Unit()...)
			b = append(b, '"')
			break
		}
	}
	b = append(b, `,"used":`...)
	b = strconv.AppendInt(b, int64(d.Used), 10)
	b = append(b, `,"slots":`...)
	b = strconv.AppendInt(b, int64(d.Slots), 10)
	b = append(b, `,"limit":`...)
	b = strconv.AppendInt(b, int64(d.Limit), 10)
	if d.Service > 0 {
		b = append(b, `,"service_ms":`...)
		b = strconv.AppendFloat(b, millis(d.Service), 'f', 1, 64)
	}
	return append(b, '}')
}
