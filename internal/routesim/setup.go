package routesim

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/config"
	"github.com/batchyard/batchyard/router"
	"github.com/batchyard/batchyard/workers"
)

// Model is the model that simulated devices serve.
const Model = "sim"

// DeviceSpec describes a device, including what routers don't know about it.
type DeviceSpec struct {
	ID      string
	Slots   int
	Service time.Duration // service time of a task with work 1 in one slot
	Models  []string      // empty means Model
	Tags    []string
}

// rate is the capacity of all slots, in tasks of work 1 per second.
func (d *DeviceSpec) rate() float64 { return float64(d.Slots) / d.Service.Seconds() }

// Fleet is the devices of a run.
type Fleet []DeviceSpec

// Capacity returns the capacity of all devices, in tasks of work 1 per second.
func (f Fleet) Capacity() float64 {
	sum := 0.0
	for i := range f {
		sum += f[i].rate()
	}
	return sum
}

// MeanService returns the mean service time of a task of work 1 when all slots are
// busy, with each slot weighted by its rate.
func (f Fleet) MeanService() time.Duration {
	slots := 0
	for i := range f {
		slots += f[i].Slots
	}
	return time.Duration(float64(slots) / f.Capacity() * float64(time.Second))
}

// part is a group of n equal devices; service is in milliseconds.
type part struct {
	kind              string
	n, slots, service int
}

func fleetOf(parts ...part) Fleet {
	var f Fleet
	for _, p := range parts {
		for i := range p.n {
			f = append(f, DeviceSpec{
				ID:    fmt.Sprintf("%s-%03d", p.kind, i+1),
				Slots: p.slots, Service: time.Duration(p.service) * time.Millisecond,
			})
		}
	}
	return f
}

// fleets are the presets, by name.
var fleets = map[string]func() Fleet{
	"mixed12": func() Fleet {
		return fleetOf(part{"a", 2, 4, 40}, part{"b", 3, 2, 60}, part{"c", 4, 1, 120}, part{"d", 3, 1, 240})
	},
	"mixed120": func() Fleet {
		return fleetOf(part{"a", 20, 4, 40}, part{"b", 30, 2, 60}, part{"c", 40, 1, 120}, part{"d", 30, 1, 240})
	},
	"equal12": func() Fleet { return fleetOf(part{"a", 12, 2, 60}) },
}

// FleetNames lists the presets.
func FleetNames() []string {
	names := make([]string, 0, len(fleets))
	for n := range fleets {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// NamedFleet returns the preset with that name.
func NamedFleet(name string) (Fleet, error) {
	f, ok := fleets[name]
	if !ok {
		return nil, fmt.Errorf("unknown fleet %q: use %s", name, strings.Join(FleetNames(), ", "))
	}
	return f(), nil
}

// Fault changes the mode of a device at some time.
type Fault struct {
	At     time.Duration
	Device string
	Mode   Mode
}

// Mode is how a device handles requests.
type Mode int

// The modes of a device.
const (
	Healthy Mode = iota
	Failing      // every request fails after a millisecond
	Hanging      // no request ends
)

// failsIn is how quickly a failing device fails a request.
const failsIn = time.Millisecond

// Setup is everything that a run depends on.
type Setup struct {
	Fleet    Fleet
	Streams  []Stream
	Policy   string
	Binding  string // auto, late, early
	Routers  int
	Hop      time.Duration
	Seed     uint64
	Warmup   time.Duration // not measured
	Duration time.Duration // measured; after that, the remaining tasks run to their end
	Learned  bool          // start with learned rates
	Cut      bool          // stop after the measured time, even if tasks are unfinished
	Faults   []Fault

	Router  func(*router.Config)  // changes to the defaults
	Workers func(*workers.Config) // changes to the defaults
}

// beatEvery is how often a device sends a heartbeat.
const beatEvery = 5 * time.Second

// configs returns the default settings, with the changes of the setup.
func (s *Setup) configs() (rc router.Config, wc workers.Config, dc device.Config, err error) {
	for _, c := range []any{&rc, &wc, &dc} {
		if err := config.Load(c, config.Options{}); err != nil {
			return rc, wc, dc, fmt.Errorf("simulating: loading the default settings: %w", err)
		}
	}
	rc.Policy, rc.DispatchLatency, rc.Binding = s.Policy, s.Hop, cmp.Or(s.Binding, "auto")
	if s.Router != nil {
		s.Router(&rc)
	}
	if s.Workers != nil {
		s.Workers(&wc)
	}
	return rc, wc, dc, nil
}

// Check returns an error if the setup is invalid.
func (s *Setup) Check() error {
	switch {
	case len(s.Fleet) == 0:
		return errors.New("simulating: the fleet is empty")
	case len(s.Streams) == 0:
		return errors.New("simulating: there is no stream of tasks")
	case s.Routers < 1 || s.Routers > 64:
		return fmt.Errorf("simulating: %d routers are out of range: use 1 to 64", s.Routers)
	case s.Hop < 0 || s.Hop > time.Minute:
		return fmt.Errorf("simulating: a dispatch latency of %s is out of range; use 0 to 1m", s.Hop)
	case s.Duration <= 0 || s.Warmup < 0:
		return errors.New("simulating: the measured time must be positive and the warm-up not negative")
	}
	for _, f := range s.Faults {
		if !slices.ContainsFunc(s.Fleet, func(d DeviceSpec) bool { return d.ID == f.Device }) {
			return fmt.Errorf("simulating: a fault names unknown device %q", f.Device)
		}
	}
	return nil
}
