package producer

import (
	"errors"
	"fmt"

	"github.com/batchyard/batchyard/task"
)

// maxRefusals bounds how many refusals an error lists.
const maxRefusals = 20

// ErrClosed reports that the producer is closed.
var ErrClosed = errors.New("the producer is closed because this process is stopping: submit to another process, or again later")

// Refusal is what is wrong with one task of a submit.
type Refusal struct {
	Index int // in the submit, from 0
	Err   *task.FieldError
}

// RefusedError lists the invalid tasks of a submit. No task of it was written.
type RefusedError struct {
	Refusals []Refusal // of the first invalid tasks
	More     int       // how many more tasks are invalid
}

func (e *RefusedError) Error() string {
	if len(e.Refusals) == 0 {
		return "the submit was refused"
	}
	first := e.Refusals[0]
	s := fmt.Sprintf("task %d: %s", first.Index, first.Err)
	if n := len(e.Refusals) + e.More - 1; n > 0 {
		s += fmt.Sprintf(" (and %d more)", n)
	}
	return s
}

func (e *RefusedError) add(i int, err error) {
	if len(e.Refusals) == maxRefusals {
		e.More++
		return
	}
	e.Refusals = append(e.Refusals, Refusal{i, asFieldError(err)})
}

func asFieldError(err error) *task.FieldError {
	var fe *task.FieldError
	if !errors.As(err, &fe) {
		fe = &task.FieldError{Problem: err.Error()}
	}
	return fe
}
