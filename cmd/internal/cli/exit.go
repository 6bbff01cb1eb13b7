package cli

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/batchyard/batchyard"
	"github.com/batchyard/batchyard/internal/unreachable"
)

// Exit codes. They are part of what scripts rely on.
const (
	ExitOK          = 0
	ExitFailed      = 1 // the work did not succeed
	ExitUsage       = 2 // wrong usage or configuration, or input that cannot be right
	ExitUnreachable = 3 // a service cannot be reached
)

// exitError is an error with the exit code that it ends the program with.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// WithCode gives an error an exit code; nil stays nil, and a code that an error
// has already is kept.
func WithCode(code int, err error) error {
	var e *exitError
	if err == nil || errors.As(err, &e) {
		return err
	}
	return &exitError{code, err}
}

// UsageError says that the command line cannot be right.
func UsageError(format string, args ...any) error {
	return &exitError{ExitUsage, fmt.Errorf(format, args...)}
}

// ErrLimitAll is for lists that have both flags: one of them would be ignored.
var ErrLimitAll = UsageError("--limit and --all exclude each other")

// ServiceError gives an error of connecting to a service its exit code. A service
// that does not answer has an error of its own type; anything else is about the
// configuration: what is wrong in it, topics or a schema that are missing.
func ServiceError(err error) error {
	var away *unreachable.Error
	if errors.As(err, &away) {
		return WithCode(ExitUnreachable, err)
	}
	return WithCode(ExitUsage, err)
}

// CodeOf is the exit code of an error: the one that it was given, or that of what
// the server answered.
func CodeOf(err error) int {
	var e *exitError
	var refused *batchyard.Error
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &e):
		return e.code
	case errors.Is(err, batchyard.ErrInvalid):
		return ExitUsage
	case errors.As(err, &refused) && refused.Status == http.StatusTooManyRequests: // it was reached
		return ExitFailed
	case errors.Is(err, batchyard.ErrUnavailable):
		return ExitUnreachable
	}
	return ExitFailed
}

// report writes an error, each of its lines with our name in front. A line that
// is indented goes on the one before: some libraries list what they tried so.
func report(w io.Writer, err error) {
	var lines []string
	for line := range strings.SplitSeq(strings.TrimSpace(err.Error()), "\n") {
		text := strings.TrimSpace(line)
		switch {
		case text == "":
		case line[0] == ' ' || line[0] == '\t':
			lines[len(lines)-1] += " " + text
		default:
			lines = append(lines, text)
		}
	}
	for _, line := range lines {
		_, _ = fmt.Fprintf(w, "batchyard: %s\n", Plain(line)) // standard error is gone: nobody is there to be told
	}
}
