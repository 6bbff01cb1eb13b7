package task

import (
	"encoding/json"
	"time"
)

// Wishes are the fields of a task that determine, besides its model, where and when it may
// run. Events of its arrival carry them, so that `tasks why` can explain later why it
// waits. The JSON keys are the names of the task's fields.
type Wishes struct {
	Needs     []string  `json:"needs,omitempty"`
	Exclude   []string  `json:"exclude,omitempty"` // devices that are not to be tried again
	NotBefore time.Time `json:"not_before,omitzero"`
	Level     int       `json:"level,omitempty"`
}

// maxWishes limits the size of the lists: an event's detail is small.
const maxWishes = 2048

// WishesOf returns the task's current constraints.
func WishesOf(t *Task) Wishes {
	w := Wishes{Needs: t.Needs, NotBefore: t.ReadyAt(), Level: t.Level}
	if t.Progress != nil {
		w.Exclude = t.Progress.Exclude
	}
	return w
}

// Detail encodes the constraints as the detail of an event; nil without constraints. Lists
// that are too long are cut.
func (w Wishes) Detail() []byte {
	if len(w.Needs) == 0 && len(w.Exclude) == 0 && w.NotBefore.IsZero() && w.Level == 0 {
		return nil
	}
	w.Needs, w.Exclude, w.NotBefore = fitting(w.Needs), fitting(w.Exclude), w.NotBefore.UTC()
	b, err := json.Marshal(w)
	if err != nil || len(b) > MaxDetail { // names full of control characters, for example
		return nil
	}
	return b
}

func fitting(names []string) []string {
	size := 0
	for i, n := range names {
		if size += len(n) + 3; size > maxWishes/2 {
			return names[:i]
		}
	}
	return names
}

// ReadWishes parses a detail written by Detail; ok is false for any other.
func ReadWishes(detail []byte) (w Wishes, ok bool) {
	return w, len(detail) > 0 && len(detail) <= MaxDetail && json.Unmarshal(detail, &w) == nil
}
