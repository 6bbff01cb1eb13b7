package api

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// readyWait bounds each question of /readyz.
const readyWait = 2 * time.Second

// Readiness says which dependencies answer.
type Readiness struct {
	Ready  bool              `json:"ready"`
	Checks map[string]string `json:"checks"`
}

func (s *Server) routeHealth() {
	tags := []string{"operation"}
	s.plain(huma.Operation{OperationID: "healthz", Method: http.MethodGet, Path: "/healthz", Tags: tags,
		Summary: "The process lives"}, "application/json", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	s.plain(huma.Operation{OperationID: "readyz", Method: http.MethodGet, Path: "/readyz", Tags: tags,
		Summary: "Whether each dependency answers; 503 when one does not, or while the process stops"}, "application/json", s.ready)
	if s.deps.Gatherer != nil {
		s.plain(huma.Operation{OperationID: "metrics", Method: http.MethodGet, Path: "/metrics", Tags: tags,
			Summary: "Metrics for Prometheus"}, "text/plain",
			promhttp.HandlerFor(s.deps.Gatherer, promhttp.HandlerOpts{MaxRequestsInFlight: 4}).ServeHTTP)
	}
}

func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), readyWait)
	defer cancel()
	errs := make([]error, len(s.deps.Checks))
	var wg sync.WaitGroup
	for i, c := range s.deps.Checks {
		wg.Go(func() { errs[i] = c.Ping(ctx) })
	}
	wg.Wait()
	out := Readiness{Ready: true, Checks: map[string]string{}}
	for i, c := range s.deps.Checks {
		out.Checks[c.Name] = "ok"
		if errs[i] != nil {
			out.Ready = false
			out.Checks[c.Name] = "does not answer" // why is in the log: addresses and users are nobody else's business
			s.log.Warn("a dependency is not ready", "dependency", c.Name, "error", errs[i])
		}
	}
	select {
	case <-s.stopping:
		out.Ready = false
		out.Checks["process"] = "stopping"
	default:
	}
	status := http.StatusOK
	if !out.Ready {
		status = http.StatusServiceUnavailable
	}
	writeJSON(w, status, out)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client may be gone
}
