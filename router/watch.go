package router

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// startHelpers starts what talks to Redis beside the decisions: reading the
// fleet, hearing of freed credits, of cancelled tasks and of changed priorities.
func (s *scheduler) startHelpers(ctx context.Context, wg *sync.WaitGroup) {
	wg.Go(func() { s.readFleet(ctx) })

	pools := &gathered{wake: make(chan struct{}, 1)}
	wg.Go(func() { s.readFreed(ctx, pools) })

	watch := func(what string, f func() error) {
		wg.Go(func() {
			if err := f(); err != nil && ctx.Err() == nil {
				s.deps.Logger.Error("watching Redis ended", "what", what, "error", err)
			}
		})
	}
	watch("devices", func() error { return s.deps.Registry.Watch(ctx, s.lookSoon) })
	watch("credits", func() error { return s.deps.Credits.Watch(ctx, pools.add) })
	watch("cancelled tasks", func() error {
		return s.deps.Cancels.Watch(ctx, func(keys []task.Key) {
			select {
			case s.cancels <- keys:
			case <-ctx.Done():
			}
		}, s.gap)
	})
	watch("changed priorities", func() error {
		return s.deps.Cancels.WatchRanks(ctx, func(keys []task.Key) { s.rankChanges(ctx, keys) }, s.gap)
	})
}

// readFleet reads heartbeats, rates and healths, and what operators say, every
// Refresh, and at once when a device joined or left or an operator said something.
func (s *scheduler) readFleet(ctx context.Context) {
	tick := time.NewTicker(s.cfg.Refresh)
	defer tick.Stop()
	failing := false
	told := map[string]time.Time{} // devices whose silence is told of, by us or others, and when they were heard last
	for {
		f, err := s.loadFleet(ctx)
		if err == nil {
			s.tellSilent(ctx, f.Devices, told)
		}
		if err == nil {
			err = s.steer(ctx) // first: what follows is decided by the new policy
		}
		switch {
		case err == nil:
			failing = false
			select {
			case s.fleets <- f:
			case <-ctx.Done():
				return
			}
		case ctx.Err() == nil && !failing:
			failing = true
			s.deps.Logger.Warn("Redis does not tell the devices; the last known are used", "error", err)
		}
		select {
		case <-tick.C:
		case <-s.look:
		case <-ctx.Done():
			return
		}
	}
}

func (s *scheduler) loadFleet(ctx context.Context) (Fleet, error) {
	ds, err := s.deps.Registry.List(ctx)
	if err != nil {
		return Fleet{}, err
	}
	byOurClock(ds, time.Now())
	rates, healths, err := s.deps.Rates.Load(ctx)
	if err != nil {
		return Fleet{}, err
	}
	// That a pool has room is told by a message, which may be lost, and is not
	// told when Redis forgot the credits: a pool that is taken for full must not
	// stay so.
	pools := make([]string, 0, 2*len(ds))
	for _, d := range ds {
		pools = append(pools, device.Pool(d.ID, device.ClassEach), device.Pool(d.ID, device.ClassMerged))
	}
	counts, err := s.deps.Credits.Used(ctx, pools)
	if err != nil {
		return Fleet{}, err
	}
	used := make(map[string]int, len(pools))
	for i, p := range pools {
		used[p] = counts[i]
	}
	routers, err := s.deps.Credits.Present(ctx, s.name, 3*s.cfg.Refresh+time.Second)
	if err != nil {
		return Fleet{}, err
	}
	return Fleet{ds, rates, healths, used, routers}, nil
}

// tellSilent records which devices have fallen silent. told holds those that
// need not be asked about again.
func (s *scheduler) tellSilent(ctx context.Context, ds []device.Device, told map[string]time.Time) {
	var silent []device.Device
	known := make(map[string]bool, len(ds))
	for _, d := range ds {
		known[d.ID] = true
		if d.Silent && !told[d.ID].Equal(d.At) {
			silent = append(silent, d)
		}
	}
	for id := range told {
		if !known[id] {
			delete(told, id)
		}
	}
	silent = silent[:min(len(silent), device.MaxSilent)] // the rest at the next look
	first, err := s.deps.Registry.FirstToSay(ctx, silent)
	if err != nil {
		return // Redis went away again; the next look asks again
	}
	for _, d := range silent {
		told[d.ID] = d.At
	}
	now := time.Now().UTC()
	unit := stream.Unit{}
	for _, d := range first {
		unit.Events = append(unit.Events, task.Event{
			Time: now, Action: task.DeviceSilent, Outcome: task.OutcomeOK, Tenant: task.DefaultTenant, ActorType: task.ActorStage, ActorID: s.name,
			ResourceType: "device", ResourceID: d.ID, Device: d.ID, Detail: detail("heard_last", d.At.Format(time.RFC3339Nano)),
		})
	}
	if len(unit.Events) > 0 {
		_ = s.outbox.Put(ctx, unit) // an error means that ctx ended
	}
}

// byOurClock tells by the clock of this machine when devices joined: the registry
// tells it by Redis'. A device that seems to have joined in the future would get
// next to nothing until then.
func byOurClock(ds []device.Device, now time.Time) {
	for i := range ds {
		d := &ds[i]
		d.JoinedAt = d.JoinedAt.Add(now.Sub(d.At.Add(d.Age)))
	}
}

// gathered collects names of pools until somebody asks for them.
type gathered struct {
	mu    sync.Mutex
	names []string
	all   bool // messages may have been missed
	wake  chan struct{}
}

// maxGathered bounds the names kept; past it all are taken for freed.
const maxGathered = 4096

func (g *gathered) add(pools []string) {
	g.mu.Lock()
	if len(pools) == 0 || len(g.names) >= maxGathered {
		g.all, g.names = true, nil
	} else if !g.all {
		g.names = append(g.names, pools...)
	}
	g.mu.Unlock()
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

func (g *gathered) take() (names []string, all bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	names, all = g.names, g.all
	g.names, g.all = nil, false
	slices.Sort(names)
	return slices.Compact(names), all
}

// readFreed asks how many credits are in use in the pools that got room. The
// names that come while a question is under way make the next one, so there is
// never more than one.
func (s *scheduler) readFreed(ctx context.Context, pools *gathered) {
	for {
		select {
		case <-pools.wake:
		case <-ctx.Done():
			return
		}
		names, all := pools.take()
		var m map[string]int
		if !all {
			if len(names) == 0 {
				continue
			}
			used, err := s.deps.Credits.Used(ctx, names)
			if err != nil {
				continue // the next grant tells the truth
			}
			m = make(map[string]int, len(names))
			for i, n := range names {
				m[n] = used[i]
			}
		}
		select {
		case s.usage <- m:
		case <-ctx.Done():
			return
		}
	}
}
