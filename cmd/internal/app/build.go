package app

import (
	"context"
	"errors"
	"sync"

	"github.com/batchyard/batchyard/api"
	"github.com/batchyard/batchyard/api/openai/batches"
	"github.com/batchyard/batchyard/audit/recorder"
	"github.com/batchyard/batchyard/callbacks"
	"github.com/batchyard/batchyard/jobs/feed"
	"github.com/batchyard/batchyard/jobs/files"
	"github.com/batchyard/batchyard/producer"
	"github.com/batchyard/batchyard/status"
	"github.com/batchyard/batchyard/status/arrivals"
)

// Producer returns a producer that writes under this process's name. The caller closes it.
func (a *App) Producer() *producer.Producer {
	deps := producer.Deps{
		Stream: a.Log, Redis: a.Redis, Prefix: a.cfg.Redis.Prefix, Cancels: a.shared().cancels,
		Logger: a.logger.With("stage", "producer"), Metrics: a.metrics, Instance: a.actor("producer"),
	}
	if a.Pool != nil {
		deps.Known = a.lookup()
	}
	return producer.New(a.cfg.Task, deps)
}

// lookup returns what is asked about known tasks. It needs Postgres.
func (a *App) lookup() *status.Lookup {
	return status.NewLookup(a.cfg.Status, a.Store(), a.logger)
}

// Store returns the store that answers queries about tasks. It needs Postgres.
func (a *App) Store() *status.Store {
	return status.New(a.cfg.Status, status.Deps{Pool: a.Pool, Logger: a.logger, Metrics: a.metrics})
}

func buildAPI(a *App) (func(context.Context, func()) error, error) {
	in := a.shared()
	p := a.Producer()
	store := a.Store()
	heard := arrivals.New(arrivals.Deps{Stream: a.Log, Logger: a.logger.With("stage", "api"), Metrics: &a.metrics.API})
	batches, feeder, stored := a.batches(p, store, in)
	s, err := api.New(api.Deps{
		Producer: p, Store: store, Arrivals: heard, Registry: in.registry, Presence: in.presence,
		Control: in.control, Overrides: in.cancels, Rates: in.rates, Credits: in.credits, Policy: a.filePolicy,
		Checks: a.checks(), Gatherer: a.registry, Metrics: a.metrics,
		Logger: a.logger.With("stage", "api"), Version: a.cfg.Version, OpenAI: batches.Routes(),
	}, a.cfg.API)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, ready func()) error {
		feeding, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() { feeder.Run(feeding) })
		err := s.Run(ctx, func() {
			a.addr.Store(s.Addr().String())
			ready()
		})
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.cfg.API.DrainTimeout)
		defer cancel()
		heard.Close()
		stop()
		wg.Wait()
		store.Close()
		return errors.Join(err, p.Close(closing), stored.Close())
	}, nil
}

// batches returns OpenAI's Batch API, and what runs its jobs.
func (a *App) batches(p *producer.Producer, store *status.Store, in shared) (*batches.API, *feed.Feeder, *files.Store) {
	log := a.logger.With("stage", "api")
	stored := files.New(a.cfg.Files, a.Pool)
	feeder := feed.New(feed.Deps{Pool: a.Pool, Files: stored, Producer: p, Tasks: store, Overrides: in.cancels, Config: a.cfg.Jobs, Logger: log})
	return batches.New(batches.Deps{
		Files: stored, Batches: feed.NewStore(a.Pool, feeder.Wake), Jobs: store, Producer: p, Logger: log,
		QueryTimeout: a.cfg.API.QueryTimeout, BodyTimeout: a.cfg.API.BodyTimeout,
	}), feeder, stored
}

// checks returns the readiness checks: the services, and the stages in this process.
func (a *App) checks() []api.Check {
	cs := []api.Check{
		{Name: "kafka", Ping: a.Log.Ping},
		a.writesCheck(),
		{Name: "topics", Ping: fine, Note: a.topics.note},
		{Name: "redis", Ping: func(ctx context.Context) error { return a.Redis.Ping(ctx).Err() }, Note: a.Redis.Note},
		{Name: "clock", Ping: fine, Note: a.clock.Note},
	}
	if a.postgres == required {
		cs = append(cs, api.Check{Name: "postgres", Ping: a.Pool.Ping})
	}
	for _, name := range a.names {
		cs = append(cs, api.Check{Name: "stage " + name, Ping: func(context.Context) error { return a.stageReady(name) }, Note: func() string { return a.stageNote(name) }})
	}
	return cs
}

// fine is for checks that have only notes.
func fine(context.Context) error { return nil }

// writesCheck reports records that cannot be finished because Kafka refuses what they became, and writes
// that fail for long. Such a process is not ready; but one that serves the API stays ready as long as it
// can do that, because other processes may not be there to answer for it.
func (a *App) writesCheck() api.Check {
	c := api.Check{Name: "writes", Ping: func(context.Context) error { return a.Log.Stuck() }}
	if a.stage("api") != nil {
		c.Ping, c.Note = fine, func() string {
			if err := a.Log.Stuck(); err != nil {
				return oneLine(err)
			}
			return ""
		}
	}
	return c
}

func buildAudit(a *App) (func(context.Context, func()) error, error) {
	r := recorder.New(a.cfg.Audit, recorder.Deps{
		Log: a.Log, Pool: a.Pool, Logger: a.logger.With("stage", "audit"), Metrics: a.metrics, Instance: a.actor("audit"),
	})
	a.asks("audit", r.Waiting)
	return r.Run, nil
}

func buildCallbacks(a *App) (func(context.Context, func()) error, error) {
	c, err := callbacks.New(a.cfg.Callbacks, callbacks.Deps{
		Stream: a.Log, Pool: a.Pool, Logger: a.logger.With("stage", "callbacks"), Metrics: a.metrics, Instance: a.actor("callbacks"),
	})
	if err != nil {
		return nil, err
	}
	a.asks("callbacks", c.Waiting)
	return c.Run, nil
}
