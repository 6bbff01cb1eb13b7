package audit

import "github.com/batchyard/batchyard/task"

// What follows is for whoever compares the logs with the tables: it says of a
// record what the recorder made of it.

// CheckEvent brings an event into the form in which it is recorded; an error
// means that it cannot be recorded and became a dead letter.
func CheckEvent(e *task.Event) error { return cleanEvent(e) }

// CheckResult brings a result, as [task.DecodeResult] returned it, into the form
// in which it is recorded; an error means that it cannot be recorded and became a
// dead letter.
func CheckResult(r *task.Result) error { return cleanResult(r) }
