// Package openai holds what the operations of OpenAI's API have in common: who calls, how they are described and
// mounted, and the shape of their errors. The operations themselves are in the packages below it.
//
// Their clients are OpenAI's SDKs, unmodified. An error is {"error": {message, type, param, code}}; the SDKs send a
// request again after 408, 409, 429 and from 500 on, unless the header x-should-retry says otherwise.
package openai

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/batchyard/batchyard/api/openai/envelope"
	"github.com/batchyard/batchyard/task"
)

// Route is an operation of OpenAI's API.
type Route struct {
	Operation huma.Operation // for the description; the handler answers everything itself
	Handler   http.HandlerFunc
}

// Caller is who sent a request.
type Caller struct {
	Tenant  string
	Origin  task.Origin
	TraceID string
}

type callerKey struct{}

// WithCaller returns the request with its caller.
func WithCaller(r *http.Request, c Caller) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), callerKey{}, c))
}

// CallerOf returns the caller of a request that the server has let through.
func CallerOf(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}

// The types of errors.
const (
	InvalidRequest = "invalid_request_error"
	ServerError    = "server_error"
)

// Error is an answer that is no success.
type Error struct {
	Status     int
	Message    string
	Type       string // empty: by the status
	Param      string // the field or parameter that is wrong; empty: none
	Code       string // empty: none
	RetryAfter int    // seconds; 0: no header
}

// Error returns the message.
func (e *Error) Error() string { return e.Message }

// Invalid returns the error for a wrong field.
func Invalid(param, message string) *Error {
	return &Error{Status: http.StatusBadRequest, Message: message, Param: param, Code: "invalid_value"}
}

// NotFound returns the error for an id that the tenant does not have.
func NotFound(param, message string) *Error {
	return &Error{Status: http.StatusNotFound, Message: message, Param: param, Code: "not_found"}
}

// noter is a response that keeps why a request was refused, for the audit log.
type noter interface {
	Refused(status int, reason string)
}

// WriteError answers with an error.
func WriteError(w http.ResponseWriter, e *Error) {
	if n, ok := w.(noter); ok {
		n.Refused(e.Status, e.Message)
	}
	out := envelope.New(e.Status, e.Param, e.Code, e.Message)
	if e.Type != "" {
		out.Reason.Type = e.Type
	}
	out.RetryAfter, out.Final = e.RetryAfter, e.Status == http.StatusConflict // that stays one, however often it is sent
	out.Write(w)
}

// WriteJSON answers with an object.
func WriteJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil { // cannot happen: the types are ours
		status, b = http.StatusInternalServerError, []byte(`{"error":{"message":"internal error","type":"server_error","param":null,"code":null}}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(b) // the client may be gone
}
