package fleet

import (
	"bytes"
	"math"
	"sync/atomic"
	"time"
)

// FaultKind is a way for a device to fail.
type FaultKind int

// The kinds of faults. Fail, RateLimit, Hang and Reset end a request before it
// gets a slot. That is deliberate: a device that fails fast looks idle.
const (
	NoFault   FaultKind = iota
	Fail                // answers with Status (default 500), after After
	RateLimit           // answers 429 with Retry-After (default 1 s), after After
	Hang                // accepts the request and never answers, until the client leaves
	Reset               // resets the TCP connection, after After
	Slow                // takes Factor times as long
	BadJSON             // runs the request, then answers 200 with a body that is not JSON
	Truncate            // runs the request, then closes the connection halfway through the answer
	Partial             // runs a batched request, then omits the second half of the items
	Reply               // answers with Status, Header and Body, after After
	Endless             // answers 200 with a body that does not end
	Stall               // runs the request, then sends half of the answer, and nothing more
	CloseKept           // resets a connection on which a request comes that is not the first
)

// Fault is injected into a device by SetFault. It stays until it is cleared,
// replaced or used up.
type Fault struct {
	Kind       FaultKind
	Status     int               // for Fail and Reply; 0 means 500
	Header     map[string]string // for Reply
	Body       string            // for Reply
	Until      time.Duration     // for Reply: Retry-After is the date so far from now
	Endpoint   string            // only hits requests to this path; empty means all
	Containing string            // only hits requests whose body contains this; empty means all
	After      time.Duration     // for Fail, RateLimit, Reply and Reset: delay before the fault
	RetryAfter time.Duration     // for RateLimit, rounded up to whole seconds; 0 means 1 s
	Factor     float64           // for Slow; 0 means 10
	Share      float64           // fraction of requests hit, drawn from the device's seed; 0 means all
	Times      int               // number of requests hit until the fault is used up; 0 means unlimited
	Everything bool              // also affects /health, /metrics and /v1/models, which agents and routers poll
}

// armed is a fault with its remaining count. Each SetFault creates a new one, so a
// request that loaded the old fault only uses up the old count.
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

// hits reports whether the fault hits the n-th request, which has that path and body, and if so counts it.
func (f *armed) hits(seed, n uint64, path string, body []byte) bool {
	if f.Endpoint != "" && path != f.Endpoint {
		return false
	}
	if f.Containing != "" && !bytes.Contains(body, []byte(f.Containing)) {
		return false
	}
	if f.Share > 0 && f.Share < 1 && unit(mix(seed^mix(^n))) > f.Share {
		return false
	}
	return f.left.Add(-1) >= 0
}

// SetFault makes the device fail in the given way, starting with the next request.
// Requests that already hang keep hanging until their clients leave.
func (d *Device) SetFault(f Fault) { d.fault.Store(arm(f)) }

// ClearFault removes the fault.
func (d *Device) ClearFault() { d.fault.Store(nil) }
