package router

import (
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/batchyard/batchyard/device"
)

// field is the candidates of a class, kept while nothing but their loads changes.
type field struct {
	Field
	states []*state
	out    [reasons]int
	cost   float64 // seconds of service of one task, on average over the candidates
}

// look makes the class's field anew when the view is another.
func (v *view) look(c *class, now time.Time, rng *rand.Rand) *field {
	f := c.field
	if f == nil {
		f = &field{}
		c.field = f
	}
	f.Now, f.Routers, f.Picks = now, v.routers, v.picks
	if f.Gen == v.gen && f.Rand != nil {
		return f
	}
	f.Gen, f.Rand, f.Memo, f.Hop = v.gen, rng, nil, v.cfg.Hop
	f.out = [reasons]int{}
	f.states, f.Cands = f.states[:0], f.Cands[:0]
	for _, s := range v.devices {
		why := s.fit(c, now)
		f.out[why]++
		if why == fits {
			f.states = append(f.states, s)
		}
	}
	if len(f.states) == 0 && f.out[isExcluded] > 0 { // better a second try there than none
		f.out[isExcluded] = 0
		for _, s := range v.devices {
			if s.fit(c, now) == isExcluded {
				f.states = append(f.states, s)
			}
		}
	}
	var hop time.Duration
	rate, slots := 0.0, 0
	for _, s := range f.states {
		r := s.rate(c)
		cand := Candidate{
			Device: s.ID, Load: &s.pool(c.merged).Load, Service: time.Duration(r.ServiceMS * float64(time.Millisecond)),
			CPU: s.CPU, Mem: s.Mem, IO: s.IO, Latency: time.Duration(s.LatencyMS * float64(time.Millisecond)), Queue: s.Queue, Weight: s.Weight,
			Explore: v.late && v.stale(s, r, now),
		}
		hop += v.hop(s)
		if r.ServiceMS > 0 {
			rate += float64(cand.Slots) / r.ServiceMS
			slots += cand.Slots
		}
		f.Cands = append(f.Cands, cand)
	}
	f.cost = unknownService.Seconds()
	if rate > 0 {
		f.cost = float64(slots) / rate / 1000
	}
	if n := len(f.states); n > 0 {
		f.Hop = hop / time.Duration(n)
	}
	return f
}

// stale says that what is known of the device is old, and that it was not tried
// lately: it gets one task.
func (v *view) stale(s *state, r device.Rate, now time.Time) bool {
	return r.ServiceMS > 0 && !r.At.IsZero() && now.Sub(r.At) > v.cfg.Explore && now.Sub(s.tried) > v.cfg.Explore
}

// detail writes why a task goes where it goes, as the small JSON object of its
// event: the policy, the best candidates with their scores, and why the other
// devices of the fleet were out.
func (f *field) detail(policy Policy, c *Choice, b []byte) []byte {
	b = append(b, `{"policy":"`...)
	b = append(b, policy.Name()...)
	b = append(b, `","why":"`...)
	b = append(b, c.Note...)
	b = append(b, `","of":`...)
	b = strconv.AppendInt(b, int64(len(f.Cands)), 10)
	b = append(b, `,"candidates":[`...)
	b = f.candidate(b, policy, c.Index, c)
	for _, s := range c.Top[:c.Tops] {
		if s.Index != c.Index {
			b = append(b, ',')
			b = f.candidate(b, policy, s.Index, c)
		}
	}
	b = append(b, `],"out":{`...)
	first := true
	for r, n := range f.out {
		if r == int(fits) || n == 0 {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(b, '"')
		b = append(b, reasonNames[r]...)
		b = append(b, `":`...)
		b = strconv.AppendInt(b, int64(n), 10)
	}
	return append(b, `}}`...)
}

func (f *field) candidate(b []byte, policy Policy, index int, c *Choice) []byte {
	d := &f.Cands[index]
	b = append(b, `{"device_id":`...)
	b = strconv.AppendQuote(b, d.Device) // ids are plain: letters, digits and . _ - : @
	for _, s := range c.Top[:c.Tops] {
		if s.Index == index && policy.Unit() != "" {
			b = append(b, `,"score":`...)
			b = strconv.AppendFloat(b, s.Score, 'f', 3, 64)
			b = append(b, `,"unit":"`...)
			b = append(b, policy.Unit()...)
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
		b = strconv.AppendFloat(b, ms(d.Service), 'f', 1, 64)
	}
	return append(b, '}')
}
