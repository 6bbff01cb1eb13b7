package producer

import (
	"errors"
	"fmt"

	"github.com/batchyard/batchyard/task"
)

// maxRefusals bounds what one answer lists.
const maxRefusals = 20

// ErrClosed says that the producer takes nothing any more.
var ErrClosed = errors.New("the producer is closed: this process is stopping; submit again to another or later")

// Refusal is what is wrong with one task of a submit.
type Refusal struct {
	Index int // in the submit, from 0
	Err   *task.FieldError
}

// RefusedError says what is wrong with the tasks of a submit. None was written.
type RefusedError struct {
	Refusals []Refusal // the first ones
	More     int       // how many more tasks are wrong
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
	var fe *task.FieldError
	if !errors.As(err, &fe) {
		fe = &task.FieldError{Problem: err.Error()}
	}
	e.Refusals = append(e.Refusals, Refusal{i, fe})
}
