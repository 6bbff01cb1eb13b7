package recorder

import "github.com/batchyard/batchyard/task"

// CheckEvent changes an event to the form in which it is recorded, for programs that compare the
// log with the tables. An error means that it was not recorded and became a dead letter.
func CheckEvent(e *task.Event) error { return cleanEvent(e) }

// CheckResult changes a result, as [task.DecodeResult] returned it, to the form in which it is
// recorded. An error means that it was not recorded and became a dead letter.
func CheckResult(r *task.Result) error { return cleanResult(r) }
