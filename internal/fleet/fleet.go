package fleet

import (
	"context"
	"fmt"
	"sync"
)

// Fleet is a set of simulated devices that live and end together.
type Fleet struct {
	devices []*Device
	byID    map[string]*Device
	unhook  func() bool
}

// Start makes the devices, each listening on a loopback port of its own. The end
// of ctx closes the fleet; Close does it sooner and waits.
func Start(ctx context.Context, specs []Spec) (*Fleet, error) {
	if len(specs) == 0 {
		return nil, fmt.Errorf("starting simulated devices: none is specified")
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
	f.unhook = context.AfterFunc(ctx, f.closeAll)
	return f, nil
}

// Devices are the fleet's devices in the order of their specs.
func (f *Fleet) Devices() []*Device { return append([]*Device(nil), f.devices...) }

// Device is the device of that name, nil when there is none.
func (f *Fleet) Device(id string) *Device { return f.byID[id] }

// Close stops all devices, gives their ports back and returns when no goroutine
// and no connection is left. It may be called more than once.
func (f *Fleet) Close() {
	if f.unhook != nil {
		f.unhook()
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
