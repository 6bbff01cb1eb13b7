package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/batchyard/batchyard/batcher"
	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/access"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/internal/unreachable"
	"github.com/batchyard/batchyard/internal/waiting"
	"github.com/batchyard/batchyard/migrations"
	"github.com/batchyard/batchyard/router"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/workers"
)

// App holds the stages of one process and their shared connections.
type App struct {
	cfg      Config
	logger   *slog.Logger
	instance string
	registry *prometheus.Registry
	metrics  *metrics.Metrics

	Log   *stream.Client
	Redis *store.Redis
	Pool  *pgxpool.Pool // nil if no stage needs Postgres

	clock  *store.Clock
	topics *topicWatch

	postgres need // of the stage that needs it most

	names  []string // of the stages in this process
	stages []*running
	closes []func()
	addr   atomic.Value // of the API or the ops listener

	sources []waiting.Source // the stages of this process
	waiting *waiting.Board

	Alone  bool       // no other process reports the devices of the configuration: they leave when this one ends
	mu     sync.Mutex // of the next two
	agents *agents    // nil if the API runs in another process, or does not run yet
	list   []access.Device

	router  *router.Router                       // nil if it runs in another process
	workers *workers.Workers                     // the same
	batcher *batcher.Batcher                     // the same
	policy  atomic.Pointer[device.PolicySetting] // currently in the configuration file
	source  Source
}

// running is one stage of this process.
type running struct {
	name  string
	phase int
	run   func(ctx context.Context, ready func()) error
	ready atomic.Bool
}

// New connects to the services and builds the stages. No names means all stages. Every
// error is one line that names the remedy.
func New(ctx context.Context, cfg Config, names []string, logger *slog.Logger) (_ *App, err error) {
	specs, err := choose(names)
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	a := &App{
		cfg: cfg, logger: logger, instance: fmt.Sprintf("%s-%d", host, os.Getpid()),
		registry: reg, metrics: metrics.New(reg), list: cfg.Devices.List,
	}
	policy, err := policyOf(&cfg)
	if err != nil {
		return nil, err
	}
	a.policy.Store(&policy)
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	if err := a.connect(ctx, specs); err != nil {
		return nil, err
	}
	for _, s := range specs {
		a.names = append(a.names, s.name)
	}
	for _, s := range specs {
		run, err := s.build(a)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		a.stages = append(a.stages, &running{name: s.name, phase: s.phase, run: run})
	}
	a.waiting = waiting.NewBoard(cfg.Stall, a.sources, logger, &a.metrics.Waiting)
	return a, nil
}

// connect connects to the services and checks the topics and the schema.
func (a *App) connect(ctx context.Context, specs []stageSpec) error {
	var err error
	if a.Log, err = stream.Open(ctx, a.cfg.Kafka, a.logger, a.metrics); err != nil {
		return err
	}
	a.closes = append(a.closes, func() { _ = a.Log.Close() })
	if err := a.Log.CheckTopics(ctx); err != nil {
		return err
	}
	a.topics = newTopicWatch(a)
	a.topics.check(ctx)
	if a.Redis, err = store.OpenRedis(ctx, a.cfg.Redis, a.logger, a.metrics); err != nil {
		return err
	}
	a.closes = append(a.closes, func() { _ = a.Redis.Close() })
	if err := a.setClock(ctx); err != nil {
		return err
	}
	return a.connectPostgres(ctx, specs)
}

// setClock makes this process go by the time of all processes, before it does anything with a time.
func (a *App) setClock(ctx context.Context) error {
	wrong, err := clock.Check()
	if err != nil {
		return fmt.Errorf("%s: %w", clock.Variable, err)
	}
	if wrong {
		a.logger.Warn("this process's clock is wrong on purpose", "variable", clock.Variable)
	}
	a.clock = store.NewClock(a.Redis, a.cfg.Redis.Prefix, a.logger, a.metrics)
	if err := a.clock.Sync(ctx); err != nil { // Redis answered a moment ago
		a.logger.Warn("starting with the time of this machine", "error", err)
	}
	return nil
}

