package api

import (
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/batchyard/batchyard/task"
)

// tenantHeader says whose tasks are meant.
const tenantHeader = "X-Batchyard-Tenant"

// request is the part of every operation's input that is not described.
type request struct {
	r *http.Request
	w http.ResponseWriter
}

// Resolve is for huma, which calls it before the handler.
func (q *request) Resolve(ctx huma.Context) []error {
	q.r, q.w = humago.Unwrap(ctx)
	return nil
}

// tenant is the header, or the default one; sent says that it was sent.
func tenantOf(r *http.Request) (tenant string, sent bool, err error) {
	t := r.Header.Get(tenantHeader)
	if t == "" {
		return task.DefaultTenant, false, nil
	}
	if bad := badName(t); bad != "" {
		return "", true, nameProblem(tenantHeader, bad)
	}
	return t, true, nil
}

// badName says why a text cannot be the id of a tenant, task or job; "" when it can.
func badName(s string) string {
	switch {
	case s == "":
		return "it is empty"
	case !utf8.ValidString(s):
		return "it is not valid UTF-8"
	case utf8.RuneCountInString(s) > task.MaxIDLength:
		return "it is longer than 128 characters"
	case strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f }):
		return "it holds a control character"
	}
	return ""
}

func nameProblem(where, bad string) *Problem {
	p := problem(http.StatusBadRequest, "%s: %s; send 1 to 128 printable characters", where, bad)
	p.Errors = []ProblemError{{Pointer: where, Detail: bad + "; send 1 to 128 printable characters"}}
	return p
}

// keyOf is the task that the request is about.
func keyOf(r *http.Request) (task.Key, error) {
	tenant, _, err := tenantOf(r)
	if err != nil {
		return task.Key{}, err
	}
	id := r.PathValue("id")
	if bad := badName(id); bad != "" {
		return task.Key{}, nameProblem("id", bad)
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

// headerParams describes the headers that most operations take.
type headerParams struct {
	Tenant string `header:"X-Batchyard-Tenant" doc:"Whose tasks; \"default\" without it."`
}
