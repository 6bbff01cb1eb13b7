package batcher

import (
	"context"
	"strings"
	"sync"

	"github.com/batchyard/batchyard/device"
)

// watchCredits tells the loop about devices whose credits were freed. A device whose only tasks
// are those in open batches is idle, and they should not wait any longer.
func (b *Batcher) watchCredits(ctx context.Context) {
	freed := make(chan []string, 64)
	var watching sync.WaitGroup
	defer watching.Wait()
	watching.Go(func() {
		err := b.deps.Credits.Watch(ctx, func(pools []string) {
			select {
			case freed <- pools:
			default: // the batch closes when its oldest task has waited long enough
			}
		})
		if err != nil && ctx.Err() == nil {
			b.deps.Logger.Error("watching freed credits ended", "error", err)
		}
	})
	for {
		select {
		case <-ctx.Done():
			return
		case pools := <-freed:
			inFlight := b.tasksInFlight(ctx, pools)
			if inFlight == nil {
				continue
			}
			select {
			case b.freed <- inFlight:
			case <-ctx.Done():
				return
			}
		}
	}
}

// tasksInFlight returns how many tasks the devices of the pools have, counting both of a device's
// pools; nil when Redis does not answer.
func (b *Batcher) tasksInFlight(ctx context.Context, pools []string) map[string]int {
	seen := map[string]bool{}
	var ids, ask []string
	for _, p := range pools {
		i := strings.LastIndexByte(p, '/')
		if i < 0 || seen[p[:i]] {
			continue
		}
		id := p[:i]
		seen[id] = true
		ids, ask = append(ids, id), append(ask, device.Pool(id, device.ClassEach), device.Pool(id, device.ClassMerged))
	}
	if len(ids) == 0 {
		return nil
	}
	used, err := b.deps.Credits.Used(ctx, ask)
	if err != nil {
		return nil
	}
	out := make(map[string]int, len(ids))
	for i, id := range ids {
		out[id] = used[2*i] + used[2*i+1]
	}
	return out
}
