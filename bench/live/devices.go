package live

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/batchyard/batchyard/agent"
	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/fleet"
)

// joinWithin is how long the devices may take to join.
const joinWithin = 30 * time.Second

// yard is the devices of a turn and their agents.
type yard struct {
	fleet  *fleet.Fleet
	agents sync.WaitGroup
	quit   context.CancelFunc // stops the agents
	once   sync.Once
}

// startDevices starts the devices and an agent for each, with the default heartbeat
// interval, and waits until all devices have joined.
func (p *place) startDevices(ctx context.Context, seed uint64, server string) (_ *yard, err error) {
	background, quit := context.WithCancel(context.WithoutCancel(ctx))
	y := &yard{quit: quit}
	defer func() {
		if err != nil {
			y.close()
		}
	}()
	specs := append([]fleet.Spec(nil), p.s.o.Fleet...)
	for i := range specs {
		specs[i].Seed += seed << 16 // different service times in each round and on each device
	}
	if y.fleet, err = fleet.Start(context.WithoutCancel(ctx), specs); err != nil {
		return nil, fmt.Errorf("starting the devices: %w", err)
	}
	for _, d := range y.fleet.Devices() {
		spec := d.Spec()
		c := agent.Config{ID: d.ID(), URL: d.URL(), Models: spec.Models, Tags: spec.Tags, Slots: spec.Slots, Server: server}
		y.agents.Go(func() {
			if err := agent.Run(background, c, p.s.o.Logger); err != nil {
				p.s.o.Logger.Error("an agent failed", "device_id", c.ID, "error", err)
			}
		})
	}
	return y, p.waitForDevices(ctx, len(specs))
}

// waitForDevices returns when n devices have joined.
func (p *place) waitForDevices(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, joinWithin, fmt.Errorf("the %d devices did not join within %s", n, joinWithin))
	defer cancel()
	registry := device.NewRegistry(p.redis, device.Config{}, p.prefix)
	changed := make(chan struct{}, 1)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	watching.Go(func() {
		_ = registry.Watch(ctx, func() { // only ends with ctx
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	})
	for {
		if ds, err := registry.List(ctx); err == nil && len(ds) >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// close stops the agents, which report that their devices leave, and then the
// devices.
func (y *yard) close() {
	y.once.Do(func() {
		y.quit()
		y.agents.Wait()
		if y.fleet != nil {
			y.fleet.Close()
		}
	})
}

// work returns the work done so far, as the time the whole fleet needs for it: busy
// slot time, weighted by the rate of the slot.
func (y *yard) work() time.Duration {
	done, capacity := 0.0, 0.0
	for _, d := range y.fleet.Devices() {
		spec := d.Spec()
		if spec.ServiceTime <= 0 { // answers immediately, so it has no rate
			continue
		}
		rate := 1 / spec.ServiceTime.Seconds()
		done += float64(d.Stats().BusySlotTime) * rate
		capacity += float64(spec.Slots) * rate
	}
	if capacity == 0 {
		return 0
	}
	return time.Duration(done / capacity)
}
