package api

import (
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/batchyard/batchyard/api/openai"
)

// errorEnvelope is the schema of an error of OpenAI's API.
var errorEnvelope = &huma.Schema{Type: huma.TypeObject, Required: []string{"error"}, Properties: map[string]*huma.Schema{
	"error": {Type: huma.TypeObject, Required: []string{"message", "type", "param", "code"}, Properties: map[string]*huma.Schema{
		"message": {Type: huma.TypeString}, "type": {Type: huma.TypeString},
		"param": {Type: huma.TypeString, Nullable: true}, "code": {Type: huma.TypeString, Nullable: true},
	}}}}

// routeDialect registers the operations of OpenAI's API, which answer errors in its way.
func (s *Server) routeDialect() {
	for _, r := range s.deps.OpenAI {
		op := r.Operation
		op.Parameters = append(params(tenantParam), op.Parameters...)
		if op.Responses == nil {
			op.Responses = map[string]*huma.Response{"200": {Description: "As in OpenAI's API."}}
		}
		op.Responses["default"] = &huma.Response{Description: "An error, as in OpenAI's API.", Content: map[string]*huma.MediaType{"application/json": {Schema: errorEnvelope}}}
		for _, answer := range op.Responses {
			answer.Headers = traced()
		}
		s.dialect[op.Method+" "+op.Path] = true
		s.plain(op, r.Handler)
	}
}

// called puts the caller into a request to an operation of OpenAI's API.
func (s *Server) called(w http.ResponseWriter, r *http.Request) (*http.Request, *Problem) {
	trace := traceOf(r.Context())
	w.Header().Set("X-Request-Id", openai.RequestID(trace))
	tenant, _, err := tenantOf(r)
	if err != nil {
		return r, asProblem(err)
	}
	return openai.WithCaller(r, openai.Caller{Tenant: tenant, Origin: originOf(r, tenant), TraceID: trace}), nil
}

// refuse answers with a problem, in the way of the route.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, route string, p *Problem) {
	if !s.dialect[route] {
		writeProblem(w, r, p)
		return
	}
	e := openai.Error{Status: p.Status, Message: p.Detail, RetryAfter: p.retryAfter}
	if len(p.Errors) > 0 {
		e.Message, e.Param = p.Errors[0].Pointer+": "+p.Errors[0].Detail, p.Errors[0].Pointer
	}
	openai.WriteError(w, &e)
}

// Refused keeps for the audit log why a request to an operation of OpenAI's API was refused.
func (w *response) Refused(status int, reason string) {
	w.problem = problem(status, "%s", reason)
}
