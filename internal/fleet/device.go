package fleet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Device is one simulated device. All its methods may be called at any time from
// anywhere.
type Device struct {
	spec     Spec
	any      bool
	models   map[string]bool
	slots    *slots
	seen     *seen
	fault    atomic.Pointer[armed]
	sequence atomic.Uint64

	requests, items, succeeded, failed, cancelled, hit atomic.Int64
	inFlight, maxInFlight                              atomic.Int64

	// life guards what Start, Stop and Close change.
	life    sync.Mutex
	parent  context.Context
	port    int
	release func()
	server  *generation
	closed  bool
}

// Stats are a device's figures since it was made.
type Stats struct {
	Requests    int64 // inference requests that arrived
	Items       int64 // prompts and inputs in the requests that were answered
	Succeeded   int64 // requests answered well
	Errors      int64 // requests answered with an error, or broken by a fault
	Cancelled   int64 // requests whose client went before the answer
	FaultHits   int64 // requests that met a fault; Slow ones included
	InFlight    int   // requests that are here now: waiting, running or hanging
	MaxInFlight int   // the most that were here at once

	Running      int           // slots in use now
	Waiting      int           // requests waiting for a slot now
	MaxRunning   int           // the most slots that were in use at once
	BusySlotTime time.Duration // sum over the slots of the time they were in use
}

func newDevice(ctx context.Context, spec Spec) (*Device, error) {
	spec, err := spec.withDefaults()
	if err != nil {
		return nil, err
	}
	port, release, err := reservePort()
	if err != nil {
		return nil, fmt.Errorf("simulated device %s: %w", spec.ID, err)
	}
	d := &Device{
		spec: spec, models: make(map[string]bool), parent: ctx, port: port, release: release,
		slots: newSlots(spec.Slots, spec.Queue), seen: newSeen(spec.SeenKeys),
	}
	for _, m := range spec.Models {
		d.models[m] = true
		d.any = d.any || m == AnyModel
	}
	return d, nil
}

// ID is the device's name.
func (d *Device) ID() string { return d.spec.ID }

// Spec is what the device was made from, with the defaults filled in.
func (d *Device) Spec() Spec { return d.spec }

// URL is the base URL, without /v1; it stays the same through Stop and Start.
func (d *Device) URL() string {
	d.life.Lock()
	defer d.life.Unlock()
	return "http://" + d.address()
}

func (d *Device) address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(d.port)) }

// Seen says how often a request with this X-Request-Id or Idempotency-Key was
// given a slot. Only the latest Spec.SeenKeys keys are sure to be remembered.
func (d *Device) Seen(key string) int { return d.seen.count(key) }

// Stats are the device's figures now.
func (d *Device) Stats() Stats {
	st := Stats{
		Requests: d.requests.Load(), Items: d.items.Load(), Succeeded: d.succeeded.Load(),
		Errors: d.failed.Load(), Cancelled: d.cancelled.Load(), FaultHits: d.hit.Load(),
		InFlight: int(d.inFlight.Load()), MaxInFlight: int(d.maxInFlight.Load()),
	}
	d.slots.fill(&st)
	return st
}

// enter counts a request in; the caller counts it out.
func (d *Device) enter() {
	d.requests.Add(1)
	n := d.inFlight.Add(1)
	for {
		seen := d.maxInFlight.Load()
		if n <= seen || d.maxInFlight.CompareAndSwap(seen, n) {
			return
		}
	}
}

// generation is one life of the device's server, from Start to Stop.
type generation struct {
	http   *http.Server
	served chan struct{}
	cancel context.CancelFunc
	conns  sync.WaitGroup
}

// Start listens again after Stop, on the same port. It does nothing when the
// device is listening.
func (d *Device) Start() error {
	d.life.Lock()
	defer d.life.Unlock()
	if d.closed {
		return fmt.Errorf("starting simulated device %s: its fleet is closed", d.spec.ID)
	}
	if d.server != nil {
		return nil
	}
	ln, err := (&net.ListenConfig{}).Listen(d.parent, "tcp4", d.address())
	if err != nil {
		return fmt.Errorf("starting simulated device %s: %w", d.spec.ID, err)
	}
	d.port = ln.Addr().(*net.TCPAddr).Port
	ctx, cancel := context.WithCancel(d.parent)
	g := &generation{served: make(chan struct{}), cancel: cancel}
	g.http = &http.Server{
		Handler:     http.HandlerFunc(d.serve),
		BaseContext: func(net.Listener) context.Context { return ctx },
		// No ReadTimeout and no WriteTimeout: net/http would take them for the
		// client's departure while a slow request is worked on. The handlers set
		// deadlines for reading the body and for writing the answer instead.
		ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout:       5 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				g.conns.Add(1)
			case http.StateClosed, http.StateHijacked:
				g.conns.Done()
			}
		},
	}
	go func() {
		defer close(g.served)
		// Serve only returns when it is closed: accept errors are retried by it.
		if err := g.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			_ = ln.Close()
		}
	}()
	d.server = g
	return nil
}

// Stop makes the port refuse connections and cuts those that are open, as a
// machine does that loses its power. What was running is cancelled. It returns
// when everything has ended.
func (d *Device) Stop() {
	d.life.Lock()
	defer d.life.Unlock()
	d.stop()
}

func (d *Device) stop() {
	g := d.server
	if g == nil {
		return
	}
	d.server = nil
	// The connections go first: a request that is cancelled must find nobody to
	// answer, as after a loss of power.
	_ = g.http.Close() // reports listener errors, which end it all the same
	g.cancel()
	<-g.served
	// New connections are counted before Serve returns, so none is missed here.
	g.conns.Wait()
}

func (d *Device) close() {
	d.life.Lock()
	defer d.life.Unlock()
	d.stop()
	if !d.closed {
		d.closed = true
		d.release()
	}
}
