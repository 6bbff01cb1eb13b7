package api

import (
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/batchyard/batchyard/api/openai"
	"github.com/batchyard/batchyard/api/openai/envelope"
	"github.com/batchyard/batchyard/api/openai/plain"
)

// routePlain adds OpenAI's plain requests.
func (s *Server) routePlain() {
	requests := plain.New(plain.Deps{
		Producer: s.deps.Producer, Store: s.deps.Store, Registry: s.deps.Registry, Arrivals: s.deps.Arrivals, Bodies: s.budget,
		Stopping: s.stopping, Metrics: &s.deps.Metrics.API, Logger: s.log,
	}, plain.Config{
		Timeout: min(s.cfg.AnswerTimeout, s.cfg.LongestAnswer), Longest: s.cfg.LongestAnswer, Waiting: s.cfg.MaxAnswers,
		Submit: s.cfg.SubmitTimeout, Query: s.cfg.QueryTimeout, LastWait: s.cfg.DrainTimeout / 2,
	})
	for _, op := range requests.Operations(s.api.OpenAPI().Components.Schemas, traced(), params(tenantParam)) {
		s.speak(op.Path)
		op.SkipValidateParams = true
		s.api.OpenAPI().AddOperation(&op.Operation)
		h := func(w http.ResponseWriter, r *http.Request) { s.plainly(w, r, op.Serve) }
		s.mux.HandleFunc(op.Method+" "+op.Path, h)
		if op.Pattern != "" {
			s.mux.HandleFunc(op.Pattern, h)
			s.aliases[op.Pattern] = op.Method + " " + op.Path
		}
	}
}

// plainly answers a request of OpenAI's, and tells the audit log how.
func (s *Server) plainly(w http.ResponseWriter, r *http.Request, serve plain.Handler) {
	tenant, _, err := tenantOf(r)
	if err != nil {
		writeProblem(w, r, asProblem(err))
		return
	}
	ended := serve(w, r, plain.Caller{Tenant: tenant, Origin: originOf(r, tenant), Trace: traceOf(r.Context())})
	if own, ok := w.(*response); ok {
		own.recorded = ended.Accepted
	}
	if ended.Refused != "" {
		keepProblem(w, problem(http.StatusBadRequest, "%s", ended.Refused))
	}
}

// routeBatches adds OpenAI's files and batches.
func (s *Server) routeBatches() {
	for _, r := range s.deps.OpenAI {
		op := r.Operation
		op.Parameters = append(params(tenantParam), op.Parameters...)
		if op.Responses == nil {
			op.Responses = map[string]*huma.Response{"200": {Description: "As in OpenAI's API."}}
		}
		failed := s.api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[envelope.ErrorEnvelope](), true, "OpenAIError")
		op.Responses["default"] = &huma.Response{Description: "An error, as in OpenAI's API.", Content: map[string]*huma.MediaType{"application/json": {Schema: failed}}}
		for _, answer := range op.Responses {
			answer.Headers = traced()
		}
		s.speak(op.Path)
		s.plain(op, func(w http.ResponseWriter, r2 *http.Request) {
			tenant, _, err := tenantOf(r2)
			if err != nil {
				writeProblem(w, r2, asProblem(err))
				return
			}
			r.Handler(w, openai.WithCaller(r2, openai.Caller{Tenant: tenant, Origin: originOf(r2, tenant), TraceID: traceOf(r2.Context())}))
		})
	}
}

// Refused keeps for the audit log why a request to an operation of OpenAI's API was refused.
func (w *response) Refused(status int, reason string) { w.problem = problem(status, "%s", reason) }

// speak notes a path of OpenAI's API, or all below it if it has a parameter.
func (s *Server) speak(path string) {
	path, _, _ = strings.Cut(path, "{")
	if !slices.Contains(s.openAI, path) {
		s.openAI = append(s.openAI, path)
	}
}

// speaksOpenAI reports whether a path's errors have OpenAI's form.
func (s *Server) speaksOpenAI(path string) bool {
	return slices.ContainsFunc(s.openAI, func(own string) bool {
		return path == own || strings.HasSuffix(own, "/") && strings.HasPrefix(path, own)
	})
}

// inOpenAIsForm returns a problem as OpenAI's API would say it.
func inOpenAIsForm(p *Problem) *envelope.Error {
	param := ""
	if len(p.Errors) > 0 {
		param = strings.TrimPrefix(p.Errors[0].Pointer, "/")
	}
	e := envelope.New(p.Status, param, strings.ToLower(strings.ReplaceAll(http.StatusText(p.Status), " ", "_")), p.Detail)
	e.RetryAfter = p.retryAfter
	return e
}
