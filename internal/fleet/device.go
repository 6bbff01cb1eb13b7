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

// Device is one simulated device. Its methods are safe for concurrent use at any
// time.
type Device struct {
	spec     Spec
	anyModel bool
	models   map[string]bool
	slots    *slots
	seen     *seen
	fault    atomic.Pointer[armed]
	playing  atomic.Pointer[Play]
	sequence atomic.Uint64

	requests, items, succeeded, failed, cancelled, hit atomic.Int64
	inFlight, maxInFlight                              atomic.Int64

	// life guards what Start, Stop and Close change.
	life    sync.Mutex
	parent  context.Context
	port    int
	release func()
	server  *generation
	unplug  func() // ends what keeps the port while a play does
	closed  bool
}

// Stats are a device's counters since it was created, and its current load.
type Stats struct {
	Requests    int64 // inference requests received
	Items       int64 // prompts and inputs in the requests that were answered
	Succeeded   int64 // requests answered successfully
	Errors      int64 // requests answered with an error, or broken by a fault
	Cancelled   int64 // requests whose client left before the answer
	FaultHits   int64 // requests hit by a fault, including Slow
	InFlight    int   // current requests: waiting, running or hanging
	MaxInFlight int   // the highest InFlight so far

	Running      int           // slots in use
	Waiting      int           // requests waiting for a slot
	MaxRunning   int           // the highest Running so far
	BusySlotTime time.Duration // total time in use, summed over the slots
}

func newDevice(ctx context.Context, spec Spec) (*Device, error) {
	spec, err := spec.withDefaults()
	if err != nil {
		return nil, err
	}
	port, release, err := reservePort(spec.Port)
	if err != nil {
		return nil, fmt.Errorf("simulated device %s: %w", spec.ID, err)
	}
	d := &Device{
		spec: spec, models: make(map[string]bool), parent: ctx, port: port, release: release,
		slots: newSlots(spec.Slots, spec.Queue), seen: newSeen(spec.SeenKeys),
	}
	for _, m := range spec.Models {
		d.models[m] = true
		d.anyModel = d.anyModel || m == AnyModel
	}
	return d, nil
}

// ID returns the device's id.
func (d *Device) ID() string { return d.spec.ID }

// Spec returns the spec of the device, with the defaults filled in.
func (d *Device) Spec() Spec { return d.spec }

// URL returns the base URL, without /v1. Stop and Start don't change it.
func (d *Device) URL() string {
	d.life.Lock()
	defer d.life.Unlock()
	if p := d.playing.Load(); p != nil && p.Away == AwayNoTLS {
		return "https://" + d.address()
	}
	return "http://" + d.address()
}

func (d *Device) address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(d.port)) }

// Playing returns the name of what the device plays; empty if it answers well.
func (d *Device) Playing() string {
	if p := d.playing.Load(); p != nil {
		return p.Name
	}
	return ""
}

// Seen returns how many requests with this X-Request-Id or Idempotency-Key got a
// slot. It only remembers the latest Spec.SeenKeys keys for certain.
func (d *Device) Seen(key string) int { return d.seen.count(key) }

// Stats returns the device's current figures.
func (d *Device) Stats() Stats {
	st := Stats{
		Requests: d.requests.Load(), Items: d.items.Load(), Succeeded: d.succeeded.Load(),
		Errors: d.failed.Load(), Cancelled: d.cancelled.Load(), FaultHits: d.hit.Load(),
		InFlight: int(d.inFlight.Load()), MaxInFlight: int(d.maxInFlight.Load()),
	}
	d.slots.fill(&st)
	return st
}

// enter counts an arriving request; the caller must decrement inFlight when it is
// done.
func (d *Device) enter() {
	d.requests.Add(1)
	n := d.inFlight.Add(1)
	for {
		most := d.maxInFlight.Load()
		if n <= most || d.maxInFlight.CompareAndSwap(most, n) {
			return
		}
	}
}

// generation is one run of the device's server, from Start to Stop.
type generation struct {
	http   *http.Server
	served chan struct{}
	cancel context.CancelFunc
	conns  sync.WaitGroup
}

// Start makes a stopped device listen again, on the same port. It does nothing if
// the device is already listening.
func (d *Device) Start() error {
	d.life.Lock()
	defer d.life.Unlock()
	return d.start()
}

func (d *Device) start() error {
	if d.closed {
		return fmt.Errorf("starting simulated device %s: the fleet is closed", d.spec.ID)
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
		ConnContext: withRequests,
		// No ReadTimeout and no WriteTimeout: if one expired while a slow request
		// runs, net/http would treat it as the client leaving. Instead, the handlers
		// set deadlines while they read the body and write the answer.
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
		// Serve only returns once it is closed: it retries accept errors itself.
		if err := g.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			_ = ln.Close()
		}
	}()
	d.server = g
	return nil
}

// Stop makes the port refuse connections and drops the open ones, like a machine
// that loses power. Running requests are cancelled. It returns when all of them
// have ended.
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
	// Connections are closed first, so that a cancelled request can't answer its
	// client any more.
	_ = g.http.Close() // only reports listener errors; the listener is closed anyway
	g.cancel()
	<-g.served
	// Every connection was counted before Serve returned, so this waits for all.
	g.conns.Wait()
}

func (d *Device) close() {
	d.life.Lock()
	defer d.life.Unlock()
	d.stop()
	if d.unplug != nil {
		d.unplug()
		d.unplug = nil
	}
	if !d.closed {
		d.closed = true
		d.release()
	}
}
