package resolve

import "time"

// NewSmall returns a resolver that remembers few tasks, and waits for none.
func NewSmall(deps Deps, most int) *Resolver { return &Resolver{Deps: deps, max: most} }

// NewPatient returns a resolver that waits so long for the records of tasks that Postgres knows.
func NewPatient(deps Deps, patience time.Duration) *Resolver {
	return &Resolver{Deps: deps, max: maxOpen, patience: patience}
}
