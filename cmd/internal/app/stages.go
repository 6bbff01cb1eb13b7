package app

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/batchyard/batchyard/batcher"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/waiting"
	"github.com/batchyard/batchyard/router"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/workers"
)

// stageSpec describes a stage and how to build it. Stages of a lower phase stop first: a
// stage stops before those that read what it writes.
type stageSpec struct {
	name     string
	what     string
	phase    int
	postgres need
	build    func(*App) (func(ctx context.Context, ready func()) error, error)
}

const phaseCount = 5

// need says how much a stage needs Postgres.
type need int

const (
	never    need = iota
	wanted        // it runs without, and knows less: it must also start while Postgres is away
	required      // it does not start without
)

// stages lists all stages in the order of a task's path.
var stages = []stageSpec{
	{"api", "HTTP: submit, status, devices", 0, required, buildAPI},
	{"router", "tasks to devices", 1, wanted, buildRouter},
	{"batcher", "assignments to batches", 2, never, buildBatcher},
	{"workers", "batches to results", 3, never, buildWorkers},
	{"audit", "events and results to Postgres", 4, required, buildAudit},
	{"callbacks", "results to the users' endpoints", 4, required, buildCallbacks},
}

// StageNames returns the names of all stages.
func StageNames() []string {
	names := make([]string, 0, len(stages))
	for _, s := range stages {
		names = append(names, s.name)
	}
	return names
}

// choose returns the named stages, or all if names is empty.
func choose(names []string) ([]stageSpec, error) {
	if len(names) == 0 {
		return stages, nil
	}
	var out []stageSpec
	for _, s := range stages {
		if slices.Contains(names, s.name) {
			out = append(out, s)
		}
	}
	for _, n := range names {
		if !slices.Contains(StageNames(), n) {
			return nil, fmt.Errorf("unknown stage %q: use %s", n, strings.Join(StageNames(), ", "))
		}
	}
	return out, nil
}

// shared holds the state that stages share through Redis.
type shared struct {
	registry *store.Registry
	credits  *store.Credits
	rates    *store.Rates
	cancels  *store.Overrides
	control  *store.Control
	presence *store.Presence
}

// readBy are the topics through which work reaches a device.
var readBy = []string{stream.Assignments, stream.Batches}

func (a *App) shared() shared {
	with, prefix := store.WithMetrics(a.metrics), a.cfg.Redis.Prefix
	return shared{
		registry: store.NewRegistry(a.Redis, a.cfg.Devices.Config, prefix, with),
		credits:  store.NewCredits(a.Redis, a.cfg.Devices.Config, prefix, with),
		rates:    store.NewRates(a.Redis, prefix, with),
		cancels:  store.NewOverrides(a.Redis, a.cfg.Devices.Config, prefix, with),
		control:  store.NewControl(a.Redis, a.cfg.Devices.Config, prefix, with),
		presence: store.NewPresence(a.Redis, a.cfg.Devices.Config, prefix, readBy, a.Log.PartitionOf, with),
	}
}

// asks adds a stage to those that are asked what waits in them.
func (a *App) asks(stage string, ask func(now time.Time) waiting.List) {
	a.sources = append(a.sources, waiting.Source{Stage: stage, Ask: ask})
}

func (a *App) actor(stage string) string { return stage + "@" + a.instance }

func buildRouter(a *App) (func(context.Context, func()) error, error) {
	in := a.shared()
	deps := router.Deps{
		Log: a.Log, Redis: a.Redis, Prefix: a.cfg.Redis.Prefix, Registry: in.registry, Credits: in.credits, Rates: in.rates,
		Presence: in.presence, Cancels: in.cancels, Control: in.control,
		Limits: a.cfg.Task.Limits(), Metrics: a.metrics, Logger: a.logger.With("stage", "router"), Instance: a.actor("router"), Retention: a.topics.retention,
		RequestTimeout: a.cfg.Workers.RequestTimeout,
	}
	if a.Pool != nil {
		deps.Known = a.lookup()
	}
	r, err := router.New(a.cfg.Router, deps)
	if err != nil {
		return nil, err
	}
	a.router = r
	a.asks(router.Stage, r.Waiting)
	return r.Run, nil
}

func buildBatcher(a *App) (func(context.Context, func()) error, error) {
	in := a.shared()
	b := batcher.New(a.cfg.Batcher, batcher.Deps{
		Stream: a.Log, Credits: in.credits, Presence: in.presence, Metrics: a.metrics, Logger: a.logger.With("stage", "batcher"), Instance: a.actor("batcher"),
	})
	a.batcher = b
	a.asks(batcher.Stage, b.Waiting)
	return b.Run, nil
}

func buildWorkers(a *App) (func(context.Context, func()) error, error) {
	in := a.shared()
	w, err := workers.New(a.cfg.Workers, workers.Deps{
		Stream: a.Log, Devices: a.cfg.Devices.List, Registry: in.registry, Credits: in.credits, Rates: in.rates, Cancels: in.cancels,
		Finished: store.NewFinished(a.Redis, a.cfg.Redis.Prefix, store.WithMetrics(a.metrics)),
		Presence: in.presence, Metrics: a.metrics, Logger: a.logger.With("stage", "workers"), Instance: a.actor("workers"),
	})
	if err != nil {
		return nil, err
	}
	a.workers = w
	a.asks(workers.Stage, w.Waiting)
	return w.Run, nil
}