// watch follows Redis' time, the settings of topics and what waits until the returned function is called.
func (a *App) watch(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // while the stages drain, too
	var wg sync.WaitGroup
	wg.Go(func() { a.clock.Run(ctx) })
	wg.Go(func() { a.topics.run(ctx) })
	wg.Go(func() { a.waiting.Run(ctx) })
	wg.Go(func() { a.forgetDevices(ctx) })
	return func() {
		cancel()
		wg.Wait()
	}
}

// connectPostgres connects to Postgres as much as the stages need it.
func (a *App) connectPostgres(ctx context.Context, specs []stageSpec) error {
	for _, s := range specs {
		a.postgres = max(a.postgres, s.postgres)
	}
	var err error
	switch a.postgres {
	case never:
		return nil
	case wanted:
		a.Pool, _, err = openPool(ctx, a.cfg.Postgres) // connects when it is used
	case required:
		a.Pool, err = OpenPostgres(ctx, a.cfg.Postgres)
	}
	if err != nil {
		return err
	}
	a.closes = append(a.closes, a.Pool.Close)
	if a.postgres == wanted {
		return nil
	}
	if err := checkSessions(ctx, a.Pool, a.cfg.Postgres); err != nil {
		return err
	}
	return migrations.Check(ctx, a.Pool)
}

// checkSessions refuses a connection pooler that the stages cannot work with.
func checkSessions(ctx context.Context, pool *pgxpool.Pool, cfg PostgresConfig) error {
	ctx, cancel := context.WithTimeout(ctx, 2*cfg.Timeout)
	defer cancel()
	err := pg.CheckSessions(ctx, pool)
	if errors.Is(err, pg.ErrSharedSessions) {
		return fmt.Errorf("connecting to Postgres: %w", err)
	}
	if err != nil {
		c := pool.Config().ConnConfig
		return &unreachable.Error{Service: "Postgres", Addr: addressOf(c), Setting: "postgres.url", Err: errors.New(oneLine(err))}
	}
	return nil
}

// addressOf names a database, without its user.
func addressOf(c *pgx.ConnConfig) string {
	return fmt.Sprintf("%s:%d, database %s", c.Host, c.Port, c.Database)
}

// OpenPostgres connects to Postgres and checks that it answers. The error is an
// *unreachable.Error if it doesn't.
func OpenPostgres(ctx context.Context, cfg PostgresConfig) (*pgxpool.Pool, error) {
	pool, where, err := openPool(ctx, cfg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, &unreachable.Error{Service: "Postgres", Addr: where, Setting: "postgres.url", Err: errors.New(oneLine(err))}
	}
	return pool, nil
}

// openPool returns a pool that connects when it is used, and the address for messages.
func openPool(ctx context.Context, cfg PostgresConfig) (_ *pgxpool.Pool, where string, err error) {
	pc, err := cfg.parse()
	if err != nil {
		return nil, "", err
	}
	where = addressOf(pc.ConnConfig)
	pc.MaxConns = int32(cfg.MaxConns) //nolint:gosec // bounded by the configuration
	pc.ConnConfig.ConnectTimeout = cfg.Timeout
	pc.ConnConfig.RuntimeParams["application_name"] = "batchyard"
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, where, &unreachable.Error{Service: "Postgres", Addr: where, Setting: "postgres.url", Err: err}
	}
	return pool, where, nil
}

// oneLine removes line breaks from an error: connection errors list every address that
// was tried.
func oneLine(err error) string {
	return strings.Join(strings.Fields(err.Error()), " ")
}

