package check

import (
	"fmt"
	"slices"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// Violation is a broken promise.
type Violation struct {
	Kind string   `json:"kind"`
	Key  task.Key `json:"key,omitzero"`
	Text string   `json:"text"`
}

func (v Violation) String() string {
	if v.Key.ID == "" {
		return v.Kind + ": " + v.Text
	}
	return fmt.Sprintf("%s: %s: %s", v.Kind, v.Key, v.Text)
}

// The kinds of violations.
const (
	NotDrained        = "not-drained"
	Lost              = "lost"            // accepted, but unknown to Postgres
	NotEnded          = "not-ended"       // not in a terminal state
	NoResult          = "no-result"       // ended without a row in results
	Disagree          = "disagree"        // two sources report different states
	Duplicate         = "duplicate"       // two rows for one task
	NeverSubmitted    = "never-submitted" // no client submitted it
	RefusedButPresent = "refused-but-present"
	AbortedRan        = "aborted-ran"     // its Kafka transaction was aborted
	WrongAnswer       = "wrong-answer"    // a result is to another request than its id belongs to
	WrongQuestion     = "wrong-question"  // the answer is to another request under the same id
	ReuseUnnoticed    = "reuse-unnoticed" // another request under the same id was accepted and vanished
	RetryLost         = "retry-lost"      // a retry was accepted, but nothing ran again
	RetryInvented     = "retry-invented"  // it ran again, but no client asked for it
	RanAgain          = "ran-again"       // it ran although it had been answered
	LeftTerminal      = "left-terminal"   // a terminal state was changed
	NotOnTopic        = "not-on-topic"
	UnexpectedExpiry  = "expired-without-deadline"
	UnrequestedCancel = "cancelled-without-request"
	NoCallback        = "callback-missing"
	BadCallback       = "callback-wrong"
	EventMissing      = "event-missing"
	EventDuplicate    = "event-duplicate"
	EventInvented     = "event-invented"
	EventChanged      = "event-changed"
	DeadMissing       = "dead-letter-missing"
	CommandFailed     = "command-failed"
	ExitCode          = "exit-code"
	Crash             = "process-crash"
	Leak              = "leak"
	LeftBehind        = "left-behind"
	Ungranted         = "assigned-to-no-one"
	StoodStill        = "stood-still"      // for longer than it may
	HoleUnnamed       = "hole-unnamed"     // records were deleted before they were read, and nothing says so
	HoleInvented      = "hole-invented"    // a hole is named, but nothing was deleted
	ParkedTooOften    = "parked-too-often" // a waiting task was written again and again
	LostInvented      = "lost-invented"    // a task counts as lost, but no record of it was in a hole
)

// Slack is how many more goroutines or descriptors an idle process may have than
// before, for connections that are kept open and for the runtime.
const Slack = 40

// identity is what all clients together know about one task.
type identity struct {
	accepted, unknown, aborted, callback, deadline, cancel bool
	via                                                    string
	prints                                                 map[task.Fingerprint]bool // true: accepted
	retries                                                map[int]bool              // generations of accepted retries
	unclear                                                int                       // retries with an unknown outcome
}

// Check compares a history with the promises and returns the violations.
func Check(h *History) []Violation {
	c := &checker{h: h, known: map[task.Key]*identity{}, tasks: map[task.Key]Row{}, results: map[task.Run]Row{}}
	if h.Undrained != "" {
		c.add(NotDrained, task.Key{}, "%s", h.Undrained)
	}
	c.clients()
	c.holes()
	c.answers()
	c.changes()
	c.topic()
	c.callbacks()
	c.events()
	c.retries()
	c.identities()
	c.ranAgain()
	c.stalls()
	c.parked()
	c.grants()
	c.verified()
	c.rest()
	h.Gone = c.gone
	return c.found
}

type checker struct {
	h       *History
	known   map[task.Key]*identity
	tasks   map[task.Key]Row
	results map[task.Run]Row
	found   []Violation

	gone    int               // tasks that Postgres cannot know
	inHole  map[task.Key]bool // a record of the task was in a hole that Batchyard names
	outside map[task.Key]bool // a record from which Postgres knows the task was not
}

func (c *checker) add(kind string, key task.Key, format string, args ...any) {
	c.found = append(c.found, Violation{kind, key, fmt.Sprintf(format, args...)})
}

// clients puts together what the clients know.
func (c *checker) clients() {
	for i := range c.h.Submits {
		s := &c.h.Submits[i]
		id := c.known[s.Key]
		if id == nil {
			id = &identity{prints: map[task.Fingerprint]bool{}, retries: map[int]bool{}}
			c.known[s.Key] = id
		}
		id.via += " " + s.Via + ":" + string(s.Outcome)
		switch s.Outcome {
		case Aborted:
			id.aborted = true
			continue
		case Refused:
			continue // a refused submission has no effect
		case Accepted:
			id.accepted = true
		case Unknown:
			id.unknown = true
		}
		id.prints[s.Print] = id.prints[s.Print] || s.Outcome == Accepted
		id.callback = id.callback || s.Callback
		id.deadline = id.deadline || s.Deadline
		id.cancel = id.cancel || s.Cancel
	}
}

// answers checks that every accepted task is in one terminal state with one result
// for each time it ran, and that no other tasks exist.
func (c *checker) answers() {
	for _, t := range c.h.Tasks {
		if _, ok := c.tasks[t.Run.Key]; ok {
			c.add(Duplicate, t.Run.Key, "two rows in tasks")
		}
		c.tasks[t.Run.Key] = t
	}
	ended := map[task.Key]bool{}
	for _, r := range c.h.Results {
		if _, ok := c.results[r.Run]; ok {
			c.add(Duplicate, r.Run.Key, "two rows in results")
		}
		c.results[r.Run], ended[r.Run.Key] = r, true
	}
	for key, id := range c.known {
		_, there := c.tasks[key]
		switch {
		case c.vanished(key) && !there && !ended[key]:
			c.gone++
		case id.accepted && !there && !ended[key]:
			c.add(Lost, key, "accepted (%s), but in neither tasks nor results", id.via)
		case id.aborted && (there || ended[key]):
			c.add(AbortedRan, key, "its transaction was aborted, but it is %s", c.tasks[key].State)
		case !id.accepted && !id.unknown && (there || ended[key]):
			c.add(RefusedButPresent, key, "every submission was refused (%s), but it is %s", id.via, c.tasks[key].State)
		case ended[key] && !there:
			c.add(Disagree, key, "has a result, but is not in tasks")
		}
	}
	for key := range c.tasks {
		c.answer(key)
	}
	for run := range c.results {
		if c.known[run.Key] == nil {
			c.add(NeverSubmitted, run.Key, "no client submitted it, but it has a result")
		}
	}
	c.reported()
}

// answer checks the state and the results of one task.
func (c *checker) answer(key task.Key) {
	id, row := c.known[key], c.tasks[key]
	result := c.results[row.Run]
	switch {
	case id == nil:
		c.add(NeverSubmitted, key, "no client submitted it, but it is %s", row.State)
		return
	case !row.State.Terminal():
		c.add(NotEnded, key, "still %s after everything was healed and drained (%s)", row.State, id.via)
		return
	case result.State == "":
		c.add(NoResult, key, "ended as %s, but has no row in results", row.State)
	case result.State != row.State:
		c.add(Disagree, key, "tasks says %s, results says %s", row.State, result.State)
	}
	for g := range row.Run.Generation {
		if _, ok := c.results[task.Run{Key: key, Generation: g}]; !ok {
			c.add(NoResult, key, "ran %d times, but generation %d has no row in results", row.Run.Generation+1, g)
		}
	}
	if row.State == task.Expired && !id.deadline {
		c.add(UnexpectedExpiry, key, "expired without a deadline")
	}
	if row.State == task.Cancelled && !id.cancel {
		c.add(UnrequestedCancel, key, "cancelled, but no client requested it")
	}
}

// reported checks that each terminal state that the API reported is that of a result.
func (c *checker) reported() {
	for _, s := range c.h.Seen {
		if !s.State.Terminal() {
			continue
		}
		var states []task.State
		for g := range c.tasks[s.Key].Run.Generation + 1 {
			states = append(states, c.results[task.Run{Key: s.Key, Generation: g}].State)
		}
		if !slices.Contains(states, s.State) {
			c.add(Disagree, s.Key, "the API reported %s, but results says %q", s.State, states)
		}
	}
}

// changes checks that no task leaves a terminal state, except for another generation,
// and no result is overwritten.
func (c *checker) changes() {
	for _, ch := range c.h.Changes {
		switch {
		case ch.Table == "results" && ch.Op != "INSERT":
			c.add(LeftTerminal, ch.Run.Key, "%s of its row in results", ch.Op)
		case ch.Op == "DELETE":
			c.add(LeftTerminal, ch.Run.Key, "its row in %s was deleted", ch.Table)
		case ch.Op == "UPDATE" && ch.From.Terminal() && ch.From != ch.To && !ch.Again:
			c.add(LeftTerminal, ch.Run.Key, "%s became %s", ch.From, ch.To)
		}
	}
}

// topic checks that each result in Postgres is also in the results topic.
func (c *checker) topic() {
	on := map[task.Run][]Row{}
	for _, r := range c.h.Topic {
		on[r.Run] = append(on[r.Run], r)
		if c.known[r.Run.Key] == nil {
			c.add(NeverSubmitted, r.Run.Key, "no client submitted it, but it is in the results topic")
		}
	}
	for run, want := range c.results {
		if !slices.ContainsFunc(on[run], func(r Row) bool { return r.State == want.State && r.Output == want.Output }) {
			c.add(NotOnTopic, run.Key, "none of the %d results in the topic matches the one in Postgres (%s)", len(on[run]), want.State)
		}
	}
	for run, rows := range on {
		if _, ok := c.results[run]; !ok && slices.ContainsFunc(rows, func(r Row) bool { return !c.named(stream.Results, r.Partition, r.Offset) }) {
			c.add(NoResult, run.Key, "in the results topic, but not in Postgres")
		}
	}
}

// callbacks checks that each result of a task with a callback was delivered at least
// once, always with the same id and a valid signature.
func (c *checker) callbacks() {
	due := map[task.Run]Due{}
	for _, d := range c.h.Callbacks {
		if _, ok := due[d.Run]; ok {
			c.add(Duplicate, d.Run.Key, "two rows in callbacks")
		}
		due[d.Run] = d
	}
	got := map[task.Run]int{}
	for _, d := range c.h.Deliveries {
		if d.Problem != "" {
			c.add(BadCallback, d.Run.Key, "%s", d.Problem)
			continue
		}
		if want, ok := due[d.Run]; !ok || want.ID != d.ID {
			c.add(BadCallback, d.Run.Key, "delivered with id %q, but callbacks says %q", d.ID, want.ID)
		}
		if r, ok := c.results[d.Run]; !ok || r.State != d.State {
			c.add(BadCallback, d.Run.Key, "delivered as %s, but results says %q", d.State, r.State)
		}
		if d.Status/100 == 2 {
			got[d.Run]++
		}
	}
	for run := range c.results {
		key, id := run.Key, c.known[run.Key]
		if id == nil || !id.callback {
			continue
		}
		switch d, ok := due[run]; {
		case !ok && c.results[run].Lost && c.inHole[key]: // the event that said so was in a hole
		case !ok:
			c.add(NoCallback, key, "has a result, but no row in callbacks")
		case got[run] == 0:
			c.add(NoCallback, key, "the receiver never accepted a delivery; callbacks says %s", d.State)
		case d.State != "DELIVERED":
			c.add(NoCallback, key, "delivered, but callbacks says %s", d.State)
		}
	}
	for run := range due {
		key := run.Key
		if id := c.known[key]; id == nil || !id.callback {
			c.add(NeverSubmitted, key, "has a callback that no client asked for")
		}
	}
}

// events checks that the audit log contains each event exactly once and nothing
// else.
func (c *checker) events() {
	rows := make(map[Place]Event, len(c.h.Rows))
	for _, r := range c.h.Rows {
		if _, ok := rows[r.Place]; ok {
			c.add(EventDuplicate, r.Key, "events/%d@%d[%d] %s is recorded twice", r.Partition, r.Offset, r.Index, r.Action)
		}
		rows[r.Place] = r
	}
	for _, e := range c.h.Events {
		switch r, ok := rows[e.Place]; {
		case c.named(stream.Events, e.Partition, e.Offset) && (!ok || r.Action == string(task.RecordsMissed)):
		case !ok:
			c.add(EventMissing, e.Key, "events/%d@%d[%d] %s is not in audit_log", e.Partition, e.Offset, e.Index, e.Action)
		case r.Action != e.Action || r.Key != e.Key:
			c.add(EventChanged, e.Key, "events/%d@%d[%d] is %s of %s, but its row says %s of %s", e.Partition, e.Offset, e.Index, e.Action, e.Key, r.Action, r.Key)
		}
		delete(rows, e.Place)
	}
	for _, r := range rows {
		if r.Action == string(task.RecordsMissed) && c.named(stream.Events, r.Partition, r.Offset) {
			continue // the row says what is missing there
		}
		c.add(EventInvented, r.Key, "audit_log has events/%d@%d[%d] %s, but the topic does not", r.Partition, r.Offset, r.Index, r.Action)
	}
}

// rest checks dead letters and leaks of processes.
func (c *checker) rest() {
	dead := map[Poison]bool{}
	for _, d := range c.h.Dead {
		dead[d] = true
	}
	for _, p := range c.h.Poisons {
		if !dead[p] && !c.named(p.Topic, p.Partition, p.Offset) {
			c.add(DeadMissing, task.Key{}, "%s/%d@%d is not a valid task, but not in the dead-letter topic", p.Topic, p.Partition, p.Offset)
		}
	}
	for _, p := range c.h.Processes {
		if p.Exit != 0 {
			c.add(ExitCode, task.Key{}, "%s exited with code %d after SIGTERM", p.Name, p.Exit)
		}
		if p.Crash != "" {
			c.add(Crash, task.Key{}, "%s: %s", p.Name, p.Crash)
		}
		if p.Goroutines[1] > p.Goroutines[0]+Slack {
			c.add(Leak, task.Key{}, "%s has %d goroutines while idle, up from %d before the chaos", p.Name, p.Goroutines[1], p.Goroutines[0])
		}
		if p.Descriptors[1] > p.Descriptors[0]+Slack {
			c.add(Leak, task.Key{}, "%s has %d open files while idle, up from %d before the chaos", p.Name, p.Descriptors[1], p.Descriptors[0])
		}
	}
	for _, l := range c.h.Left {
		c.add(LeftBehind, task.Key{}, "%s", l)
	}
}
