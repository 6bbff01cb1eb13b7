package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"

	"github.com/danielgtaylor/huma/v2"
	"golang.org/x/sync/semaphore"

	"github.com/batchyard/batchyard/api/bodies"
	"github.com/batchyard/batchyard/api/trail"
	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/metrics"
)

// Server is the HTTP API.
type Server struct {
	deps     Deps
	cfg      Config
	log      *slog.Logger
	mux      *http.ServeMux
	api      huma.API
	budget   *bodies.Budget
	requests *semaphore.Weighted
	trail    *trail.Trail
	stopping chan struct{} // closed when draining begins
	stop     sync.Once
	scrapes  chan struct{}       // holds one for each running scrape of /metrics
	promises map[string]contract // by the mux's patterns
	aliases  map[string]string   // patterns that stand for another in promises
	openAI   []string            // paths of OpenAI's API, whose errors have its form; one that ends in / stands for all below it
	bodies   map[string]bool     // schemas of request bodies, by their names in the description

	mu   sync.Mutex
	addr net.Addr
}

// New returns a server that does not listen yet. Deps without a Logger, Metrics or
// Gatherer are completed; any other that is missing is an error.
func New(d Deps, cfg Config) (*Server, error) {
	cfg = cfg.withDefaults()
	if d.Producer == nil || d.Store == nil || d.Registry == nil || d.Control == nil || d.Overrides == nil || d.Rates == nil || d.Credits == nil {
		return nil, errors.New("creating the API: a dependency is missing; set Producer, Store, Registry, Control, Overrides, Rates and Credits")
	}
	if d.Policy == nil {
		d.Policy = func() device.PolicySetting { return device.PolicySetting{Name: device.DefaultPolicy} }
	}
	if d.Logger == nil {
		d.Logger = slog.New(slog.DiscardHandler)
	}
	if d.Metrics == nil {
		d.Metrics = metrics.New(nil)
	}
	d.Version = cmp.Or(d.Version, "dev")
	s := &Server{
		deps: d, cfg: cfg, log: d.Logger, mux: http.NewServeMux(), stopping: make(chan struct{}),
		bodies: map[string]bool{}, aliases: map[string]string{},
		budget:   bodies.NewBudget(cfg.MaxBodies, &d.Metrics.API),
		requests: semaphore.NewWeighted(cfg.MaxRequests),
	}
	s.trail = trail.New(s.record)
	s.describe()
	s.routeTasks()
	s.routeJobs()
	s.routeDevices()
	s.routePolicy()
	s.routeHealth()
	s.routePlain()
	s.routeBatches()
	s.promises = contracts(s.api.OpenAPI())
	for pattern, like := range s.aliases {
		s.promises[pattern] = s.promises[like]
	}
	return s, s.serveDescription()
}

// Addr returns the address that the server listens on, once it is ready.
func (s *Server) Addr() net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addr
}

// Run serves until ctx ends, then drains and returns nil. ready is called once
// it listens.
func (s *Server) Run(ctx context.Context, ready func()) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listening on %s: %w; check api.listen", s.cfg.Listen, err)
	}
	s.mu.Lock()
	s.addr = l.Addr()
	s.mu.Unlock()
	srv := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: s.cfg.HeaderTimeout,
		ReadTimeout:       s.cfg.BodyTimeout,
		IdleTimeout:       s.cfg.IdleTimeout,
		MaxHeaderBytes:    2 * int(s.cfg.MaxHeader),                            // guard answers from MaxHeader on; net/http bounds the memory, with a bare 431
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // clients that disconnect
	}
	defer s.follow(ctx)()
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	if ready != nil {
		ready()
	}
	select {
	case err := <-served:
		return fmt.Errorf("serving on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	s.stop.Do(func() { close(s.stopping) })
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.DrainTimeout)
	defer cancel()
	if err := srv.Shutdown(drain); err != nil {
		s.log.Warn("requests were cut off: they did not finish in time", "drain_timeout", s.cfg.DrainTimeout, "error", err)
		_ = srv.Close() // its error is the same
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving on %s: %w", l.Addr(), err)
	}
	return nil
}

// follow writes what clients do to the audit log until the returned function is called, after the last request.
func (s *Server) follow(ctx context.Context) (end func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { s.trail.Run(ctx) })
	return func() {
		cancel()
		wg.Wait()
		if left := s.trail.Flush(context.WithoutCancel(ctx)); left > 0 {
			s.log.Error("Kafka does not answer: how often clients read or were refused in the last minute is missing in the audit log", "kinds", left)
		}
	}
}
