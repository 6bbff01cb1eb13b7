package task

import (
	"encoding/json"
	"time"
)

// Wishes are what of a task decides where and when it may run, beside its model.
// The events of its arrival carry them, so that it can be told later why it
// waits. The keys are names of the task's fields.
type Wishes struct {
	Needs     []string  `json:"needs,omitempty"`
	Exclude   []string  `json:"exclude,omitempty"` // devices that are not to be tried again
	NotBefore time.Time `json:"not_before,omitzero"`
	Level     int       `json:"level,omitempty"`
}

// maxWishes bounds the names of a list: an event's detail is small.
const maxWishes = 2048

// WishesOf returns what the task wishes now.
func WishesOf(t *Task) Wishes {
	w := Wishes{Needs: t.Needs, NotBefore: t.ReadyAt(), Level: t.Level}
	if t.Progress != nil {
		w.Exclude = t.Progress.Exclude
	}
	return w
}

// Detail is the wishes as the detail of an event; nil when there are none. Of
// lists that are too long the end is left out.
func (w Wishes) Detail() []byte {
	if len(w.Needs) == 0 && len(w.Exclude) == 0 && w.NotBefore.IsZero() && w.Level == 0 {
		return nil
	}
	w.Needs, w.Exclude, w.NotBefore = fitting(w.Needs), fitting(w.Exclude), w.NotBefore.UTC()
	b, err := json.Marshal(w)
	if err != nil || len(b) > MaxDetail { // names of control characters, say
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

// ReadWishes reads a detail that [Wishes.Detail] wrote; ok is false for another.
func ReadWishes(detail []byte) (w Wishes, ok bool) {
	return w, len(detail) > 0 && len(detail) <= MaxDetail && json.Unmarshal(detail, &w) == nil
}
