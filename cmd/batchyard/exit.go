package main

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
	exitOK          = 0
	exitFailed      = 1 // the work did not succeed
	exitUsage       = 2 // wrong usage or configuration, or input that cannot be right
	exitUnreachable = 3 // a service cannot be reached
)

// exitError is an error with the exit code that it ends the program with.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// withCode gives an error an exit code; nil stays nil, and a code that an error
// has already is kept.
func withCode(code int, err error) error {
	var e *exitError
	if err == nil || errors.As(err, &e) {
		return err
	}
	return &exitError{code, err}
}

// usageError says that the command line cannot be right.
func usageError(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

// errLimitAll is for lists that have both flags: one of them would be ignored.
var errLimitAll = usageError("--limit and --all exclude each other")

// serviceError gives an error of connecting to a service its exit code. A service
// that does not answer has an error of its own type; anything else is about the
// configuration: what is wrong in it, topics or a schema that are missing.
func serviceError(err error) error {
	var away *unreachable.Error
	if errors.As(err, &away) {
		return withCode(exitUnreachable, err)
	}
	return withCode(exitUsage, err)
}

// codeOf is the exit code of an error: the one that it was given, or that of what
// the server answered.
func codeOf(err error) int {
	var e *exitError
	var refused *batchyard.Error
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &e):
		return e.code
	case errors.Is(err, batchyard.ErrInvalid):
		return exitUsage
	case errors.As(err, &refused) && refused.Status == http.StatusTooManyRequests: // it was reached
		return exitFailed
	case errors.Is(err, batchyard.ErrUnavailable):
		return exitUnreachable
	}
	return exitFailed
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
		_, _ = fmt.Fprintf(w, "batchyard: %s\n", plain(line)) // standard error is gone: nobody is there to be told
	}
}
