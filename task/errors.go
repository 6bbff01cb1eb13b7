package task

import (
	"fmt"
	"strings"
)

// FieldError is bad input: which field, what is wrong with it, what to do.
type FieldError struct {
	Field   string // dotted path, such as "callback.url"; empty for the whole record
	Problem string // what is wrong, without the field's name
	Remedy  string // what the sender can do
}

func (e *FieldError) Error() string {
	var b strings.Builder
	if e.Field != "" {
		b.WriteString(e.Field)
		b.WriteString(": ")
	}
	b.WriteString(e.Problem)
	if e.Remedy != "" {
		b.WriteString("; ")
		b.WriteString(e.Remedy)
	}
	return b.String()
}

func fieldErr(field, remedy, problem string, args ...any) *FieldError {
	return &FieldError{Field: field, Problem: fmt.Sprintf(problem, args...), Remedy: remedy}
}

// ErrorClass says in one word whose fault an unsuccessful attempt was. It is
// what retries, breakers and SQL reports are keyed by.
type ErrorClass string

// The classes of errors. Each says who is to blame, hence what helps.
const (
	ClassNone        ErrorClass = ""
	ClassInvalid     ErrorClass = "invalid"      // the task's fault (400, 404, 422 …): the same everywhere, never tried again
	ClassDevice      ErrorClass = "device"       // the device's fault (5xx, broken answer): try again, elsewhere
	ClassConnect     ErrorClass = "connect"      // the device cannot be reached
	ClassTimeout     ErrorClass = "timeout"      // no answer in time
	ClassThrottled   ErrorClass = "throttled"    // 429: slow down; not a fault
	ClassAuth        ErrorClass = "auth"         // 401, 403: the device refuses our credentials
	ClassBreakerOpen ErrorClass = "breaker_open" // not tried: the device's breaker is open
	ClassCancelled   ErrorClass = "cancelled"    // somebody cancelled; nobody's fault
	ClassExpired     ErrorClass = "expired"      // the deadline passed
	ClassDraining    ErrorClass = "draining"     // the worker stopped before the attempt ended; nobody's fault
	ClassInternal    ErrorClass = "internal"     // our own fault
)

// ErrorClasses lists every class; it is the documentation of the column.
var ErrorClasses = []ErrorClass{ClassInvalid, ClassDevice, ClassConnect, ClassTimeout, ClassThrottled,
	ClassAuth, ClassBreakerOpen, ClassCancelled, ClassExpired, ClassDraining, ClassInternal}

// word is a name that a sender gave to a field, for an error that names it. What
// does not look like the name of a field may be anything, such as a part of a
// prompt, and is not repeated: errors go to logs, dead letters and the audit log.
func word(name string) string {
	const most = 40
	ok := name != "" && len(name) <= most
	for _, c := range []byte(name) {
		ok = ok && (c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z')
	}
	if !ok {
		return "(a field)"
	}
	return name
}
