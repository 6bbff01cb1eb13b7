package api

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"golang.org/x/sync/semaphore"

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
	budget   *budget
	requests *semaphore.Weighted
	refused  *bucket
	stopping chan struct{} // closed when draining begins
	stop     sync.Once

	mu   sync.Mutex
	addr net.Addr
}

// New returns a server that does not listen yet.
func New(d Deps, cfg Config) (*Server, error) {
	cfg = cfg.withDefaults()
	if d.Producer == nil || d.Store == nil || d.Registry == nil || d.Control == nil || d.Marks == nil || d.Rates == nil || d.Credits == nil {
		return nil, errors.New("making the API: it needs a producer, a store, a registry, control, marks, rates and credits")
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
		budget:   &budget{metrics: d.Metrics},
		requests: semaphore.NewWeighted(cfg.MaxRequests),
		refused:  newBucket(cfg.RefusedEvents),
	}
	s.budget.limit.Store(cfg.MaxBodies)
	s.describe()
	s.routeTasks()
	s.routeJobs()
	s.routeDevices()
	s.routePolicy()
	s.routeHealth()
	return s, s.serveDescription()
}

func (s *Server) describe() {
	c := huma.DefaultConfig("Batchyard", s.deps.Version)
	c.Info.Description = "Inference tasks in, results out. Errors are problem documents (RFC 9457). " +
		"The header X-Batchyard-Tenant says whose tasks are meant; without it, those of the tenant \"default\"."
	// What is served is what is listed: no pages, no schemas, and the description
	// by a handler of our own (the library's has a race).
	c.OpenAPIPath, c.DocsPath, c.SchemasPath, c.CreateHooks = "", "", "", nil
	c.RejectUnknownQueryParameters = true
	c.Formats = map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat}
	c.Transformers = []huma.Transformer{ours}
	s.api = humago.New(s.mux, c)
}

func (s *Server) serveDescription() error {
	spec, err := s.api.OpenAPI().MarshalJSON()
	if err != nil {
		return fmt.Errorf("describing the API: %w", err)
	}
	yaml, err := s.api.OpenAPI().YAML()
	if err != nil {
		return fmt.Errorf("describing the API: %w", err)
	}
	for path, b := range map[string]struct {
		kind string
		body []byte
	}{"/openapi.json": {"application/openapi+json", spec}, "/openapi.yaml": {"application/openapi+yaml", yaml}} {
		s.mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", b.kind)
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b.body))
		})
	}
	return nil
}

// Addr is where the server listens, once it is ready.
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
		MaxHeaderBytes:    int(s.cfg.MaxHeader),
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // clients that break off
	}
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
		s.log.Warn("requests were cut off because they did not end in time", "drain_timeout", s.cfg.DrainTimeout, "error", err)
		_ = srv.Close() // says the same again
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving on %s: %w", l.Addr(), err)
	}
	return nil
}
