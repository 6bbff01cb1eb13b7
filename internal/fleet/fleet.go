package fleet

import (
	"context"
	"fmt"
	"sync"
)

// Fleet is a set of simulated devices that are started and closed together.
type Fleet struct {
	devices []*Device
	byID    map[string]*Device
	detach  func() bool // from the context of Start
}

// Start creates the devices, each listening on its own loopback port. The fleet
// closes when ctx ends, or when Close is called, which also waits.
func Start(ctx context.Context, specs []Spec) (*Fleet, error) {
	if len(specs) == 0 {
		return nil, fmt.Errorf("starting simulated devices: no device is specified")
	}
	f := &Fleet{byID: make(map[string]*Device, len(specs))}
	for _, spec := range specs {
		if f.byID[spec.ID] != nil {
			f.Close()
			return nil, fmt.Errorf("starting simulated devices: %s is specified twice", spec.ID)
		}
		d, err := newDevice(ctx, spec)
		if err != nil {
			f.Close()
			return nil, err
		}
		f.devices = append(f.devices, d)
		f.byID[spec.ID] = d
		if err := d.Start(); err != nil {
			f.Close()
			return nil, err
		}
	}
	f.detach = context.AfterFunc(ctx, f.closeAll)
	return f, nil
}

// Devices returns the devices in the order of their specs.
func (f *Fleet) Devices() []*Device { return append([]*Device(nil), f.devices...) }

// Device returns the device with that id, or nil.
func (f *Fleet) Device(id string) *Device { return f.byID[id] }

// Close stops all devices, releases their ports, and returns when no goroutine or
// connection is left. Calling it again does nothing.
func (f *Fleet) Close() {
	if f.detach != nil {
		f.detach()
	}
	f.closeAll()
}

func (f *Fleet) closeAll() {
	var wg sync.WaitGroup
	for _, d := range f.devices {
		wg.Go(d.close)
	}
	wg.Wait()
}
