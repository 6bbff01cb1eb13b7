package router

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// fleet is one reading of Redis.
type fleet struct {
	devices []device.Device
	rates   map[device.RateKey]device.Rate
	healths map[string]device.Health
	used    map[string]int // credits in use, by pool
}

// scheduler owns window and view. Everything that happens reaches its goroutine
// by a channel, so a decision needs no lock.
type scheduler struct {
	cfg    Config
	deps   Deps
	name   string
	policy Policy
	outbox *stream.Outbox
	window *window
	view   *view

	arrivals   chan []*item
	lost       chan struct{}
	stragglers chan *stream.Record
	cancels    chan []task.Key
	gaps       chan struct{} // cancels may have been missed
	fleets     chan fleet
	freed      chan map[string]int // credits in use of pools that got room

	askFleet func() // reads the fleet again soon

	round   uint64
	cands   []Candidate
	states  []*state
	parked  bool      // tasks parked for want of a device are to be looked at
	retryAt time.Time // after an error of Redis: no round before
	backoff time.Duration
	relief  time.Time // no relief of the window before
}

func newScheduler(cfg Config, deps Deps, policy Policy, outbox *stream.Outbox) *scheduler {
	return &scheduler{
		cfg: cfg, deps: deps, name: deps.Instance, policy: policy, outbox: outbox,
		window: newWindow(cfg), view: newView(cfg),
		arrivals: make(chan []*item), lost: make(chan struct{}, 1),
		stragglers: make(chan *stream.Record, 4*cfg.WindowCount), cancels: make(chan []task.Key, 64), gaps: make(chan struct{}, 1),
		fleets: make(chan fleet, 1), freed: make(chan map[string]int, 1),
	}
}

// straggler is told of a record that holds up the commit of its partition.
func (s *scheduler) straggler(rec *stream.Record) {
	select {
	case s.stragglers <- rec:
	default: // more than there can be in flight
	}
}

// run decides until ctx ends.
func (s *scheduler) run(ctx context.Context) {
	var helpers sync.WaitGroup
	defer helpers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.startHelpers(ctx, &helpers)

	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case items := <-s.arrivals:
			s.arrive(ctx, items)
			s.drainArrivals(ctx)
		case <-s.lost:
			s.sweep()
		case rec := <-s.stragglers:
			s.parkRecord(ctx, rec)
		case keys := <-s.cancels:
			s.cancel(ctx, keys)
		case <-s.gaps:
			s.recheckCancels(ctx)
		case f := <-s.fleets:
			s.view.update(f.devices, f.rates, f.healths)
			s.view.credits(f.used)
			s.parked = true
			s.rewrite(ctx, time.Now())
			s.observe()
		case used := <-s.freed:
			if used == nil { // unknown: the next grant tells the truth
				for _, p := range s.view.pools {
					p.used = 0
				}
			}
			s.view.credits(used)
		case <-timer.C:
		}
		timer.Reset(s.step(ctx))
	}
}

// drainArrivals takes what else has come, so that one round sees it together.
func (s *scheduler) drainArrivals(ctx context.Context) {
	for range 16 {
		select {
		case items := <-s.arrivals:
			s.arrive(ctx, items)
		default:
			return
		}
	}
}

func (s *scheduler) arrive(ctx context.Context, items []*item) {
	now := time.Now()
	for _, it := range items {
		if it.rec.Lost() { // on the way here; its new owner reads it
			continue
		}
		s.parked = s.parked || it.early
		if !s.window.add(it, now) {
			// The task is in the window from another record, whose claim ours
			// did not see (Redis was emptied): one of them is enough.
			s.deps.Metrics.Router.Duplicates.Inc()
			e := task.NewEvent(task.TaskDuplicate, it.task, s.name, now)
			e.Outcome, e.SourceAddr = task.OutcomeRefused, "kafka:"+it.rec.Position()
			s.finish(ctx, it, stream.Unit{Events: []task.Event{e}})
		}
	}
}

// partitionLost is told when a partition belongs to another router now.
func (s *scheduler) partitionLost(int) {
	select {
	case s.lost <- struct{}{}:
	default:
	}
}

// sweep drops the items whose partition belongs to another router now.
func (s *scheduler) sweep() {
	for _, it := range s.window.byKey {
		if it.rec.Lost() {
			s.window.remove(it)
		}
	}
}

// step does everything that can be done now and returns how long nothing needs
// to be looked at.
func (s *scheduler) step(ctx context.Context) time.Duration {
	now := time.Now()
	if s.parked { // some came, or the fleet is another
		s.parked = false
		known := map[string]bool{}
		s.window.wakeEarly(now, func(c *class) bool {
			able, ok := known[c.key]
			if !ok {
				s.states = s.view.candidates(c, now, s.states)
				able = len(s.states) > 0
				known[c.key] = able
			}
			return able
		})
	}
	s.window.due(now, func(it *item) { s.expire(ctx, it, now) })
	for now.After(s.retryAt) && s.rounds(ctx, now) {
		s.drainArrivals(ctx)
		now = time.Now()
	}
	wait := s.cfg.Refresh
	if s.relieve(ctx, now) {
		wait = min(wait, reliefEvery)
	}
	if next := s.window.next(); !next.IsZero() {
		wait = min(wait, max(0, next.Sub(now)))
	}
	if now.Before(s.retryAt) {
		wait = min(wait, s.retryAt.Sub(now))
	}
	return max(wait, time.Millisecond)
}

