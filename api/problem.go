package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/batchyard/batchyard/task"
)

// problemType is the content type of RFC 9457.
const problemType = "application/problem+json"

// maxProblemErrors bounds the list of a problem document.
const maxProblemErrors = 20

// Problem is an error as RFC 9457 has it.
type Problem struct {
	Title   string         `json:"title" doc:"The kind of problem."`
	Status  int            `json:"status" doc:"The HTTP status."`
	Detail  string         `json:"detail" doc:"What is wrong here, and what to do."`
	Errors  []ProblemError `json:"errors,omitempty" doc:"Each thing that is wrong; at most 20."`
	State   task.State     `json:"state,omitempty" doc:"Of the task, when that is the problem."`
	TraceID string         `json:"trace_id,omitempty" doc:"To find the request in the logs."`

	retryAfter int // seconds; 0: none
}

// ProblemError is one thing that is wrong.
type ProblemError struct {
	Pointer string `json:"pointer" doc:"JSON pointer into the body, or the name of a parameter or header."`
	Detail  string `json:"detail" doc:"What is wrong, and what to do."`
}

func (p *Problem) Error() string { return p.Detail }

// GetStatus is for huma.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType is for huma.
func (p *Problem) ContentType(string) string { return problemType }

// GetHeaders is for huma.
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

// later is a problem that passes by itself.
func later(format string, args ...any) *Problem {
	p := problem(http.StatusServiceUnavailable, format, args...)
	p.retryAfter = 1
	return p
}

// fieldProblem is about fields of the body. prefix is the pointer to the task,
// "" for the only one.
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
	if nested { // what follows may be a label's name, dots and all
		b.WriteString("/" + esc.Replace(rest))
	}
	return b.String()
}

// asProblem turns any error of a handler into a problem. What is not one of ours
// is our fault and says no more than that.
func asProblem(err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	return problem(http.StatusInternalServerError, "an error on our side; it is in the logs under the trace id")
}

// ours turns huma's own errors, of parameters, into ours, and keeps what was
// sent out of them.
func ours(ctx huma.Context, _ string, v any) (any, error) {
	switch e := v.(type) {
	case *Problem:
		e.TraceID = traceOf(ctx.Context())
	case *huma.ErrorModel:
		p := problem(e.Status, "%s", clip(e.Detail))
		for _, d := range e.Errors {
			if d != nil && len(p.Errors) < maxProblemErrors {
				p.Errors = append(p.Errors, ProblemError{Pointer: parameter(d.Location), Detail: clip(d.Message)})
			}
		}
		p.TraceID = traceOf(ctx.Context())
		return p, nil
	}
	return v, nil
}

// parameter is the name of what huma says is wrong, as we write it: without
// where it stands.
func parameter(location string) string {
	for _, where := range []string{"query.", "path.", "header."} {
		if name, ok := strings.CutPrefix(location, where); ok {
			return name
		}
	}
	return location
}

// writeProblem answers outside of huma.
func writeProblem(w http.ResponseWriter, r *http.Request, p *Problem) {
	p.TraceID = traceOf(r.Context())
	b, err := json.Marshal(p)
	if err != nil { // texts and numbers only: it cannot be
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

// clip shortens what may hold something of a stranger's.
func clip(s string) string {
	const most = 200
	if len(s) > most {
		s = s[:most]
	}
	return strings.ToValidUTF8(s, "")
}
