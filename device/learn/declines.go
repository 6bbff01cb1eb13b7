package learn

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/batchyard/batchyard/device"
)

// Declines learns what a device refuses altogether: a model that it does not have, although
// its list says so, or an endpoint. After a handful of refusals in a row it gets no more of these
// requests for a while, which doubles each time, and then one more refusal is enough.
//
//	taken ──(After refusals in a row)──▶ let go ──(First × 2ⁿ, at most Longest)──▶ tried
//	  ▲                                    ▲                                       │   │
//	  │                                    └──────────── it refuses ───────────────┘   │
//	  └────────────────────────────────── it answers ──────────────────────────────────┘
//
// It has no clock, and may be used by many goroutines.
type Declines struct {
	mu sync.Mutex
	by map[offer]*refusals
}

// offer is what a device is asked for.
type offer struct{ endpoint, model string }

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
func NewDeclines() *Declines { return &Declines{by: map[offer]*refusals{}} }

// Refused records that the device refused a request, as d says; after so many in a row, it is
// let go. It reports whether it was let go by this.
func (l *Declines) Refused(now time.Time, d device.Decline, after int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := offer{d.Endpoint, d.Model}
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

// Answered records that the device answered such a request.
func (l *Declines) Answered(endpoint, model string) (changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := offer{endpoint, model}
	r := l.by[k]
	delete(l.by, k)
	return r != nil && r.times > 0
}

// Seed takes over what an earlier owner of the device learned.
func (l *Declines) Seed(ds []device.Decline, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range ds[:min(len(ds), device.MaxDeclines)] {
		k := offer{d.Endpoint, d.Model}
		if l.by[k] == nil && d.Until.After(now) {
			l.by[k] = &refusals{inRow: 1, times: 1, last: now, Decline: d}
		}
	}
}

// Declining reports whether the device is let go for such requests.
func (l *Declines) Declining(endpoint, model string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.by[offer{endpoint, model}]
	return r != nil && r.Until.After(now)
}

// List returns what the device is let go for, sorted.
func (l *Declines) List(now time.Time) (out []device.Decline) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.by {
		if r.Until.After(now) {
			out = append(out, r.Decline)
		}
	}
	slices.SortFunc(out, func(a, b device.Decline) int {
		if c := strings.Compare(a.Model, b.Model); c != 0 {
			return c
		}
		return strings.Compare(a.Endpoint, b.Endpoint)
	})
	return out
}
