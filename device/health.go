package device

import (
	"math/bits"
	"time"
)

// RateKey identifies what a rate was learned for.
type RateKey struct {
	DeviceID string
	Model    string
	Batched  bool // of batched requests, in which each task counts
}

// Rate is what a worker has learned about a device serving a model.
type Rate struct {
	ServiceMS float64   `json:"service_ms"` // time of one task on one busy slot
	Samples   int64     `json:"samples"`    // requests
	At        time.Time `json:"at"`         // of the last one
}

// Health is what the worker that owns a device has learned by sending it requests.
type Health struct {
	State          string    `json:"state"`                    // closed, half-open, open: see learn.Breaker
	OpenUntil      time.Time `json:"open_until,omitzero"`      // no request before
	ThrottledUntil time.Time `json:"throttled_until,omitzero"` // it asked for a pause: no request before
	Slots          int       `json:"slots,omitempty"`          // requests at a time that it takes just now, fewer than it says; 0: as many as it says
	DispatchMS     float64   `json:"dispatch_ms,omitempty"`    // from assignment to the start of the request when a slot was free; 0: not known
	Opened         int       `json:"opened,omitempty"`         // times that the breaker opened in a row
	Why            string    `json:"why,omitempty"`            // the breaker opened, in figures
	At             time.Time `json:"at"`
	Since          time.Time `json:"since,omitzero"`    // the breaker opened; while it is closed, since when all requests fail
	Failing        string    `json:"failing,omitempty"` // what the last request failed with; empty: it did not
	Figures        Figures   `json:"figures,omitzero"`

	// Declines is what the device gets no requests for just now, at most MaxDeclines.
	Declines []Decline `json:"declines,omitempty"`
	// MaxBatch is how many items a batched request may have, by model, where the device has
	// refused more; at most MaxBatches models.
	MaxBatch map[string]int `json:"max_batch,omitempty"`
	// Context is how many tokens the device takes at once, by model as tasks name it, as it said when it refused more; at
	// most MaxBatches models.
	Context map[string]int `json:"context,omitempty"`
}

// Figures are what a worker counted at a device, for people. Rates are of the last minute.
type Figures struct {
	Running         int     `json:"running,omitempty"`   // requests at the device now
	Completed       int64   `json:"completed,omitempty"` // requests that ended well since the worker has the device
	FailureRate     float64 `json:"failure_rate,omitempty"`
	MeanMS          float64 `json:"mean_ms,omitempty"`           // of a request
	TokensPerSecond float64 `json:"tokens_per_second,omitempty"` // of output
}

// Limits of a health.
const (
	MaxFailing  = 512 // bytes
	MaxDeclines = 32
	MaxBatches  = 64
)

// Decline is an endpoint and model whose requests a device lately all refused.
type Decline struct {
	Endpoint string    `json:"endpoint"`
	Model    string    `json:"model"`
	Status   int       `json:"status" doc:"HTTP status of the last answer."`
	Why      string    `json:"why" doc:"The kind of refusal, as in docs/failures.md." example:"no_endpoint"`
	MinSize  int       `json:"min_size,omitempty" doc:"Only tasks whose input has this many bytes, or more, are refused: their prompts are too long for the device. 0: all."`
	Until    time.Time `json:"until" doc:"Then a request is tried again, unless every device refuses such requests."`
}

// SizeClass rounds the size of a task's input, in bytes, down to 0 or to a power of two from 1024 on. It is how
// large prompts are told apart from small ones before a device counts their tokens.
func SizeClass(bytes int) int {
	if bytes < 1<<10 {
		return 0
	}
	return 1 << (bits.Len(uint(bytes)) - 1)
}

// Declining reports whether the device lately refused every request for the endpoint and model, of tasks of the size
// class, or of smaller ones, too.
func (h *Health) Declining(endpoint, model string, size int, now time.Time) bool {
	for i := range h.Declines {
		if d := &h.Declines[i]; d.Endpoint == endpoint && d.Model == model && d.MinSize <= size && d.Until.After(now) {
			return true
		}
	}
	return false
}

// PausedUntil returns until when the device asked for a pause; zero if it did not, or if it is over.
func (h *Health) PausedUntil(now time.Time) time.Time {
	if !h.ThrottledUntil.After(now) {
		return time.Time{}
	}
	return h.ThrottledUntil
}

// DeclinesAt returns what the device gets no requests for at a time.
func (h *Health) DeclinesAt(now time.Time) (out []Decline) {
	for _, d := range h.Declines {
		if d.Until.After(now) {
			out = append(out, d)
		}
	}
	return out
}

// The states of a breaker, as in [Health.State].
const (
	StateClosed   = "closed"    // requests go through
	StateOpen     = "open"      // no requests
	StateHalfOpen = "half-open" // one request at a time tests whether the device has recovered
)
