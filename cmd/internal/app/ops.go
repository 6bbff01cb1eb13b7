package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// stageReady returns an error if a stage of this process is not ready. Stages of other
// processes do not matter here.
func (a *App) stageReady(name string) error {
	if s := a.stage(name); s != nil && !s.ready.Load() {
		return errors.New("not ready")
	}
	if s := a.waiting.Stall(name); s != nil && a.stage("api") == nil {
		return s
	}
	return nil
}

// stageNote says what stands still in a stage of a process that serves the API. Such a process stays ready, because
// other processes may not be there to answer for it.
func (a *App) stageNote(name string) string {
	if s := a.waiting.Stall(name); s != nil {
		return s.Brief()
	}
	return ""
}

// serveOps serves health checks and metrics in a process without the API.
func (a *App) serveOps(ctx context.Context) (stop func(), err error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", a.cfg.Ops.Listen)
	if err != nil {
		return nil, fmt.Errorf("listening for health and metrics: %w; check ops.listen", err)
	}
	a.addr.Store(l.Addr().String())
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", a.readyz)
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.registry, promhttp.HandlerOpts{}))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	go func() {
		if err := srv.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			a.logger.Error("serving health and metrics", "error", err)
		}
	}()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_ = srv.Shutdown(ctx)
	}, nil
}

func (a *App) readyz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 3*time.Second)
	defer cancel()
	status := map[string]string{}
	code := http.StatusOK
	for _, c := range a.checks() {
		status[c.Name] = c.State()
		if err := c.Ping(ctx); err != nil {
			status[c.Name], code = oneLine(err), http.StatusServiceUnavailable
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(status)
}
