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

// Exit codes. Scripts rely on them.
const (
	ExitOK          = 0
	ExitFailed      = 1 // the work did not succeed
	ExitUsage       = 2 // wrong usage or configuration, or invalid input
	ExitUnreachable = 3 // a service cannot be reached
	ExitUnproven    = 4 // nothing is known to be wrong, but not everything could be proven

	ExitInterrupted = 130 // Ctrl-C or SIGTERM came before the end, as shells report it
)

// exitError is an error with the exit code that it ends the program with.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// WithCode gives an error an exit code, unless it already has one. Nil stays nil.
func WithCode(code int, err error) error {
	var e *exitError
	if err == nil || errors.As(err, &e) {
		return err
	}
	return &exitError{code, err}
}

// UsageError is an error in the command line; its exit code is [ExitUsage].
func UsageError(format string, args ...any) error {
	return &exitError{ExitUsage, fmt.Errorf(format, args...)}
}

// ErrLimitAll is for lists that have both flags: one would be ignored.
var ErrLimitAll = UsageError("--limit and --all cannot be combined")

// ServiceError gives an error from connecting to a service its exit code. If the
// service does not answer, that is [ExitUnreachable]. Anything else is about the
// configuration, or about missing topics or a missing schema: [ExitUsage].
func ServiceError(err error) error {
	var away *unreachable.Error
	if errors.As(err, &away) {
		return WithCode(ExitUnreachable, err)
	}
	return WithCode(ExitUsage, err)
}

// CodeOf returns the exit code of an error: the one that it carries, or the one that
// the server's answer stands for.
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

// report writes an error, each line after the program's name. An indented line joins
// the one before it: some libraries list what they tried that way.
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
		_, _ = fmt.Fprintf(w, "batchyard: %s\n", Plain(line)) // without standard error there is no one to tell
	}
}
