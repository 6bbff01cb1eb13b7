// Package envelope writes errors as OpenAI's API does, so that its SDKs understand them: a status, the
// object {"error": {…}}, and the headers by which an SDK decides whether to send the request again.
package envelope

import (
	"encoding/json"
	"net/http"
	"strconv"
)

// Types of errors.
const (
	InvalidRequest = "invalid_request_error"
	RateLimit      = "rate_limit_error"
	Server         = "server_error"
)

// Error is an error response.
type Error struct {
	Status     int
	Reason     ErrorReason
	RetryAfter int  // seconds; 0: the header is not sent
	Final      bool // the same request would end the same way: SDKs must not repeat it
}

// ErrorReason says what is wrong. Param and Code are null if they do not apply.
type ErrorReason struct {
	Message string  `json:"message" doc:"What is wrong, and what to do."`
	Type    string  `json:"type" doc:"invalid_request_error, rate_limit_error, server_error, or what the device says."`
	Param   *string `json:"param" doc:"The parameter that is wrong, or null."`
	Code    *string `json:"code" doc:"The error in one word, or null."`
}

// ErrorEnvelope is the body of an error response.
type ErrorEnvelope struct {
	Error ErrorReason `json:"error"`
}

// New returns an error whose type follows from its status. An empty param or code is null.
func New(status int, param, code, message string) *Error {
	e := &Error{Status: status, Reason: ErrorReason{Message: message, Type: InvalidRequest, Param: orNull(param), Code: orNull(code)}}
	switch {
	case status == http.StatusTooManyRequests:
		e.Reason.Type = RateLimit
	case status >= http.StatusInternalServerError:
		e.Reason.Type = Server
	}
	return e
}

// Later returns an error that goes away by itself.
func Later(status int, code, message string) *Error {
	e := New(status, "", code, message)
	e.RetryAfter = 1
	return e
}

func (e *Error) Error() string { return e.Reason.Message }

// JSON returns the body.
func (e *Error) JSON() []byte {
	b, err := json.Marshal(ErrorEnvelope{e.Reason})
	if err != nil { // cannot happen: it has only texts
		return []byte(`{"error":{"message":"internal error","type":"server_error","param":null,"code":null}}`)
	}
	return b
}

// Write answers with the error.
func (e *Error) Write(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	if e.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(e.RetryAfter))
	}
	if e.Final {
		h.Set("X-Should-Retry", "false")
	}
	w.WriteHeader(e.Status)
	_, _ = w.Write(e.JSON()) // the client may be gone
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
