package waiting

import (
	"fmt"
	"sync/atomic"
	"time"
)

// Oldest is what has waited longest in a stage for one reason.
type Oldest struct {
	Reason Reason
	What   string        // such as tasks.normal/3@17; never a tenant's or a user's words
	Since  time.Time     // when it began to wait
	Still  time.Time     // when anything of its kind moved last; zero: waiting for this reason is no stall
	Allow  time.Duration // how much longer than the common bound it may stand still
	Cause  string        // what is known beside the reason; may be empty
}

// Age is how long it has waited.
func (o *Oldest) Age(now time.Time) time.Duration { return max(0, now.Sub(o.Since)) }

// stalled reports whether it has not moved for longer than its bound.
func (o *Oldest) stalled(now time.Time, bound time.Duration) bool {
	return !o.Still.IsZero() && now.Sub(o.Still) > bound+o.Allow
}

// Stall is a stage that stands still. It is the error of its readiness.
type Stall struct {
	Oldest
	Stage string
	For   time.Duration // that nothing has moved
}

// Error says what stands still, since when, why, and what to do.
func (s *Stall) Error() string {
	if s.Cause == "" {
		return s.Brief()
	}
	return s.Brief() + ". Cause: " + s.Cause
}

// Brief is Error without the cause, which may name addresses and users.
func (s *Stall) Brief() string {
	e := s.Reason.Explain()
	return fmt.Sprintf("%s has stood still for %s (%s): %s. Remedy: %s", s.What, s.For.Round(time.Second), s.Reason, e.Means, e.Remedy)
}

// List collects the oldest thing for each reason.
type List []Oldest

// Add takes something that waits. What has stood still for longest matters more than what is oldest.
func (l *List) Add(o Oldest) {
	for i := range *l {
		have := &(*l)[i]
		if have.Reason != o.Reason {
			continue
		}
		if o.worse(have) {
			*have, o = o, *have
		}
		if o.Since.Before(have.Since) {
			have.Since = o.Since
		}
		return
	}
	*l = append(*l, o)
}

// Needs reports whether Add would change the list, so that What has to be filled in.
func (l *List) Needs(o *Oldest) bool {
	for i := range *l {
		if have := &(*l)[i]; have.Reason == o.Reason {
			return o.worse(have) || o.Since.Before(have.Since)
		}
	}
	return true
}

// worse reports whether it says more about a stall than another one for the same reason.
func (o *Oldest) worse(than *Oldest) bool {
	a, b := o.Still.Add(o.Allow), than.Still.Add(than.Allow)
	switch {
	case o.Still.IsZero() || than.Still.IsZero():
		return !o.Still.IsZero() || than.Still.IsZero() && o.Since.Before(than.Since)
	case !a.Equal(b):
		return a.Before(b)
	}
	return o.Since.Before(than.Since)
}

// Published is a list that one goroutine of a stage publishes and others read. If it is not published for long, the
// goroutine itself stands still.
type Published struct {
	what    string
	overdue time.Duration
	last    atomic.Pointer[published]
}

type published struct {
	at   time.Time
	list List
}

// NewPublished returns a list to be published by what is named. Once it is older than overdue, that is worth reporting.
func NewPublished(what string, overdue time.Duration) *Published {
	return &Published{what: what, overdue: overdue}
}

// Set publishes a list.
func (p *Published) Set(now time.Time, l List) { p.last.Store(&published{now, l}) }

// Get returns what was published last. Before the first time there is nothing.
func (p *Published) Get(now time.Time) List {
	last := p.last.Load()
	if last == nil {
		return nil
	}
	if now.Sub(last.at) < p.overdue {
		return last.list
	}
	l := append(List(nil), last.list...)
	l.Add(Oldest{Reason: Stuck, What: p.what, Since: last.at, Still: last.at})
	return l
}

// Lost watches for things that are accepted and that no part of a stage knows to wait. It remembers since when that is
// so. One goroutine uses it.
type Lost[K comparable] struct{ since map[K]time.Time }

// Look takes all things that are not known to wait for anything now, and returns since when each is not.
func (l *Lost[K]) Look(now time.Time, unknown []K) map[K]time.Time {
	since := make(map[K]time.Time, len(unknown))
	for _, k := range unknown {
		at, ok := l.since[k]
		if !ok {
			at = now
		}
		since[k] = at
	}
	l.since = since
	return since
}
