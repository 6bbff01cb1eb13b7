package workers

import (
	"time"

	"github.com/batchyard/batchyard/internal/waiting"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
)

// place is where a record is.
type place struct {
	owner  *stream.Ownership
	offset int64
}

// placeOf returns where the record of a piece of work is, and its name.
func placeOf(w *work) (place, string) {
	if rec, ok := w.ack.Record.(*stream.Record); ok {
		return place{rec.Ownership(), rec.Offset}, rec.Position()
	}
	return place{}, "a record"
}

// Waiting says what waits in the workers. It is called about once a second, by one goroutine.
func (s *Workers) Waiting(now time.Time) waiting.List {
	v := view{now: now, limit: s.cfg.RequestTimeout, lowest: map[place]bool{}}
	v.List = records.Waiting(s.deps.Stream, Stage, now, func(u *stream.Unfinished, _ *waiting.Oldest) bool {
		if u.Progress == stream.InFlight {
			v.lowest[place{u.Ownership, u.Offset}] = false
		}
		return u.Progress != stream.InFlight // those are in queues, run, or wait between two attempts
	})
	for _, r := range s.allRunners() {
		r.waiting(&v)
	}
	s.backoffs.waiting(&v)
	var unknown []place
	for at, known := range v.lowest {
		if !known {
			unknown = append(unknown, at)
		}
	}
	reason := waiting.Stuck
	if _, failing, _ := s.deps.Stream.Writing(); failing {
		reason = waiting.Kafka
	}
	for at, since := range s.lost.Look(now, unknown) {
		v.Add(waiting.Oldest{Reason: reason, What: at.owner.Position(at.offset), Since: since, Still: since, Cause: "what became of it is not acknowledged"})
	}
	return v.List
}

// view collects what waits, and which of the records that hold up a partition are found meanwhile.
type view struct {
	waiting.List
	now    time.Time
	limit  time.Duration  // of a request
	lowest map[place]bool // whether it was found
}

// found reports a piece of work that waits as o says.
func (v *view) found(w *work, o waiting.Oldest) {
	at, name := placeOf(w)
	if _, asked := v.lowest[at]; asked {
		v.lowest[at] = true
	}
	if o.Since.IsZero() {
		o.Since = w.read
	}
	o.What = name
	v.Add(o)
}

// waiting reports what waits at the device, and what runs there.
func (r *runner) waiting(v *view) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := waiting.Oldest{Reason: waiting.Stuck, Still: r.moved, Cause: "device " + r.id + " has a free slot"}
	switch {
	case r.slowUntil.After(v.now):
		o = waiting.Oldest{Reason: waiting.Throttled}
	case len(r.running) >= r.concurrency.Slots():
		o = waiting.Oldest{Reason: waiting.Busy, Still: r.moved, Allow: v.limit}
	}
	for _, c := range r.queue {
		for _, w := range c.works {
			v.found(w, o)
		}
	}
	for _, calls := range []map[*call]struct{}{r.running, r.hung} {
		for c := range calls {
			o := waiting.Oldest{Reason: waiting.Running, Since: c.began, Still: c.began, Allow: v.limit, Cause: "on device " + r.id}
			for _, w := range c.works {
				v.found(w, o)
			}
		}
	}
}

// waiting reports what waits between two attempts.
func (p *backoffs) waiting(v *view) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for w, t := range p.timers {
		o := waiting.Oldest{Reason: waiting.Later}
		if t.due.Before(v.now) {
			o = waiting.Oldest{Reason: waiting.Stuck, Still: t.due, Cause: "its backoff has ended"}
		}
		v.found(w, o)
	}
}
