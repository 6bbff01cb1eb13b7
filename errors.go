package batchyard

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/batchyard/batchyard/task"
)

// What an error means for the caller, for [errors.Is].
var (
	// ErrInvalid says that the request can never succeed as it is; [Error.Fields]
	// names what is wrong. Nothing was changed.
	ErrInvalid = errors.New("the request is invalid")
	// ErrUnauthorized says that the server, or a proxy in front of it, refuses the
	// API key, or wants one.
	ErrUnauthorized = errors.New("not authorized")
	// ErrNotFound says that the tenant has no such task, job or device.
	ErrNotFound = errors.New("not found")
	// ErrConflict says that the request does not fit what is there: it is too late, because the task has
	// ended or already runs, or too early, because it has not ended ([Error.State] says which); or the id
	// belongs to another request ([Error.Fields] says which id).
	ErrConflict = errors.New("conflict")
	// ErrUnavailable says that the same request may succeed later: the server
	// cannot be reached, is busy, or lacks a service that it needs. The outcome of
	// a request that changes something is unknown; repeating it is safe.
	ErrUnavailable = errors.New("unavailable")
)

// maxProblem bounds how much of an error document is read, in bytes.
const maxProblem = 64 << 10

// maxRetryAfter bounds how long a server can make the client pause.
const maxRetryAfter = time.Minute

// Error is an answer of the server that is not a success: a problem document
// (RFC 9457), or a bare status when what answered is not Batchyard.
type Error struct {
	Status     int            // HTTP status
	Title      string         // the kind of problem; empty without a problem document
	Detail     string         // what is wrong and what to do
	Fields     []FieldProblem // each field that is wrong, at most 20
	State      task.State     // the task's state, when that is the problem
	TraceID    string         // finds the request in the server's log; 32 hex digits
	RetryAfter time.Duration  // the pause that the server asks for, at most a minute; 0: none
}

// FieldProblem is one field that is wrong.
type FieldProblem struct {
	Pointer string `json:"pointer"` // JSON pointer into the body, such as /3/callback/url, or the name of a parameter or header
	Detail  string `json:"detail"`  // what is wrong and what to do
}

// problem is the wire form of an Error.
type problem struct {
	Title   string         `json:"title"`
	Status  int            `json:"status"`
	Detail  string         `json:"detail"`
	Errors  []FieldProblem `json:"errors,omitempty"`
	State   task.State     `json:"state,omitempty"`
	TraceID string         `json:"trace_id,omitempty"`
}

// Error says what is wrong: the detail, a line for each field when there are
// several, and for a fault of the server the trace id.
func (e *Error) Error() string {
	var b strings.Builder
	switch {
	case e.Detail != "":
		b.WriteString(e.Detail)
	case e.Title != "":
		b.WriteString(e.Title)
	default:
		fmt.Fprintf(&b, "status %d (%s)", e.Status, http.StatusText(e.Status))
	}
	if len(e.Fields) > 1 {
		for _, f := range e.Fields {
			fmt.Fprintf(&b, "\n%s: %s", f.Pointer, f.Detail)
		}
	}
	if e.Status >= http.StatusInternalServerError && e.TraceID != "" {
		fmt.Fprintf(&b, " (status %d, trace id %s)", e.Status, e.TraceID)
	}
	return b.String()
}

// Is reports whether target is the sentinel that the status stands for.
func (e *Error) Is(target error) bool {
	switch e.Status {
	case http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType:
		return target == ErrInvalid
	case http.StatusUnauthorized, http.StatusForbidden:
		return target == ErrUnauthorized
	case http.StatusNotFound, http.StatusGone:
		return target == ErrNotFound
	case http.StatusConflict:
		return target == ErrConflict
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return target == ErrUnavailable
	}
	return false
}

// ConnectionError says that the server was not reached, or that its answer broke
// off. It matches [ErrUnavailable].
type ConnectionError struct {
	Server string // base URL
	Err    error

	reading bool // it had begun to answer
}

func (e *ConnectionError) Error() string {
	if e.reading {
		return fmt.Sprintf("reading the answer of the server at %s: %s", e.Server, e.Err)
	}
	return fmt.Sprintf("connecting to the server at %s: %s; is it running, and is the address right?", e.Server, e.Err)
}

func (e *ConnectionError) Unwrap() error { return e.Err }

// Is reports whether target is [ErrUnavailable].
func (e *ConnectionError) Is(target error) bool { return target == ErrUnavailable }

// refusal reads an answer that is not a success.
func (c *Client) refusal(resp *http.Response) error {
	var p problem
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxProblem))
	if err != nil || json.Unmarshal(text, &p) != nil || p.Detail == "" && p.Title == "" {
		p = problem{Detail: fmt.Sprintf("the server at %s answered with status %d (%s); is the address right?",
			c.base, resp.StatusCode, http.StatusText(resp.StatusCode))}
	}
	e := &Error{Status: resp.StatusCode, Title: p.Title, Detail: p.Detail, Fields: p.Errors, State: p.State, TraceID: p.TraceID}
	if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && n > 0 {
		e.RetryAfter = min(time.Duration(min(n, 3600))*time.Second, maxRetryAfter)
	}
	return e
}
