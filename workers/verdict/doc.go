// Package verdict says what the end of a request to a device means: whose fault it is, where
// the task goes next, and what the device's breaker counts.
//
// [Table] is the only list of what can happen. [Reply.Judge] finds the row of an answer,
// [Broken] that of an error without a whole answer. The workers carry out what the row says.
// docs/failures.md is generated from the table.
//
// Four may be at fault. A device at fault fails whatever it gets. A task at fault fails
// wherever it goes. A pair at fault is this task on this device: the prompt is too long
// there, or the model is missing. Then the device declines the task, and another may run it.
// The fourth is neither: a device that asks for a pause is neither broken nor is its task.
//
// It does no I/O and has no clock.
package verdict
