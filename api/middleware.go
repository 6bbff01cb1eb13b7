package api

import (
	"context"
	"fmt"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/batchyard/batchyard/task"
)

type traceKey struct{}

func traceOf(ctx context.Context) string {
	id, _ := ctx.Value(traceKey{}).(string)
	return id
}

// traceID is the caller's when it sent a W3C traceparent, and a new one otherwise.
func traceID(r *http.Request) string {
	p := strings.Split(r.Header.Get("traceparent"), "-")
	if len(p) >= 4 && len(p[0]) == 2 && p[0] != "ff" && len(p[1]) == 32 && strings.Trim(p[1], "0") != "" {
		if isHex(p[1]) {
			return p[1]
		}
	}
	return task.NewTraceID()
}

func isHex(s string) bool {
	return strings.Trim(s, "0123456789abcdef") == ""
}

// ServeHTTP bounds, counts and guards every request, then hands it to its route.
func (s *Server) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	began := time.Now()
	r = r.WithContext(context.WithValue(r.Context(), traceKey{}, traceID(r)))
	w := &response{ResponseWriter: rw, timeout: s.cfg.WriteTimeout}
	w.Header().Set("X-Trace-Id", traceOf(r.Context()))
	route, method := "other", "other"
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
	// Health has to be told however busy the rest is.
	if route != "/healthz" && route != "/readyz" && route != "/metrics" {
		if !s.requests.TryAcquire(1) {
			writeProblem(w, r, later("too many requests at once; send it again in a moment"))
			return
		}
		defer s.requests.Release(1)
	}
	if r.Body == http.NoBody {
		endless(w) // the deadline of reading would end the request while it waits for something
	}
	s.mux.ServeHTTP(w, r)
}

// endless takes the deadline from a connection whose request has been read:
// net/http ends the request's context when it passes.
func endless(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // a test's recorder has none
}

// panicked is the last line: the client gets a problem, the log the rest. What
// was sent is in neither.
func (s *Server) panicked(w *response, r *http.Request, p any) {
	if p == http.ErrAbortHandler { //nolint:errorlint // net/http compares so, too
		panic(p)
	}
	s.deps.Metrics.API.Panics.Inc()
	s.log.Error("a request ended in a panic", "trace_id", traceOf(r.Context()), "method", r.Method, "route", r.Pattern,
		"panic", clip(fmt.Sprint(p)), "stack", string(debug.Stack()))
	if w.status != 0 {
		panic(http.ErrAbortHandler) // half an answer must not look like a whole one
	}
	writeProblem(w, r, problem(http.StatusInternalServerError, "an error on our side; it is in the logs under the trace id"))
}

// unknown says that there is no such path, or no such method for it. Which of
// them, the mux's own answer tells.
func (s *Server) unknown(w http.ResponseWriter, r *http.Request, answer http.Handler) {
	rec := &discard{header: http.Header{}}
	answer.ServeHTTP(rec, r)
	if rec.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", rec.header.Get("Allow"))
		writeProblem(w, r, problem(http.StatusMethodNotAllowed, "this path takes %s", rec.header.Get("Allow")))
		return
	}
	writeProblem(w, r, problem(http.StatusNotFound, "there is no such path; /openapi.json lists them"))
}

// discard keeps the status and headers of an answer.
type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header { return d.header }
func (d *discard) WriteHeader(s int)   { d.status = s }
func (d *discard) Write(b []byte) (int, error) {
	return len(b), nil
}

// response remembers its status, and gives the client a bounded time for each
// part of the answer.
type response struct {
	http.ResponseWriter
	timeout time.Duration
	status  int
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
	_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(w.timeout)) // a test's recorder has none
}

// Unwrap is for http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Flush is for answers that are streamed.
func (w *response) Flush() {
	_ = http.NewResponseController(w.ResponseWriter).Flush()
}

// bucket lets a bounded rate through.
type bucket struct {
	mu     sync.Mutex
	rate   float64
	tokens float64
	last   time.Time
}

func newBucket(perSecond int) *bucket {
	return &bucket{rate: float64(perSecond), tokens: float64(perSecond), last: time.Now()}
}

func (b *bucket) take() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.tokens = min(b.rate, b.tokens+b.rate*now.Sub(b.last).Seconds())
	b.last = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
