package learn

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/batchyard/batchyard/device"
)

// Declines learns what a device refuses altogether: a model that it does not have, although
// its list says so, an endpoint, or prompts from some size on. After a handful of refusals in a row it gets no more of these
// requests for a while, which doubles each time, and then one more refusal is enough.
//
//	taken ──(After refusals in a row)──▶ let go ──(First × 2ⁿ, at most Longest)──▶ tried
//	  ▲                                    ▲                                       │   │
//	  │                                    └──────────── it refuses ───────────────┘   │
//	  └────────────────────────────────── it answers ──────────────────────────────────┘
//
// It also knows what the device has answered: that it calls requests invalid says something about them only if it
// takes others.
//
// It has no clock, and may be used by many goroutines.
type Declines struct {
	mu     sync.Mutex
	by     map[offer]*refusals
	proven map[offer]struct{} // of size 0
}

// offer is what a device is asked for, of tasks from a size on.
type offer struct {
	endpoint, model string
	size            int
}

// maxProven bounds the endpoints and models that a device is known to have answered.
const maxProven = 256

type refusals struct {
	inRow, times int
	last         time.Time
	device.Decline
}

const (
	firstDecline   = 30 * time.Second
	longestDecline = 10 * time.Minute
)

// NewDeclines returns Declines of a device that has refused nothing yet.
func NewDeclines() *Declines {
	return &Declines{by: map[offer]*refusals{}, proven: map[offer]struct{}{}}
}

// Refused records that the device refused a request, as d says; after so many in a row, it is
// let go. It reports whether it was let go by this.
func (l *Declines) Refused(now time.Time, d device.Decline, after int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := offer{d.Endpoint, d.Model, d.MinSize}
	r := l.by[k]
	if r == nil {
		if len(l.by) >= device.MaxDeclines {
			l.forgetOldest()
		}
		r = &refusals{}
		l.by[k] = r
	}
	r.inRow++
	r.last = now
	if r.Until.After(now) || r.inRow < after && r.times == 0 {
		return false
	}
	pause := firstDecline
	for range r.times {
		pause = min(2*pause, longestDecline)
	}
	r.times++
	r.Decline = d
	r.Until = now.Add(pause)
	return true
}

func (l *Declines) forgetOldest() {
	var oldest offer
	var at time.Time
	for k, r := range l.by {
		if at.IsZero() || r.last.Before(at) {
			oldest, at = k, r.last
		}
	}
	delete(l.by, oldest)
}

// Answered records that the device answered a request of a task of the size class: it takes all that are as small. It
// reports whether it was let go for such requests.
func (l *Declines) Answered(endpoint, model string, size int) (changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, r := range l.by {
		if k.endpoint == endpoint && k.model == model && k.size <= size {
			changed = changed || r.times > 0
			delete(l.by, k)
		}
	}
	k := offer{endpoint, model, 0}
	if _, known := l.proven[k]; !known {
		if len(l.proven) >= maxProven {
			clear(l.proven)
		}
		l.proven[k] = struct{}{}
	}
	return changed
}

// Proven reports whether the device has answered a request for the endpoint and model.
func (l *Declines) Proven(endpoint, model string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.proven[offer{endpoint, model, 0}]
	return ok
}

// Seed takes over what an earlier owner of the device learned.
func (l *Declines) Seed(ds []device.Decline, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range ds[:min(len(ds), device.MaxDeclines)] {
		k := offer{d.Endpoint, d.Model, d.MinSize}
		if l.by[k] == nil && d.Until.After(now) {
			l.by[k] = &refusals{inRow: 1, times: 1, last: now, Decline: d}
		}
	}
}

// Declining reports whether the device gets no requests now of tasks of the size class.
func (l *Declines) Declining(endpoint, model string, size int, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, r := range l.by {
		if k.endpoint == endpoint && k.model == model && k.size <= size && r.Until.After(now) {
			return true
		}
	}
	return false
}

// List returns what the device gets no requests for now, sorted.
func (l *Declines) List(now time.Time) (out []device.Decline) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.by {
		if r.Until.After(now) {
			out = append(out, r.Decline)
		}
	}
	slices.SortFunc(out, func(a, b device.Decline) int {
		return cmp.Or(strings.Compare(a.Model, b.Model), strings.Compare(a.Endpoint, b.Endpoint), cmp.Compare(a.MinSize, b.MinSize))
	})
	return out
}
