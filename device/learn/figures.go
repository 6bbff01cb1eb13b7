package learn

import (
	"math"
	"sync"
	"time"

	"github.com/batchyard/batchyard/device"
)

// figureBuckets and figureWidth make up the time for which figures are "lately": a minute.
const (
	figureBuckets = 12
	figureWidth   = 5 * time.Second
)

// Figures counts the requests to a device, for people. It may be used by many goroutines.
type Figures struct {
	mu        sync.Mutex
	buckets   [figureBuckets]figureBucket
	first     time.Time // when the first request ended
	completed int64
	failing   string // what the last request failed with; empty: it did not
	since     time.Time
}

// figureBucket counts the requests that ended within one figureWidth.
type figureBucket struct {
	at       int64 // number of the figureWidth
	requests int64
	failed   int64
	tokens   int64
	took     time.Duration // of those that did not fail
}

func (f *Figures) bucket(now time.Time) *figureBucket {
	at := now.UnixNano() / int64(figureWidth)
	b := &f.buckets[at%figureBuckets]
	if b.at != at {
		*b = figureBucket{at: at}
	}
	return b
}

// Ended counts a request. failure is what people read if the device was at fault, as the outcome says.
func (f *Figures) Ended(now time.Time, o Outcome, took time.Duration, failure string) {
	if o == Neutral || o == Throttled {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.first.IsZero() {
		f.first = now
	}
	b := f.bucket(now)
	b.requests++
	switch o {
	case Fault, TimedOut, Suspect:
		b.failed++
		if f.failing == "" {
			f.since = now
		}
		f.failing = failure
		return
	case OK:
		f.failing = ""
	case Charged, Throttled, Neutral:
	}
	f.completed++
	b.took += took
}

// Tokens counts output tokens of an answer.
func (f *Figures) Tokens(now time.Time, n int64) {
	if n <= 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bucket(now).tokens += n
}

// Add writes the figures into a health.
func (f *Figures) Add(h *device.Health, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	oldest := now.UnixNano()/int64(figureWidth) - figureBuckets
	var all figureBucket
	for i := range f.buckets {
		if b := &f.buckets[i]; b.at > oldest {
			all.requests += b.requests
			all.failed += b.failed
			all.tokens += b.tokens
			all.took += b.took
		}
	}
	h.Figures = device.Figures{Completed: f.completed}
	if all.requests > 0 {
		h.Figures.FailureRate = math.Round(1000*float64(all.failed)/float64(all.requests)) / 1000
	}
	if good := all.requests - all.failed; good > 0 {
		h.Figures.MeanMS = math.Round(10*float64(all.took.Microseconds())/1000/float64(good)) / 10
	}
	if all.tokens > 0 {
		over := min(now.Sub(f.first), figureBuckets*figureWidth)
		h.Figures.TokensPerSecond = math.Round(10*float64(all.tokens)/max(1, over.Seconds())) / 10
	}
	if h.Failing = f.failing; h.Failing != "" && h.State == device.StateClosed {
		h.Since = f.since
	}
}
