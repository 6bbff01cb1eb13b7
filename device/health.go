package device

import (
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
	ThrottledUntil time.Time `json:"throttled_until,omitzero"` // it answered 429: no request before
	Slots          int       `json:"slots,omitempty"`          // requests at a time that it takes just now, fewer than it says; 0: as many as it says
	DispatchMS     float64   `json:"dispatch_ms,omitempty"`    // from assignment to the start of the request when a slot was free; 0: not known
	Opened         int       `json:"opened,omitempty"`         // times that the breaker opened in a row
	Why            string    `json:"why,omitempty"`            // the breaker opened, in figures
	At             time.Time `json:"at"`
}

// The states of a breaker, as in [Health.State].
const (
	StateClosed   = "closed"    // requests go through
	StateOpen     = "open"      // no requests
	StateHalfOpen = "half-open" // one request at a time tests whether the device has recovered
)
