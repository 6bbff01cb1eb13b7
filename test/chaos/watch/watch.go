// Package watch finds what stands still although there is something left of it to do. It knows nothing of
// Kafka or Postgres: something else looks about once a second and says where each thing stands.
package watch

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/batchyard/batchyard/task"
)

// Sample is what one look saw of one thing.
type Sample struct {
	Kind  string        // what it is one of; all of a kind have the same bound
	Name  string        // which one of its kind
	Key   task.Key      // the task that it is about, if it is about one
	Left  string        // what is left to do; empty if nothing is
	At    string        // where it stands: it has moved if this has changed
	Needs []string      // what it cannot move without
	Bound time.Duration // for how long it may stand still while it has all that it needs
}

// Stall is a thing that stood still for longer than it may.
type Stall struct {
	Kind, Name string
	Key        task.Key
	Left, At   string
	Since      time.Time
	Stood      time.Duration // in all
	Counted    time.Duration // of that, while it had all that it needs
	Bound      time.Duration
	Moved      bool // it moved later
}

func (s Stall) String() string {
	end := "and did not move any more"
	if s.Moved {
		end = "and moved later"
	}
	return fmt.Sprintf("%s %s stood still from %s on for %.0f s, of which %.0f s with everything that it needs, and may for %.0f s; it stood at %s with %s left, %s",
		s.Kind, s.Name, s.Since.UTC().Format("15:04:05"), s.Stood.Seconds(), s.Counted.Seconds(), s.Bound.Seconds(), s.At, s.Left, end)
}

// maxGap is the longest time between two looks that counts in full: what happened while nothing could be
// seen is not known.
const maxGap = 3 * time.Second

// Watch remembers since when things have been standing still.
type Watch struct {
	things  map[[2]string]*thing
	last    time.Time
	stalls  []*Stall
	longest map[string]time.Duration // by kind
}

type thing struct {
	at      string
	since   time.Time
	counted time.Duration
	stall   *Stall // nil unless it stands still for too long
}

// New returns a watch that has seen nothing.
func New() *Watch {
	return &Watch{things: map[[2]string]*thing{}, longest: map[string]time.Duration{}}
}

// Look takes what a look saw. Things that it does not name are gone. lacks reports whether something that
// things need is missing at the moment. It returns the stalls that begin with this look.
func (w *Watch) Look(now time.Time, samples []Sample, lacks func(need string) bool) (begun []Stall) {
	passed := min(now.Sub(w.last), maxGap)
	w.last = now
	seen := make(map[[2]string]bool, len(samples))
	for i := range samples {
		s := &samples[i]
		id := [2]string{s.Kind, s.Name}
		seen[id] = true
		t := w.things[id]
		if t == nil || s.Left == "" || t.at != s.At {
			t.end()
			w.things[id] = &thing{at: s.At, since: now}
			continue
		}
		if !slices.ContainsFunc(s.Needs, lacks) {
			t.counted += passed
		}
		w.longest[s.Kind] = max(w.longest[s.Kind], t.counted)
		if t.counted <= s.Bound {
			continue
		}
		if t.stall == nil {
			t.stall = &Stall{Kind: s.Kind, Name: s.Name, Key: s.Key, Left: s.Left, At: s.At, Since: t.since, Bound: s.Bound}
			w.stalls = append(w.stalls, t.stall)
			defer func() { begun = append(begun, *t.stall) }()
		}
		t.stall.Left, t.stall.Stood, t.stall.Counted = s.Left, now.Sub(t.since), t.counted
	}
	for id, t := range w.things {
		if !seen[id] {
			t.end()
			delete(w.things, id)
		}
	}
	return begun
}

func (t *thing) end() {
	if t != nil && t.stall != nil {
		t.stall.Moved = true
	}
}

// Stalls returns all stalls, by their beginning.
func (w *Watch) Stalls() []Stall {
	out := make([]Stall, len(w.stalls))
	for i, s := range w.stalls {
		out[i] = *s
	}
	slices.SortStableFunc(out, func(a, b Stall) int { return cmp.Compare(a.Since.UnixNano(), b.Since.UnixNano()) })
	return out
}

// Longest returns, for each kind, for how long one stood still while it had everything that it needs.
func (w *Watch) Longest() map[string]time.Duration { return w.longest }