// Run runs the stages until ctx ends or one fails, then drains them phase by phase: a
// phase ends before the next one is stopped. It calls ready once, when all stages are
// ready.
func (a *App) Run(ctx context.Context, ready func()) error {
	defer a.close()
	if a.cfg.Ops.Listen != "" && a.stage("api") == nil {
		stop, err := a.serveOps(ctx)
		if err != nil {
			return err
		}
		defer stop()
	}
	stopFollowing := a.follow(ctx)
	defer stopFollowing()
	stopWatching := a.watch(ctx)
	defer stopWatching()
	var (
		wait    sync.WaitGroup
		started sync.WaitGroup
		first   = make(chan error, len(a.stages))
	)
	phases := a.phases()
	ends := make([]phaseEnd, len(phases))
	for i := range phases {
		ends[i].ctx, ends[i].cancel = context.WithCancel(context.WithoutCancel(ctx))
		defer ends[i].cancel()
		for _, s := range phases[i] {
			started.Add(1)
			done := sync.OnceFunc(func() { s.ready.Store(true); started.Done() })
			ends[i].wg.Add(1)
			wait.Go(func() {
				defer ends[i].wg.Done()
				err := s.run(ends[i].ctx, done)
				s.ready.Store(false)
				if err != nil {
					first <- fmt.Errorf("%s: %w", s.name, err)
				} else if ends[i].ctx.Err() == nil {
					first <- fmt.Errorf("%s: it ended unexpectedly", s.name)
				}
			})
		}
	}
	allReady := make(chan struct{})
	go func() {
		started.Wait()
		close(allReady)
	}()
	var err error
	select {
	case <-allReady:
		defer a.reportDevices(ctx)()
		if ready != nil {
			ready()
		}
		var recording sync.WaitGroup
		recording.Go(func() { a.recordStart(ctx) })
		defer recording.Wait()
		select {
		case <-ctx.Done():
		case err = <-first:
		}
	case <-ctx.Done():
	case err = <-first:
	}
	a.logger.Debug("draining")
	return errors.Join(err, a.drain(ends, first, &wait))
}

// phaseEnd stops the stages of one phase.
type phaseEnd struct {
	ctx    context.Context //nolint:containedctx // the life of the phase's stages
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// drain stops the stages phase by phase. After three quarters of the drain timeout it stops
// all remaining phases at once; after the timeout it stops waiting.
func (a *App) drain(ends []phaseEnd, failed <-chan error, all *sync.WaitGroup) error {
	over := make(chan struct{})
	go func() {
		for i := range ends {
			ends[i].cancel()
			ends[i].wg.Wait()
		}
		all.Wait()
		close(over)
	}()
	hurry := time.AfterFunc(a.cfg.Drain*3/4, func() {
		for i := range ends {
			ends[i].cancel()
		}
	})
	defer hurry.Stop()
	select {
	case <-over:
	case <-time.After(a.cfg.Drain):
		return fmt.Errorf("draining took longer than %s: other processes will repeat the unfinished work", a.cfg.Drain)
	}
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

func (a *App) phases() [][]*running {
	var out [][]*running
	for p := range phaseCount {
		var stages []*running
		for _, s := range a.stages {
			if s.phase == p {
				stages = append(stages, s)
			}
		}
		if len(stages) > 0 {
			out = append(out, stages)
		}
	}
	return out
}

func (a *App) stage(name string) *running {
	for _, s := range a.stages {
		if s.name == name {
			return s
		}
	}
	return nil
}

// Address returns the host:port of the API or, without it, of the ops listener; "" until
// it listens.
func (a *App) Address() string {
	s, _ := a.addr.Load().(string)
	return s
}

func (a *App) close() {
	for _, f := range slices.Backward(a.closes) {
		f()
	}
	a.closes = nil
}

// NewLogger returns the program's logger and its level, which may be changed at any time.
func NewLogger(cfg LogConfig) (*slog.Logger, *slog.LevelVar) {
	level := new(slog.LevelVar)
	setLevel(level, cfg)
	o := &slog.HandlerOptions{Level: level}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, o)), level
	}
	return slog.New(slog.NewTextHandler(os.Stderr, o)), level
}

func setLevel(v *slog.LevelVar, cfg LogConfig) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Level)); err != nil {
		level = slog.LevelInfo
	}
	v.Set(level)
}
