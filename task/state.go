package task

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// State is the state of a task. The zero value is not a valid state.
type State string

// The states of a task. The last four are terminal.
const (
	Pending   State = "PENDING"
	Assigned  State = "ASSIGNED"
	Running   State = "RUNNING"
	Success   State = "SUCCESS"
	Failed    State = "FAILED"
	Cancelled State = "CANCELLED"
	Expired   State = "EXPIRED"
)

// States lists all states in the order in which a task may pass through them.
var States = []State{Pending, Assigned, Running, Success, Failed, Cancelled, Expired}

// next lists the valid transitions.
var next = map[State][]State{
	Pending:  {Assigned, Cancelled, Expired, Failed},
	Assigned: {Running, Pending, Cancelled, Expired, Failed},
	Running:  {Pending, Success, Failed, Cancelled, Expired},
}

// Terminal reports whether the state is final.
func (s State) Terminal() bool {
	switch s {
	case Success, Failed, Cancelled, Expired:
		return true
	}
	return false
}

// CanBecome reports whether a task may go from s to t in one step.
func (s State) CanBecome(t State) bool { return slices.Contains(next[s], t) }

// ParseState parses a state, ignoring case; the error lists the valid ones.
func ParseState(s string) (State, error) {
	st := State(strings.ToUpper(strings.TrimSpace(s)))
	if slices.Contains(States, st) {
		return st, nil
	}
	names := make([]string, len(States))
	for i, known := range States {
		names[i] = string(known)
	}
	return "", &FieldError{Field: "state", Problem: fmt.Sprintf("%q is not a state", s), Remedy: "use one of " + strings.Join(names, ", ")}
}

// TerminalSequence is the sequence number of all terminal states: the highest.
const TerminalSequence = math.MaxInt32

// Sequence numbers a state along the life of its task: attempt n is assigned (10n+1),
// running (10n+2) and, when it is requeued, pending (10n+3). An accepted task without
// attempts is 0. The state with the higher number is the later one, in whatever order
// events arrive.
func Sequence(s State, attempt int) int {
	switch s {
	case Assigned:
		return 10*attempt + 1
	case Running:
		return 10*attempt + 2
	case Pending:
		if attempt == 0 {
			return 0
		}
		return 10*attempt + 3
	default:
		return TerminalSequence
	}
}
