package router

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/internal/lifecycle"
	"github.com/batchyard/batchyard/router/decide"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// watchers are the goroutines that talk to Redis beside the decisions: they read the fleet, and hear of
// freed credits, cancelled tasks and changed priorities.
func (s *scheduler) watchers() []lifecycle.Part {
	pools := &freedPools{wake: make(chan struct{}, 1)}
	onGap := func() { signal(s.gaps) }
	return []lifecycle.Part{
		lifecycle.Func(s.readFleet),
		lifecycle.Func(func(ctx context.Context) { s.readFreed(ctx, pools) }),
		s.watcher("devices", func(ctx context.Context) error {
			return s.deps.Registry.Watch(ctx, func() { signal(s.refresh) })
		}),
		s.watcher("credits", func(ctx context.Context) error { return s.deps.Credits.Watch(ctx, pools.add) }),
		s.watcher("cancelled tasks", func(ctx context.Context) error {
			return s.deps.Cancels.WatchCancels(ctx, func(keys []task.Key) { s.passCancels(ctx, keys) }, onGap)
		}),
		s.watcher("changed priorities", func(ctx context.Context) error {
			return s.deps.Cancels.WatchPriorities(ctx, func(keys []task.Key) { s.lookUpChanges(ctx, keys) }, onGap)
		}),
	}
}

// watcher makes a part of a subscription, whose failure is logged and stops nothing else.
func (s *scheduler) watcher(what string, watch func(ctx context.Context) error) lifecycle.Part {
	return lifecycle.Func(func(ctx context.Context) {
		if err := watch(ctx); err != nil && ctx.Err() == nil {
			s.deps.Logger.Error("watching Redis ended", "what", what, "error", err)
		}
	})
}

// passCancels hands cancelled tasks to the scheduler.
func (s *scheduler) passCancels(ctx context.Context, keys []task.Key) {
	select {
	case s.cancels <- keys:
	case <-ctx.Done():
	}
}

// readFleet reads heartbeats, rates, healths and the operators' settings every refresh interval, and
// at once after a device joined or left or an operator changed something.
func (s *scheduler) readFleet(ctx context.Context) {
	tick := time.NewTicker(s.cfg.RefreshInterval)
	defer tick.Stop()
	failing := false
	reported := map[string]time.Time{}
	for {
		err := s.refreshFleet(ctx, reported)
		if err != nil && ctx.Err() == nil && !failing {
			s.deps.Logger.Warn("cannot read the devices from Redis: using what was last known", "error", err)
		}
		switch {
		case err != nil && ctx.Err() == nil:
			s.oldest.redis.Begin("it does not say what devices there are: " + err.Error())
		case failing:
			s.oldest.redis.End()
		}
		failing = err != nil
		select {
		case <-tick.C:
		case <-s.refresh:
		case <-ctx.Done():
			return
		}
	}
}

