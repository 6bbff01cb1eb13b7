package api

import (
	"net/http"
	"strings"

	"github.com/batchyard/batchyard/api/openai/envelope"
	"github.com/batchyard/batchyard/api/openai/plain"
)

// routeOpenAI adds OpenAI's plain requests.
func (s *Server) routeOpenAI() {
	requests := plain.New(plain.Deps{
		Producer: s.deps.Producer, Store: s.deps.Store, Registry: s.deps.Registry, Arrivals: s.deps.Arrivals, Bodies: s.budget,
		Stopping: s.stopping, Metrics: &s.deps.Metrics.API, Logger: s.log,
	}, plain.Config{
		Timeout: min(s.cfg.AnswerTimeout, s.cfg.LongestAnswer), Longest: s.cfg.LongestAnswer, Waiting: s.cfg.MaxAnswers,
		Submit: s.cfg.SubmitTimeout, Query: s.cfg.QueryTimeout, LastWait: s.cfg.DrainTimeout / 2,
	})
	for _, op := range requests.Operations(s.api.OpenAPI().Components.Schemas, traced(), params(tenantParam)) {
		s.openAI[op.Path] = true
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

// speaksOpenAI reports whether a path's errors have OpenAI's form.
func (s *Server) speaksOpenAI(path string) bool {
	return s.openAI[path] || strings.HasPrefix(path, "/v1/models/")
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