// rounds makes one round of picks; true when another one may find more.
func (s *scheduler) rounds(ctx context.Context, now time.Time) bool {
	began := time.Now()
	picks, more := s.plan(now)
	if len(picks) == 0 {
		return false
	}
	wanted := len(picks)
	picks, err := s.take(ctx, picks)
	if err != nil {
		if s.backoff == 0 && ctx.Err() == nil {
			s.deps.Logger.Warn("Redis gives no credits; tasks wait until it does", "error", err)
		}
		s.backoff = min(max(2*s.backoff, 50*time.Millisecond), 2*time.Second)
		s.retryAt = now.Add(s.backoff/2 + rand.N(s.backoff)) //nolint:gosec // jitter
		return false
	}
	if s.backoff > 0 {
		s.deps.Logger.Info("Redis gives credits again")
		s.backoff = 0
	}
	m := s.deps.Metrics.Router
	m.RoundSeconds.Observe(time.Since(began).Seconds())
	m.RoundPicks.Observe(float64(len(picks)))
	s.assign(ctx, picks, now)
	return more || (len(picks) > 0 && len(picks) < wanted)
}

// cancel takes tasks that somebody cancelled out of the window. Their result is
// in the log already: whoever asked wrote it.
func (s *scheduler) cancel(ctx context.Context, keys []task.Key) {
	for _, k := range keys {
		it := s.window.byKey[k]
		if it == nil {
			continue
		}
		s.window.remove(it)
		e := task.NewEvent(task.TaskCancelled, it.task, s.name, time.Now())
		s.finish(ctx, it, stream.Unit{Events: []task.Event{e}})
		s.deps.Metrics.Router.Ended.WithLabelValues(string(task.Cancelled)).Inc()
	}
}

// recheckCancels asks which of the waiting tasks were cancelled while nobody
// could tell us.
func (s *scheduler) recheckCancels(ctx context.Context) {
	keys := make([]task.Key, 0, len(s.window.byKey))
	for k := range s.window.byKey {
		keys = append(keys, k)
	}
	marked, err := s.deps.Cancels.Marked(ctx, keys...)
	if err != nil {
		return // Redis went away again; the next gap asks again
	}
	var gone []task.Key
	for i, k := range keys {
		if marked[i] {
			gone = append(gone, k)
		}
	}
	s.cancel(ctx, gone)
}

// observe publishes what the window and the fleet look like.
func (s *scheduler) observe() {
	m := s.deps.Metrics.Router
	silent := 0
	for _, d := range s.view.devices {
		if d.Silent() {
			silent++
		}
		m.CreditsHeld.WithLabelValues(d.ID).Set(float64(d.each.used + d.batch.used))
	}
	m.DevicesSilent.Set(float64(silent))
	waiting := map[task.Priority]int{}
	bytes := 0
	for _, it := range s.window.byKey {
		waiting[it.task.Priority]++
		bytes += len(it.rec.Value)
	}
	for _, p := range task.Priorities {
		m.Waiting.WithLabelValues(string(p)).Set(float64(waiting[p]))
	}
	m.WindowBytes.Set(float64(bytes))
}

// startHelpers starts what talks to Redis beside the decisions: reading the
// fleet, hearing of freed credits and of cancelled tasks.
func (s *scheduler) startHelpers(ctx context.Context, wg *sync.WaitGroup) {
	changed := make(chan struct{}, 1)
	s.askFleet = func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	wg.Go(func() { s.readFleet(ctx, changed) })

	pools := &gathered{wake: make(chan struct{}, 1)}
	wg.Go(func() { s.readFreed(ctx, pools) })

	watch := func(what string, f func() error) {
		wg.Go(func() {
			if err := f(); err != nil && ctx.Err() == nil {
				s.deps.Logger.Error("watching Redis ended", "what", what, "error", err)
			}
		})
	}
	watch("devices", func() error { return s.deps.Registry.Watch(ctx, s.askFleet) })
	watch("credits", func() error { return s.deps.Credits.Watch(ctx, pools.add) })
	watch("cancelled tasks", func() error {
		return s.deps.Cancels.Watch(ctx, func(keys []task.Key) {
			select {
			case s.cancels <- keys:
			case <-ctx.Done():
			}
		}, func() {
			select {
			case s.gaps <- struct{}{}:
			default:
			}
		})
	})
}

// readFleet reads heartbeats, rates and healths every Refresh, and at once when
// a device joined or left.
func (s *scheduler) readFleet(ctx context.Context, changed <-chan struct{}) {
	tick := time.NewTicker(s.cfg.Refresh)
	defer tick.Stop()
	failing := false
	for {
		f, err := s.loadFleet(ctx)
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
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (s *scheduler) loadFleet(ctx context.Context) (fleet, error) {
	ds, err := s.deps.Registry.List(ctx)
	if err != nil {
		return fleet{}, err
	}
	rates, healths, err := s.deps.Rates.Load(ctx)
	if err != nil {
		return fleet{}, err
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
		return fleet{}, err
	}
	used := make(map[string]int, len(pools))
	for i, p := range pools {
		used[p] = counts[i]
	}
	return fleet{ds, rates, healths, used}, nil
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
		case s.freed <- m:
		case <-ctx.Done():
			return
		}
	}
}
