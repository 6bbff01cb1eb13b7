package task

import (
	"fmt"
	"strings"
)

// FieldError describes invalid input: which field, what is wrong with it, and the remedy.
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

// NewFieldError returns an error about a field; problem is a format for args.
func NewFieldError(field, remedy, problem string, args ...any) *FieldError {
	return &FieldError{Field: field, Problem: fmt.Sprintf(problem, args...), Remedy: remedy}
}

// ErrorClass says in one word why an attempt failed and who is at fault. Retries, breakers
// and SQL reports depend on it.
type ErrorClass string

// The error classes.
const (
	ClassNone        ErrorClass = ""
	ClassInvalid     ErrorClass = "invalid"      // the task is at fault (400, 422 …), or every device that could run it has declined: it is not retried
	ClassDeclined    ErrorClass = "declined"     // this task on this device: its prompt is too long there, its model is missing …; other devices may run it
	ClassDevice      ErrorClass = "device"       // the device is at fault (5xx, broken answer): retry, elsewhere
	ClassConnect     ErrorClass = "connect"      // the device cannot be reached
	ClassTimeout     ErrorClass = "timeout"      // no answer in time
	ClassThrottled   ErrorClass = "throttled"    // 429, or a pause that the device asked for; not a fault
	ClassAuth        ErrorClass = "auth"         // 401, 403: the device rejects Batchyard's credentials
	ClassBreakerOpen ErrorClass = "breaker_open" // not tried: the device's breaker is open
	ClassCancelled   ErrorClass = "cancelled"    // the task was cancelled; not a fault
	ClassExpired     ErrorClass = "expired"      // the deadline passed
	ClassDraining    ErrorClass = "draining"     // the worker stopped before the attempt ended; not a fault
	ClassInternal    ErrorClass = "internal"     // Batchyard is at fault
	ClassLost        ErrorClass = "lost"         // the result was deleted from Kafka before it was recorded
	ClassReceiver    ErrorClass = "receiver"     // the receiver of a callback answered 5xx
)

// ErrorClasses lists every class but [ClassNone].
var ErrorClasses = []ErrorClass{ClassInvalid, ClassDeclined, ClassDevice, ClassConnect, ClassTimeout, ClassThrottled,
	ClassAuth, ClassBreakerOpen, ClassCancelled, ClassExpired, ClassDraining, ClassInternal, ClassLost, ClassReceiver}

// Word returns a field name sent by a client for use in an error. Names that do not look
// like a field may be anything, such as a part of a prompt, and are not repeated: errors
// end up in logs, dead letters and the audit log.
func Word(name string) string {
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