// refreshFleet reads everything once. reported holds the devices whose silence was reported, by this
// router or another one, and their last heartbeat.
func (s *scheduler) refreshFleet(ctx context.Context, reported map[string]time.Time) error {
	f, err := s.loadFleet(ctx)
	if err != nil {
		return err
	}
	s.reportSilent(ctx, f.Devices, reported)
	if err := s.steer(ctx); err != nil { // before the fleet, which the new policy then decides on
		return err
	}
	select {
	case s.fleets <- f:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *scheduler) loadFleet(ctx context.Context) (decide.Fleet, error) {
	ds, err := s.deps.Registry.List(ctx)
	if err != nil {
		return decide.Fleet{}, err
	}
	if s.deps.Presence != nil {
		if err := s.deps.Presence.Mark(ctx, ds); err != nil {
			return decide.Fleet{}, err
		}
	}
	toLocalClock(ds, clock.Now())
	rates, healths, err := s.deps.Rates.Load(ctx)
	if err != nil {
		return decide.Fleet{}, err
	}
	// The message that a pool has room may be lost, and if Redis has lost the credits, no message
	// comes at all. Reading the counts here bounds how long a pool is wrongly taken for full.
	pools := make([]string, 0, 2*len(ds))
	for _, d := range ds {
		pools = append(pools, device.Pool(d.ID, device.ClassSingle), device.Pool(d.ID, device.ClassBatched))
	}
	used, err := s.usedOf(ctx, pools)
	if err != nil {
		return decide.Fleet{}, err
	}
	routers, err := s.deps.Credits.Present(ctx, s.deps.Instance, 3*s.cfg.RefreshInterval+time.Second)
	if err != nil {
		return decide.Fleet{}, err
	}
	return decide.Fleet{Devices: ds, Rates: rates, Healths: healths, Used: used, Routers: routers}, nil
}

// usedOf reads how many credits of the pools are in use.
func (s *scheduler) usedOf(ctx context.Context, pools []string) (map[string]int, error) {
	counts, err := s.deps.Credits.Used(ctx, pools)
	if err != nil {
		return nil, err
	}
	used := make(map[string]int, len(pools))
	for i, p := range pools {
		used[p] = counts[i]
	}
	return used, nil
}

// reportSilent writes an event for each device that has fallen silent, unless another router has done
// so. If the process dies between claiming the report and writing it, the event is missing.
func (s *scheduler) reportSilent(ctx context.Context, ds []device.Device, reported map[string]time.Time) {
	var silent []device.Device
	known := make(map[string]bool, len(ds))
	for _, d := range ds {
		known[d.ID] = true
		if d.Silent && !reported[d.ID].Equal(d.At) {
			silent = append(silent, d)
		}
	}
	for id := range reported {
		if !known[id] {
			delete(reported, id)
		}
	}
	silent = silent[:min(len(silent), store.MaxSilences)] // the rest at the next reading
	ours, err := s.deps.Registry.ClaimSilences(ctx, silent)
	if err != nil {
		return // Redis went away again; the next reading tries again
	}
	for _, d := range silent {
		reported[d.ID] = d.At
	}
	now := clock.Now().UTC()
	unit := stream.Unit{}
	for _, d := range ours {
		unit.Events = append(unit.Events, task.Event{
			Time: now, Action: task.DeviceSilent, Outcome: task.OutcomeOK, Tenant: task.DefaultTenant, ActorType: task.ActorStage, ActorID: s.deps.Instance,
			ResourceType: "device", ResourceID: d.ID, DeviceID: d.ID, Detail: detail("heard_last", d.At.Format(time.RFC3339Nano)),
		})
	}
	if len(unit.Events) > 0 {
		_ = s.out.outbox.Put(ctx, unit) // an error means that ctx ended
	}
}

// toLocalClock converts the times at which devices joined from Redis' clock to this machine's. A
// device that seems to join in the future would get next to nothing until then.
func toLocalClock(ds []device.Device, now time.Time) {
	for i := range ds {
		d := &ds[i]
		d.JoinedAt = d.JoinedAt.Add(now.Sub(d.At.Add(d.Age)))
	}
}

// freedPools collects the names of pools that got room until they are asked for.
type freedPools struct {
	mu    sync.Mutex
	names []string
	all   bool // messages may have been missed
	wake  chan struct{}
}

// maxFreedPools bounds the names kept; beyond it, all pools are taken for freed.
const maxFreedPools = 4096

func (f *freedPools) add(pools []string) {
	f.mu.Lock()
	if len(pools) == 0 || len(f.names) >= maxFreedPools {
		f.all, f.names = true, nil
	} else if !f.all {
		f.names = append(f.names, pools...)
	}
	f.mu.Unlock()
	signal(f.wake)
}

func (f *freedPools) take() (names []string, all bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	names, all = f.names, f.all
	f.names, f.all = nil, false
	slices.Sort(names)
	return slices.Compact(names), all
}

// readFreed asks how many credits are in use in the pools that got room. Names that arrive during a
// question make up the next one, so there is never more than one.
func (s *scheduler) readFreed(ctx context.Context, pools *freedPools) {
	for {
		select {
		case <-pools.wake:
		case <-ctx.Done():
			return
		}
		names, all := pools.take()
		var used map[string]int // nil: of unknown pools
		if !all {
			if len(names) == 0 {
				continue
			}
			var err error
			if used, err = s.usedOf(ctx, names); err != nil {
				continue // the next grant corrects the counts
			}
		}
		select {
		case s.used <- used:
		case <-ctx.Done():
			return
		}
	}
}
