package app

import (
	"context"
	"time"
)

// forgetEvery is how often series of devices that are gone are looked for. A device is gone when it was missing twice.
const forgetEvery = time.Minute

// forgetDevices deletes the metric series of devices that are gone, until ctx ends.
func (a *App) forgetDevices(ctx context.Context) {
	registry := a.shared().registry
	tick := time.NewTicker(forgetEvery)
	defer tick.Stop()
	var missing map[string]bool
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		ds, err := registry.List(ctx)
		if err != nil {
			continue // without Redis the devices are not known
		}
		known := make(map[string]bool, len(ds))
		for i := range ds {
			known[ds[i].ID] = true
		}
		missing = a.metrics.Forget(known, missing)
	}
}
