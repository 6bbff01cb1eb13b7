package api

import (
	"context"
	"encoding/json"
	"net/http"
	"reflect"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"

	"github.com/batchyard/batchyard/task/wire"
)

const (
	readyWait  = 2 * time.Second // for each dependency that /readyz asks
	maxScrapes = 4               // of /metrics at once
)

// Health says that the process runs.
type Health struct {
	Status string `json:"status" enum:"ok"`
}

// Readiness says which dependencies answer.
type Readiness struct {
	Ready  bool              `json:"ready"`
	Checks map[string]string `json:"checks" doc:"By dependency: ok, ok with a warning, or does not answer. While the process drains, process is stopping."`
}

func (s *Server) routeHealth() {
	tags := []string{"operation"}
	reg := s.api.OpenAPI().Components.Schemas
	returns := func(description, contentType string, schema *huma.Schema) *huma.Response {
		return &huma.Response{Description: description, Headers: traced(), Content: map[string]*huma.MediaType{contentType: {Schema: schema}}}
	}
	health := reg.Schema(reflect.TypeFor[Health](), true, "Health")
	s.plain(answering(huma.Operation{OperationID: "healthz", Method: http.MethodGet, Path: "/healthz", Tags: tags,
		Summary: "Check that the process runs", Responses: map[string]*huma.Response{"200": returns("It runs.", wire.ContentJSON, health)}}),
		func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, Health{"ok"}) })
	ready := reg.Schema(reflect.TypeFor[Readiness](), true, "Readiness")
	s.plain(answering(huma.Operation{OperationID: "readyz", Method: http.MethodGet, Path: "/readyz", Tags: tags,
		Summary: "Check that every dependency answers",
		Responses: map[string]*huma.Response{
			"200": returns("Every dependency answers.", wire.ContentJSON, ready),
			"503": returns("A dependency does not answer, or the process drains.", wire.ContentJSON, ready),
		}}), s.ready)
	if s.deps.Gatherer == nil {
		return
	}
	text := &huma.Schema{Type: huma.TypeString}
	s.scrapes = make(chan struct{}, maxScrapes)
	s.plain(answering(huma.Operation{OperationID: "metrics", Method: http.MethodGet, Path: "/metrics", Tags: tags,
		Summary: "Get the metrics for Prometheus", Responses: map[string]*huma.Response{"200": returns("Metrics in Prometheus' text format.", "text/plain", text)}},
		http.StatusServiceUnavailable), s.metrics)
}

func (s *Server) metrics(w http.ResponseWriter, r *http.Request) {
	select {
	case s.scrapes <- struct{}{}:
		defer func() { <-s.scrapes }()
	default:
		writeProblem(w, r, later("%d scrapes of the metrics are running already; scrape again in a moment", maxScrapes))
		return
	}
	families, err := s.deps.Gatherer.Gather()
	if err != nil {
		s.log.Error("gathering the metrics failed", "trace_id", traceOf(r.Context()), "error", err)
		writeProblem(w, r, asProblem(err))
		return
	}
	r.Header.Set("Accept", "text/plain;version=0.0.4") // one format, which is the one described
	gathered := prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return families, nil })
	promhttp.HandlerFor(gathered, promhttp.HandlerOpts{}).ServeHTTP(w, r)
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
		out.Checks[c.Name] = c.State()
		if errs[i] != nil {
			out.Ready = false
			out.Checks[c.Name] = "does not answer" // the log has the cause: addresses and users do not belong here
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
	w.Header().Set("Content-Type", wire.ContentJSON)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client may be gone
}
