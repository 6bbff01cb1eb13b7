package api

import (
	"context"
	"fmt"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/batchyard/batchyard/api/trail"
	"github.com/batchyard/batchyard/task"
)

type traceKey struct{}

func traceOf(ctx context.Context) string {
	id, _ := ctx.Value(traceKey{}).(string)
	return id
}

// traceID returns the id of the caller's W3C traceparent, or a new one.
func traceID(r *http.Request) string {
	if id := task.TraceOf(r.Header.Get("traceparent")); id != "" {
		return id
	}
	return task.NewTraceID()
}

// ServeHTTP bounds, counts and guards every request, then hands it to its route.
func (s *Server) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	began := time.Now()
	r = r.WithContext(context.WithValue(r.Context(), traceKey{}, traceID(r)))
	w := &response{ResponseWriter: rw, timeout: s.cfg.WriteTimeout}
	w.Header().Set("X-Trace-Id", traceOf(r.Context()))
	if s.speaksOpenAI(r.URL.Path) {
		w.openAI = true
		w.Header().Set("X-Request-Id", traceOf(r.Context()))
	}
	route, method, operation := "other", "other", ""
	// Last, and also when an answer breaks off: a part of it has been read.
	defer func() { s.note(w, r, operation) }()
	m := &s.deps.Metrics.API
	m.InFlight.Inc()
	defer func() {
		m.InFlight.Dec()
		if p := recover(); p != nil {
			s.panicked(w, r, p)
		}
		m.Requests.WithLabelValues(route, method, strconv.Itoa(w.status)).Inc()
		m.Seconds.WithLabelValues(route, method).Observe(time.Since(began).Seconds())
	}()
	h, pattern := s.mux.Handler(r)
	if pattern == "" {
		s.unknown(w, r, h)
		return
	}
	method, route, _ = strings.Cut(pattern, " ")
	operation = s.promises[pattern].operation
	if p := s.guard(r, s.promises[pattern]); p != nil {
		writeProblem(w, r, p)
		return
	}
	// Health and metrics answer however busy the rest is.
	if route != "/healthz" && route != "/readyz" && route != "/metrics" {
		if !s.requests.TryAcquire(1) {
			writeProblem(w, r, later("too many requests at once; send this one again in a moment"))
			return
		}
		defer s.requests.Release(1)
	}
	if r.Body == http.NoBody {
		endless(w) // the read deadline would end the request while it waits
	}
	s.mux.ServeHTTP(w, r)
}

// endless clears the read deadline of a connection whose request has been read:
// net/http cancels the request's context when it passes.
func endless(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // a recorder in a test has none
}

// panicked answers for a handler that panicked: the client gets a problem, the log
// the stack. What the client sent is in neither.
func (s *Server) panicked(w *response, r *http.Request, p any) {
	if p == http.ErrAbortHandler { //nolint:errorlint // net/http compares so, too
		panic(p)
	}
	s.deps.Metrics.API.Panics.Inc()
	s.log.Error("a handler panicked", "trace_id", traceOf(r.Context()), "method", r.Method, "route", r.Pattern,
		"panic", clip(fmt.Sprint(p)), "stack", string(debug.Stack()))
	if w.status != 0 {
		panic(http.ErrAbortHandler) // a part must not be taken for the whole
	}
	writeProblem(w, r, internalError())
}

// unknown answers a path or a method that does not exist; which of the two, the
// mux's own handler knows.
func (s *Server) unknown(w http.ResponseWriter, r *http.Request, answer http.Handler) {
	rec := &discard{header: http.Header{}}
	answer.ServeHTTP(rec, r)
	if rec.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", rec.header.Get("Allow"))
		writeProblem(w, r, problem(http.StatusMethodNotAllowed, "this path does not take %s; use %s", clipName(r.Method), rec.header.Get("Allow")))
		return
	}
	writeProblem(w, r, problem(http.StatusNotFound, "unknown path; /openapi.json lists the paths there are"))
}

// discard keeps the status and headers of a response, and drops its body.
type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header { return d.header }
func (d *discard) WriteHeader(s int)   { d.status = s }
func (d *discard) Write(b []byte) (int, error) {
	return len(b), nil
}

// response remembers its status, and gives the client a bounded time to take each
// part of the body.
type response struct {
	http.ResponseWriter
	timeout time.Duration
	status  int
	problem *Problem // that was written

	openAI   bool // errors have OpenAI's form
	recorded bool // the audit log learns of the request from the events of its task
}

func (w *response) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
		w.extend()
		w.ResponseWriter.WriteHeader(status)
	}
}

func (w *response) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	w.extend()
	return w.ResponseWriter.Write(b)
}

func (w *response) extend() {
	_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(w.timeout)) // a recorder in a test has none
}

// Unwrap is for http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Flush is for responses that are streamed.
func (w *response) Flush() {
	_ = http.NewResponseController(w.ResponseWriter).Flush()
}

// note records a request that was answered, unless its handler has.
func (s *Server) note(w *response, r *http.Request, operation string) {
	if w.recorded {
		return
	}
	tenant, _, err := tenantOf(r)
	if err != nil {
		tenant = task.DefaultTenant // the reason says that the header is wrong
	}
	a := trail.Access{Operation: operation, Status: w.status, Tenant: tenant, Origin: originOf(r, tenant), TraceID: traceOf(r.Context())}
	if id := r.PathValue(trail.Of(operation).ID); badName(id) == "" {
		a.ID = id
	}
	if p := w.problem; p != nil {
		if a.Fields = pointers(p); len(a.Fields) == 0 {
			a.Reason = clip(p.Detail)
		}
	}
	s.trail.Answered(r.Context(), a)
}

// pointers names the wrong fields, without their values.
func pointers(p *Problem) []string {
	var out []string
	for _, e := range p.Errors {
		out = append(out, clip(e.Pointer))
	}
	return out
}
