package local

import (
	"context"
	"fmt"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/store"
)

// joinWait limits how long the start waits for devices. A device that is down joins later.
const joinWait = 4 * time.Second

// lookout reports devices that stop answering, and those that answer again, as long as the system runs.
type lookout struct {
	registry *store.Registry
	absent   func(device.Device)
	present  func(device.Device)
	known    map[string]device.Device
	all      int // how many devices are waited for
	joined   chan struct{}
}

// watchDevices reports devices until ctx ends. It returns once n devices are known, or after joinWait.
func (s *System) watchDevices(ctx context.Context, n int, o Options) {
	l := &lookout{
		registry: store.NewRegistry(s.App.Redis, s.Config.Devices.Config, s.Config.Redis.Prefix),
		absent:   o.Absent, present: o.Present, known: map[string]device.Device{}, all: n, joined: make(chan struct{}),
	}
	joined, changed := l.joined, make(chan struct{}, 1)
	s.agents.Go(func() {
		_ = l.registry.Watch(ctx, func() { // ends with ctx
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	})
	s.agents.Go(func() { l.run(ctx, changed) })
	wait := time.NewTimer(joinWait)
	defer wait.Stop()
	select {
	case <-joined:
	case <-wait.C:
	case <-ctx.Done():
	}
}

func (l *lookout) run(ctx context.Context, changed <-chan struct{}) {
	l.look(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			l.look(ctx)
		}
	}
}

// look reports the devices that changed since the last look. One that leaves is forgotten.
func (l *lookout) look(ctx context.Context) {
	ds, err := l.registry.List(ctx)
	if err != nil {
		return // there will be another change, or the stages report Redis
	}
	next := make(map[string]device.Device, len(ds))
	for _, d := range ds {
		next[d.ID] = d
		switch before := l.known[d.ID].Problem; {
		case d.Problem != "" && before == "" && l.absent != nil:
			l.absent(d)
		case d.Problem == "" && before != "" && l.present != nil:
			l.present(d)
		}
	}
	l.known = next
	if l.joined != nil && len(next) >= l.all {
		close(l.joined)
		l.joined = nil
	}
}

// Devices returns the devices as they are now. Those of the configuration that are not known yet have a problem that says so.
func (s *System) Devices(ctx context.Context) ([]device.Device, error) {
	ds, err := store.NewRegistry(s.App.Redis, s.Config.Devices.Config, s.Config.Redis.Prefix).List(ctx)
	if err != nil {
		return nil, err
	}
	known := make(map[string]bool, len(ds))
	for i := range ds {
		known[ds[i].ID] = true
	}
	for _, d := range s.Config.Devices.List {
		if d.URL != "" && !known[d.Name] {
			ds = append(ds, device.Device{ID: d.Name, URL: d.Base(), Problem: fmt.Sprintf("no answer within %s", joinWait)})
		}
	}
	return ds, nil
}
