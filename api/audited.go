package api

import (
	"net/http"

	"github.com/batchyard/batchyard/api/trail"
	"github.com/batchyard/batchyard/task"
)

// note records a request that was answered, unless its handler has.
func (s *Server) note(w *response, r *http.Request, operation string) {
	tenant, _, err := tenantOf(r)
	if err != nil {
		tenant = task.DefaultTenant // the reason says that the header is wrong
	}
	a := trail.Access{Operation: operation, Status: w.status, Tenant: tenant, Origin: originOf(r, tenant), TraceID: traceOf(r.Context())}
	if id := r.PathValue(trail.Operations[operation].ID); badName(id) == "" {
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
