package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/batchyard/batchyard/task"
)

// problemType is the content type of RFC 9457.
const problemType = "application/problem+json"

// maxProblemErrors bounds the list of a problem document.
const maxProblemErrors = 20

// Problem is an error response, a problem document as RFC 9457 defines it.
type Problem struct {
	Title   string         `json:"title" doc:"The status in words."`
	Status  int            `json:"status" minimum:"400" maximum:"599" doc:"The HTTP status."`
	Detail  string         `json:"detail" doc:"What is wrong here, and what to do."`
	Errors  []ProblemError `json:"errors,omitempty" minItems:"1" maxItems:"20" doc:"What is wrong, each by itself; at most 20."`
	State   task.State     `json:"state,omitempty" doc:"The state of the task, if that is the problem."`
	TraceID string         `json:"trace_id,omitempty" pattern:"^[0-9a-f]{32}$" doc:"The request's trace id, as in the logs and in X-Trace-Id."`

	retryAfter int // seconds; 0: no Retry-After
}

// ProblemError is one thing that is wrong.
type ProblemError struct {
	Pointer string `json:"pointer" doc:"A JSON pointer into the body, or the name of a parameter or header. Empty: the whole body."`
	Detail  string `json:"detail" doc:"What is wrong, and what to do."`
}

func (p *Problem) Error() string { return p.Detail }

// GetStatus is how huma learns the status.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType is how huma learns the content type.
func (p *Problem) ContentType(string) string { return problemType }

// GetHeaders is how huma learns the headers.
func (p *Problem) GetHeaders() http.Header {
	h := http.Header{}
	if p.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(p.retryAfter))
	}
	return h
}

func problem(status int, format string, args ...any) *Problem {
	return &Problem{Title: http.StatusText(status), Status: status, Detail: fmt.Sprintf(format, args...)}
}

// later is a problem that goes away by itself: the client may try again.
func later(format string, args ...any) *Problem {
	p := problem(http.StatusServiceUnavailable, format, args...)
	p.retryAfter = 1
	return p
}

// fieldProblem lists what is wrong with fields or parameters; more counts those
// beyond the list.
func fieldProblem(status int, errs []ProblemError, more int) *Problem {
	detail := "the request was refused"
	if len(errs) > 0 {
		detail = errs[0].Detail
		if errs[0].Pointer != "" {
			detail = strings.TrimPrefix(errs[0].Pointer, "/") + ": " + detail
		}
	}
	if n := len(errs) + more - 1; n > 0 {
		detail += fmt.Sprintf(" (and %d more)", n)
	}
	p := problem(status, "%s", detail)
	p.Errors = errs[:min(len(errs), maxProblemErrors)]
	return p
}

// fieldError turns a wrong field into JSON. prefix is the pointer to the task in an
// array, "" for a single one.
func fieldError(prefix string, fe *task.FieldError) ProblemError {
	detail := fe.Problem
	if fe.Remedy != "" {
		detail += "; " + fe.Remedy
	}
	return ProblemError{Pointer: prefix + pointer(fe.Field), Detail: detail}
}

// pointer turns "callback.url" and "needs[2]" into JSON pointers.
func pointer(field string) string {
	if field == "" {
		return ""
	}
	var b strings.Builder
	esc := strings.NewReplacer("~", "~0", "/", "~1")
	head, rest, nested := strings.Cut(field, ".")
	name, index, indexed := strings.Cut(head, "[")
	b.WriteString("/" + esc.Replace(name))
	if indexed {
		b.WriteString("/" + strings.TrimSuffix(index, "]"))
	}
	if nested { // the rest may be the name of a label, with dots in it
		b.WriteString("/" + esc.Replace(rest))
	}
	return b.String()
}

// internalError says nothing of the cause, which is in the log.
func internalError() *Problem {
	return problem(http.StatusInternalServerError, "internal error; the server's log has the cause under the trace id")
}

// asProblem turns any error of a handler into a problem.
func asProblem(err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	return internalError()
}

// withTrace puts the trace id into problems that huma writes.
func withTrace(ctx huma.Context, _ string, v any) (any, error) {
	switch e := v.(type) {
	case *Problem:
		e.TraceID = traceOf(ctx.Context())
		if _, w := humago.Unwrap(ctx); w != nil {
			keepProblem(w, e)
		}
	case *huma.ErrorModel: // an error of a handler that is not a problem
		p := internalError()
		p.TraceID = traceOf(ctx.Context())
		return p, nil
	}
	return v, nil
}

// writeProblem answers where huma does not.
func writeProblem(w http.ResponseWriter, r *http.Request, p *Problem) {
	p.TraceID = traceOf(r.Context())
	keepProblem(w, p)
	if own, ok := w.(*response); ok && own.openAI {
		inOpenAIsForm(p).Write(w)
		return
	}
	b, err := json.Marshal(p)
	if err != nil { // cannot happen: strings and numbers only
		b = []byte(`{"status":500}`)
	}
	h := w.Header()
	h.Set("Content-Type", problemType)
	h.Set("X-Content-Type-Options", "nosniff")
	if p.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(p.retryAfter))
	}
	w.WriteHeader(p.Status)
	_, _ = w.Write(b) // the client may be gone
}

// keepProblem remembers a problem for the audit log.
func keepProblem(w http.ResponseWriter, p *Problem) {
	if own, ok := w.(*response); ok {
		own.problem = p
	}
}

// clip shortens text that may repeat what a client sent.
func clip(s string) string {
	const most = 200
	if len(s) > most {
		s = s[:most]
	}
	return strings.ToValidUTF8(s, "")
}
