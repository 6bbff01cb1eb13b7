// Package unreachable has the error for a service that does not answer. Programs
// tell it from a wrong configuration by its type: the command line ends with
// another exit code.
package unreachable

import "fmt"

// Error says that Kafka, Redis or Postgres could not be reached.
type Error struct {
	Service string // Kafka, Redis or Postgres
	Addr    string // where it was tried, without credentials
	Setting string // the key of the configuration that holds the address
	Err     error
}

func (e *Error) Error() string {
	return fmt.Sprintf("connecting to %s at %s: %s; check %s", e.Service, e.Addr, e.Err, e.Setting)
}

func (e *Error) Unwrap() error { return e.Err }
