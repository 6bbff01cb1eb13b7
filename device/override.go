package device

import (
	"github.com/batchyard/batchyard/task"
)

// PriorityChange changes the rank of a task.
type PriorityChange struct {
	Key      task.Key
	Priority task.Priority // empty: unchanged
	Level    int           // below 0: unchanged
}

// Apply changes the task and reports whether that made a difference.
func (r *PriorityChange) Apply(t *task.Task) bool {
	p, l := t.Priority, t.Level
	if r.Priority != "" {
		t.Priority = r.Priority
	}
	if r.Level >= 0 {
		t.Level = r.Level
	}
	return t.Priority != p || t.Level != l
}

// Zero reports whether it changes nothing.
func (r *PriorityChange) Zero() bool { return r.Priority == "" && r.Level < 0 }

// Override is what operators want of a task that has not finished.
type Override struct {
	Cancelled bool
	PriorityChange
}
