package task

import (
	"encoding/json"
	"time"
)

// Constraints are the fields of a task that determine, besides its model, where and when it may
// run. Events of its arrival carry them, so that `tasks why` can explain later why it
// waits. The JSON keys are the names of the task's fields.
type Constraints struct {
	Needs     []string  `json:"needs,omitempty"`
	Exclude   []string  `json:"exclude,omitempty"`  // devices that are not to be tried again
	Declined  []string  `json:"declined,omitempty"` // devices that have refused it
	NotBefore time.Time `json:"not_before,omitzero"`
	Level     int       `json:"level,omitempty"`
	// Unchecked: Postgres did not answer, so nothing but the claim in Redis kept the task from running twice.
	Unchecked bool `json:"unchecked,omitempty"`
}

// maxConstraints limits the size of the lists: an event's detail is small.
const maxConstraints = 2048

// ConstraintsOf returns the task's current constraints.
func ConstraintsOf(t *Task) Constraints {
	w := Constraints{Needs: t.Needs, NotBefore: t.ReadyAt(), Level: t.Level, Declined: t.DeclinedBy()}
	if t.Progress != nil {
		w.Exclude = t.Progress.Exclude
	}
	return w
}

// Detail encodes the constraints as the detail of an event; nil without constraints. Lists
// that are too long are cut.
func (w Constraints) Detail() []byte {
	if len(w.Needs) == 0 && len(w.Exclude) == 0 && len(w.Declined) == 0 && w.NotBefore.IsZero() && w.Level == 0 && !w.Unchecked {
		return nil
	}
	return encodeDetail(w.fitting())
}

// fitting cuts lists that are too long for the detail of an event.
func (w Constraints) fitting() Constraints {
	w.Needs, w.Exclude, w.Declined, w.NotBefore = fitting(w.Needs), fitting(w.Exclude), fitting(w.Declined), w.NotBefore.UTC()
	return w
}

// Arrival is what the event [TaskAccepted] says about a task that a client wrote to Kafka
// itself, besides the task's constraints.
type Arrival struct {
	Constraints
	Identity   string   `json:"identity,omitempty"`    // "claimed": the tenant is what the record says; nothing proves it
	Ignored    []string `json:"ignored,omitempty"`     // headers that only Batchyard may set
	RecordTime *int64   `json:"record_time,omitempty"` // the record's timestamp in milliseconds, if it was implausible and therefore replaced
}

// IdentityClaimed is the identity in the event of a record that Batchyard did not sign.
const IdentityClaimed = "claimed"

// Detail encodes the arrival as the detail of an event.
func (a Arrival) Detail() []byte {
	a.Constraints = a.fitting()
	return encodeDetail(a)
}

func encodeDetail(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil || len(b) > MaxDetail { // names full of control characters, for example
		return nil
	}
	return b
}

func fitting(names []string) []string {
	size := 0
	for i, n := range names {
		if size += len(n) + 3; size > maxConstraints/3 {
			return names[:i]
		}
	}
	return names
}

// ReadConstraints parses a detail written by Detail; ok is false for any other.
func ReadConstraints(detail []byte) (w Constraints, ok bool) {
	return w, len(detail) > 0 && len(detail) <= MaxDetail && json.Unmarshal(detail, &w) == nil
}
