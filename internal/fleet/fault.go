package fleet

import (
	"math"
	"sync/atomic"
	"time"
)

// FaultKind is what goes wrong with a device.
type FaultKind int

// The faults. Those that end a request before it has a slot are Fail, RateLimit,
// Hang and Reset: a device that fails fast looks idle, which is the point.
const (
	NoFault   FaultKind = iota
	Fail                // answers Status (500) after After
	RateLimit           // answers 429 with Retry-After (1 s), after After
	Hang                // accepts the request and never answers; the client has to go
	Reset               // resets the TCP connection after After
	Slow                // works Factor times as long as it would
	BadJSON             // works, then answers 200 with a body that is not JSON
	Truncate            // works, then announces the whole answer, sends half and closes
	Partial             // works, then leaves out the second half of a merged answer's items
)

// Fault is set on a device by SetFault and stays until it is cleared, replaced
// or used up.
type Fault struct {
	Kind       FaultKind
	Status     int           // for Fail; 0 means 500
	After      time.Duration // for Fail, RateLimit and Reset: the delay before it happens
	RetryAfter time.Duration // for RateLimit, sent in whole seconds, rounded up; 0 means 1 s
	Factor     float64       // for Slow; 0 means 10
	Share      float64       // of the requests that are hit, drawn by the device's seed; 0 means all
	Times      int           // how many requests are hit before the fault is used up; 0 means no end
	Everything bool          // also /health, /metrics and /v1/models, which agents and routers ask
}

// armed is a fault with what is left of it. A new one is made by each SetFault,
// so a request that saw the old one uses up the old one's count only.
type armed struct {
	Fault
	left atomic.Int64
}

func arm(f Fault) *armed {
	if f.Kind == NoFault {
		return nil
	}
	if f.Status == 0 {
		f.Status = 500
	}
	if f.RetryAfter <= 0 {
		f.RetryAfter = time.Second
	}
	if f.Factor <= 0 {
		f.Factor = 10
	}
	a := &armed{Fault: f}
	a.left.Store(math.MaxInt64)
	if f.Times > 0 {
		a.left.Store(int64(f.Times))
	}
	return a
}

// hits says whether the n-th request meets the fault, and takes one of its times.
func (f *armed) hits(seed, n uint64) bool {
	if f.Share > 0 && f.Share < 1 && unit(mix(seed^mix(^n))) > f.Share {
		return false
	}
	return f.left.Add(-1) >= 0
}

// SetFault makes the device fail in the given way from the next request on.
// Requests that hang already stay hanging until their clients go.
func (d *Device) SetFault(f Fault) { d.fault.Store(arm(f)) }

// ClearFault makes the device well again.
func (d *Device) ClearFault() { d.fault.Store(nil) }
