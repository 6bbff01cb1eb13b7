package api

import (
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/batchyard/batchyard/task"
)

// tenantHeader names the tenant.
const tenantHeader = "X-Batchyard-Tenant"

// request is the input of every operation: the handlers read it themselves, and
// describe.go says what they take.
type request struct {
	r *http.Request
	w http.ResponseWriter
}

// Resolve is called by huma before the handler.
func (q *request) Resolve(ctx huma.Context) []error {
	q.r, q.w = humago.Unwrap(ctx)
	return nil
}

// query returns a query parameter, "" if it was not sent; guard has checked that
// it is text and was sent once.
func (q *request) query(name string) string { return q.r.URL.Query().Get(name) }

// tenantOf returns the tenant of the header, or the default one; sent reports
// whether there was a header.
func tenantOf(r *http.Request) (tenant string, sent bool, err error) {
	values := r.Header.Values(tenantHeader)
	if len(values) == 0 {
		return task.DefaultTenant, false, nil
	}
	if len(values) > 1 {
		return "", true, nameProblem(tenantHeader, "sent more than once")
	}
	if bad := badName(values[0]); bad != "" {
		return "", true, nameProblem(tenantHeader, bad)
	}
	return values[0], true, nil
}

// badName says why a text cannot be the id of a tenant, task or job; "" if it can.
func badName(s string) string {
	switch {
	case s == "":
		return "empty"
	case utf8.RuneCountInString(s) > task.MaxIDLength:
		return "longer than 128 characters"
	}
	return badText(s)
}

// badText says why a text cannot be logged or stored; "" if it can.
func badText(s string) string {
	switch {
	case !utf8.ValidString(s):
		return "not valid UTF-8"
	case strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f }):
		return "contains a control character"
	}
	return ""
}

// nameProblem refuses a header or a part of the path.
func nameProblem(where, bad string) *Problem {
	return fieldProblem(http.StatusBadRequest, []ProblemError{{where, bad + ": send 1 to 128 printable characters"}}, 0)
}

// taskOf returns the task that the path names.
func taskOf(r *http.Request) (task.Key, error) { return keyOf(r, "task_id") }

// keyOf returns the tenant and the id that the path has under name.
func keyOf(r *http.Request, name string) (task.Key, error) {
	tenant, _, err := tenantOf(r)
	if err != nil {
		return task.Key{}, err
	}
	id := r.PathValue(name)
	if bad := badName(id); bad != "" {
		return task.Key{}, nameProblem(name, bad)
	}
	return task.Key{Tenant: tenant, ID: id}, nil
}

// originOf says who sent the request and from where, for the audit log.
func originOf(r *http.Request, tenant string) task.Origin {
	agent := strings.Map(func(c rune) rune {
		if c < 0x20 || c == 0x7f {
			return -1
		}
		return c
	}, strings.ToValidUTF8(r.UserAgent(), ""))
	return task.Origin{Actor: tenant, Addr: r.RemoteAddr, UserAgent: clip(agent)}
}
