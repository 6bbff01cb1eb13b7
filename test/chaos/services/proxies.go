package services

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/Shopify/toxiproxy/v2/toxics"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// Proxies are between the processes and the services, one per service and lane.
//
// Toxiproxy cannot add a toxic to a connection whose reader is gone or stopped: it
// waits for the reader while holding a lock that new connections need. So each
// direction starts with our toxic Valve, which delegates to the currently
// selected toxic.
type Proxies struct {
	all    map[string]*toxiproxy.Proxy // by service/lane
	valves map[string]*valve           // by service/lane/stream
}

// Streams are the two directions, as toxiproxy calls them.
var Streams = []string{"upstream", "downstream"}

// NewProxies returns no proxies yet.
func NewProxies() *Proxies {
	toxics.Register("valve", new(Valve))
	return &Proxies{all: map[string]*toxiproxy.Proxy{}, valves: map[string]*valve{}}
}

// Closing is how a proxy closes connections.
type Closing int

// The ways.
const (
	CloseNormally Closing = iota
	CloseWithReset
)

// Add starts a proxy.
func (p *Proxies) Add(name, listen, upstream string, how Closing) error {
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.Nop())
	proxy := toxiproxy.NewProxy(server, name, listen, upstream)
	for _, stream := range Streams {
		v := &valve{changed: make(chan struct{})}
		v.toxic = new(toxics.NoopToxic)
		p.valves[name+"/"+stream] = v
		valves.Store(listen+"/"+stream, v)
		if err := addToxic(proxy, "valve", stream, 1, map[string]any{"name": listen + "/" + stream}); err != nil {
			return err
		}
	}
	if how == CloseWithReset {
		// With toxicity 0 it affects no connection, but makes toxiproxy close without
		// lingering.
		if err := addToxic(proxy, "reset_peer", Streams[0], 0, nil); err != nil {
			return err
		}
	}
	if err := proxy.Start(); err != nil {
		return fmt.Errorf("starting the proxy for %s: %w", name, err)
	}
	p.all[name] = proxy
	return nil
}

func addToxic(proxy *toxiproxy.Proxy, kind, stream string, toxicity float32, attributes map[string]any) error {
	b, err := json.Marshal(map[string]any{"type": kind, "stream": stream, "toxicity": toxicity, "attributes": attributes})
	if err != nil {
		return fmt.Errorf("encoding a toxic: %w", err)
	}
	if _, err := proxy.Toxics.AddToxicJson(strings.NewReader(string(b))); err != nil {
		return fmt.Errorf("adding a toxic to %s: %w", proxy.Name, err)
	}
	return nil
}

// Spoil sends one direction of a proxy through a toxic, until heal is called.
func (p *Proxies) Spoil(name, stream string, t toxics.Toxic) (heal func()) {
	v := p.valves[name+"/"+stream]
	v.set(t)
	return func() { v.set(new(toxics.NoopToxic)) }
}

// Close stops all proxies.
func (p *Proxies) Close() {
	for _, proxy := range p.all {
		proxy.Stop()
	}
}

// valves maps names to valves. Toxiproxy creates each Valve from JSON, so a Valve
// finds its valve by name.
var valves sync.Map

// valve holds the current toxic of one direction of a proxy.
type valve struct {
	mu      sync.Mutex
	toxic   toxics.Toxic
	changed chan struct{} // closed when the toxic is replaced
}

func (v *valve) set(t toxics.Toxic) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.toxic = t
	close(v.changed)
	v.changed = make(chan struct{})
}

func (v *valve) get() (toxics.Toxic, <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.toxic, v.changed
}

// Valve is the toxic of every connection. Each connection switches to a new toxic on
// its own as soon as it can, so none waits for another.
type Valve struct {
	Name string `json:"name"`
}

// Pipe implements toxics.Toxic.
func (t *Valve) Pipe(stub *toxics.ToxicStub) {
	found, ok := valves.Load(t.Name)
	v, is := found.(*valve)
	if !ok || !is {
		stub.Close()
		return
	}
	for {
		toxic, changed := v.get()
		inner := toxics.NewToxicStub(stub.Input, stub.Output)
		done := make(chan struct{})
		go func() {
			defer close(done)
			toxic.Pipe(inner)
		}()
		select {
		case <-done:
		case <-changed:
			select {
			case inner.Interrupt <- struct{}{}:
				<-done
			case <-done:
			}
			// Data lost in a black hole will never arrive, so drop the connection.
			if c, swallows := toxic.(toxics.CleanupToxic); swallows && !inner.Closed() {
				c.Cleanup(inner)
			}
		}
		if inner.Closed() {
			for c := range stub.Input { // unblock the writer
				_ = c
			}
			return
		}
	}
}
