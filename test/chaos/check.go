package chaos

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"github.com/batchyard/batchyard/task"
)

// Outcome is what a client knows of its submit.
type Outcome string

// The outcomes. A time-out and a broken connection are Unknown.
const (
	Accepted Outcome = "accepted"
	Refused  Outcome = "refused"
	Unknown  Outcome = "unknown"
)

// Submit is one try to hand over one task.
type Submit struct {
	Key      task.Key
	Outcome  Outcome
	Via      string // http/api-a, kafka
	At       time.Time
	Callback bool // the task asks for one
	Deadline bool
	Cancel   bool // somebody asked to cancel it, whatever came of it
	Said     string
}

// Seen is an answer to somebody who asked how a task stands.
type Seen struct {
	Key   task.Key
	State task.State
}

// Row is a row of tasks or results, or a result on the topic.
type Row struct {
	Key    task.Key
	State  task.State
	Output [sha256.Size]byte // of results
}

// Change is what a trigger in the database saw.
type Change struct {
	Table string // tasks or results
	Key   task.Key
	Op    string // INSERT, UPDATE or DELETE
	From  task.State
	To    task.State
}

// Due is a row of callbacks.
type Due struct {
	ID    string
	Key   task.Key
	State string
}

// Delivery is a request that the receiver took.
type Delivery struct {
	ID      string // webhook-id
	Key     task.Key
	State   task.State
	Status  int    // what the receiver answered
	Problem string // of the body or the signature
}

// Place is one event of the topic events.
type Place struct {
	Partition int32
	Offset    int64
	Index     int
}

// Event is what is compared of an event and its row.
type Event struct {
	Place
	Action string
	Key    task.Key
}

// Poison is a record that is no task; it was acknowledged.
type Poison struct {
	Topic     string
	Partition int32
	Offset    int64
}

// Command is a check that the program has of its own.
type Command struct {
	Args   string
	Code   int
	Output string
}

// Process is what is known of one process of the program.
type Process struct {
	Name        string
	Exit        int    // after the last SIGTERM; -1: it was killed because it did not end
	Fell        string // how it ended by itself when it had been ready; empty: it did not
	Goroutines  [2]int // idle, before and after the chaos
	Descriptors [2]int
}

// History is all that clients, services and processes know after a run.
type History struct {
	Submits    []Submit
	Seen       []Seen
	Tasks      []Row
	Results    []Row
	Topic      []Row // of the topic results
	Changes    []Change
	Callbacks  []Due
	Deliveries []Delivery
	Events     []Event // of the topic events
	Rows       []Event // of audit_log
	Poisons    []Poison
	Dead       []Poison // where the dead letters came from
	Commands   []Command
	Processes  []Process
	Left       []string // credits, connections, members of groups: what should be gone
	Undrained  string   // why draining was given up; empty: it was not
}

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
	NotDrained      = "not-drained"
	Lost            = "lost"         // accepted, and nobody knows it
	NotEnded        = "not-ended"    // known, and in no terminal state
	NoResult        = "no-result"    // ended without a row in results
	Disagree        = "disagree"     // task and result, or two tellers, differ
	Twice           = "twice"        // a task or result is there twice
	FromNowhere     = "from-nowhere" // nobody submitted it
	RefusedButThere = "refused-but-taken"
	LeftTerminal    = "left-terminal" // a terminal state was changed
	NotOnTopic      = "not-on-topic"
	BadExpiry       = "expired-without-deadline"
	BadCancel       = "cancelled-by-nobody"
	NoCallback      = "callback-missing"
	BadCallback     = "callback-wrong"
	EventMissing    = "event-missing"
	EventTwice      = "event-twice"
	EventInvented   = "event-invented"
	EventChanged    = "event-changed"
	DeadMissing     = "dead-letter-missing"
	CommandFailed   = "command-failed"
	ExitCode        = "exit-code"
	Fell            = "process-fell"
	Grew            = "leak"
	LeftBehind      = "left-behind"
)

// Slack is how many goroutines or descriptors an idle process may have more than
// before: connections that are kept open, and the runtime's own.
const Slack = 40

// identity is all that clients know of one task.
type identity struct {
	accepted, unknown, callback, deadline, cancel bool
	via                                           string
}

// Check compares a history with the promises. It returns nothing when all hold.
func Check(h *History) []Violation {
	c := &checker{h: h, known: map[task.Key]*identity{}, tasks: map[task.Key]task.State{}, results: map[task.Key]Row{}}
	if h.Undrained != "" {
		c.add(NotDrained, task.Key{}, "%s", h.Undrained)
	}
	for i := range h.Submits {
		s := &h.Submits[i]
		id := c.known[s.Key]
		if id == nil {
			id = &identity{}
			c.known[s.Key] = id
		}
		id.accepted = id.accepted || s.Outcome == Accepted
		id.unknown = id.unknown || s.Outcome == Unknown
		id.via += " " + s.Via + ":" + string(s.Outcome)
		if s.Outcome == Refused {
			continue // what it asked for is nobody's business
		}
		id.callback = id.callback || s.Callback
		id.deadline = id.deadline || s.Deadline
		id.cancel = id.cancel || s.Cancel
	}
	c.answers()
	c.changes()
	c.topic()
	c.callbacks()
	c.events()
	c.rest()
	return c.found
}

type checker struct {
	h       *History
	known   map[task.Key]*identity
	tasks   map[task.Key]task.State
	results map[task.Key]Row
	found   []Violation
}

func (c *checker) add(kind string, key task.Key, format string, args ...any) {
	c.found = append(c.found, Violation{kind, key, fmt.Sprintf(format, args...)})
}

// answers: every accepted task is in one terminal state with one result; what is
// there was submitted; what was refused is not there.
func (c *checker) answers() {
	for _, t := range c.h.Tasks {
		if _, ok := c.tasks[t.Key]; ok {
			c.add(Twice, t.Key, "two rows in tasks")
		}
		c.tasks[t.Key] = t.State
	}
	for _, r := range c.h.Results {
		if _, ok := c.results[r.Key]; ok {
			c.add(Twice, r.Key, "two rows in results")
		}
		c.results[r.Key] = r
	}
	for key, id := range c.known {
		state, there := c.tasks[key]
		result, ended := c.results[key]
		switch {
		case id.accepted && !there && !ended:
			c.add(Lost, key, "accepted (%s) and in neither tasks nor results", id.via)
		case !id.accepted && !id.unknown && (there || ended):
			c.add(RefusedButThere, key, "every submit was refused (%s), and it is %s", id.via, state)
		case ended && !there:
			c.add(Disagree, key, "it has the result %s and is not in tasks", result.State)
		}
	}
	for key, state := range c.tasks {
		id, result := c.known[key], c.results[key]
		switch {
		case id == nil:
			c.add(FromNowhere, key, "nobody submitted it, and it is %s", state)
			continue
		case !state.Terminal():
			c.add(NotEnded, key, "it is %s after everything was healed and had time (%s)", state, id.via)
			continue
		case result.State == "":
			c.add(NoResult, key, "it ended as %s and has no row in results", state)
		case result.State != state:
			c.add(Disagree, key, "tasks says %s, results says %s", state, result.State)
		}
		if state == task.Expired && !id.deadline {
			c.add(BadExpiry, key, "it expired and has no deadline")
		}
		if state == task.Cancelled && !id.cancel {
			c.add(BadCancel, key, "it is cancelled and nobody asked for that")
		}
	}
	for key := range c.results {
		if c.known[key] == nil {
			c.add(FromNowhere, key, "nobody submitted it, and it has a result")
		}
	}
	for _, s := range c.h.Seen {
		if s.State.Terminal() && c.results[s.Key].State != s.State {
			c.add(Disagree, s.Key, "the API once said %s, results says %q", s.State, c.results[s.Key].State)
		}
	}
}

// changes: nothing leaves a terminal state, and no result is written twice.
func (c *checker) changes() {
	for _, ch := range c.h.Changes {
		switch {
		case ch.Table == "results" && ch.Op != "INSERT":
			c.add(LeftTerminal, ch.Key, "%s of its row in results", ch.Op)
		case ch.Op == "DELETE":
			c.add(LeftTerminal, ch.Key, "its row in %s was deleted", ch.Table)
		case ch.Op == "UPDATE" && ch.From.Terminal() && ch.From != ch.To:
			c.add(LeftTerminal, ch.Key, "%s became %s", ch.From, ch.To)
		}
	}
}

// topic: each result is on the topic results, as it is in Postgres.
func (c *checker) topic() {
	on := map[task.Key][]Row{}
	for _, r := range c.h.Topic {
		on[r.Key] = append(on[r.Key], r)
		if c.known[r.Key] == nil {
			c.add(FromNowhere, r.Key, "nobody submitted it, and it is on the topic results")
		}
	}
	for key, want := range c.results {
		if !slices.ContainsFunc(on[key], func(r Row) bool { return r.State == want.State && r.Output == want.Output }) {
			c.add(NotOnTopic, key, "none of the %d results on the topic is the one in Postgres (%s)", len(on[key]), want.State)
		}
	}
	for key := range on {
		if _, ok := c.results[key]; !ok {
			c.add(NoResult, key, "it is on the topic results and not in Postgres")
		}
	}
}

// callbacks: each result whose task asked for it was told of, at least once and
// always under one id, with a valid signature.
func (c *checker) callbacks() {
	due := map[task.Key]Due{}
	for _, d := range c.h.Callbacks {
		if _, ok := due[d.Key]; ok {
			c.add(Twice, d.Key, "two rows in callbacks")
		}
		due[d.Key] = d
	}
	got := map[task.Key]int{}
	for _, d := range c.h.Deliveries {
		if d.Problem != "" {
			c.add(BadCallback, d.Key, "%s", d.Problem)
			continue
		}
		if want, ok := due[d.Key]; !ok || want.ID != d.ID {
			c.add(BadCallback, d.Key, "delivered with the id %q, in callbacks it is %q", d.ID, want.ID)
		}
		if r, ok := c.results[d.Key]; !ok || r.State != d.State {
			c.add(BadCallback, d.Key, "delivered as %s, results says %q", d.State, r.State)
		}
		if d.Status/100 == 2 {
			got[d.Key]++
		}
	}
	for key := range c.results {
		id := c.known[key]
		if id == nil || !id.callback {
			continue
		}
		switch d, ok := due[key]; {
		case !ok:
			c.add(NoCallback, key, "it has a result and no row in callbacks")
		case got[key] == 0:
			c.add(NoCallback, key, "the receiver never took one; callbacks says %s", d.State)
		case d.State != "DELIVERED":
			c.add(NoCallback, key, "it was delivered, and callbacks says %s", d.State)
		}
	}
	for key := range due {
		if id := c.known[key]; id == nil || !id.callback {
			c.add(FromNowhere, key, "it has a callback that nobody asked for")
		}
	}
}

// events: each event record is in the audit log once, and nothing else is.
func (c *checker) events() {
	rows := make(map[Place]Event, len(c.h.Rows))
	for _, r := range c.h.Rows {
		if _, ok := rows[r.Place]; ok {
			c.add(EventTwice, r.Key, "events/%d@%d[%d] %s is recorded twice", r.Partition, r.Offset, r.Index, r.Action)
		}
		rows[r.Place] = r
	}
	for _, e := range c.h.Events {
		switch r, ok := rows[e.Place]; {
		case !ok:
			c.add(EventMissing, e.Key, "events/%d@%d[%d] %s is not in audit_log", e.Partition, e.Offset, e.Index, e.Action)
		case r != e:
			c.add(EventChanged, e.Key, "events/%d@%d[%d] is %s of %s, its row says %s of %s", e.Partition, e.Offset, e.Index, e.Action, e.Key, r.Action, r.Key)
		}
		delete(rows, e.Place)
	}
	for _, r := range rows {
		c.add(EventInvented, r.Key, "audit_log has events/%d@%d[%d] %s, the topic does not", r.Partition, r.Offset, r.Index, r.Action)
	}
}

// rest: dead letters, the program's own checks, and what a process leaves behind.
func (c *checker) rest() {
	dead := map[Poison]bool{}
	for _, d := range c.h.Dead {
		dead[d] = true
	}
	for _, p := range c.h.Poisons {
		if !dead[p] {
			c.add(DeadMissing, task.Key{}, "%s/%d@%d is no task and is not in the dead letters", p.Topic, p.Partition, p.Offset)
		}
	}
	for _, cmd := range c.h.Commands {
		if cmd.Code != 0 {
			c.add(CommandFailed, task.Key{}, "batchyard %s ended with exit code %d:\n%s", cmd.Args, cmd.Code, cmd.Output)
		}
	}
	for _, p := range c.h.Processes {
		if p.Exit != 0 {
			c.add(ExitCode, task.Key{}, "%s ended with exit code %d on SIGTERM", p.Name, p.Exit)
		}
		if p.Fell != "" {
			c.add(Fell, task.Key{}, "%s: %s", p.Name, p.Fell)
		}
		if p.Goroutines[1] > p.Goroutines[0]+Slack {
			c.add(Grew, task.Key{}, "%s has %d goroutines when idle, before the chaos it had %d", p.Name, p.Goroutines[1], p.Goroutines[0])
		}
		if p.Descriptors[1] > p.Descriptors[0]+Slack {
			c.add(Grew, task.Key{}, "%s has %d open files when idle, before the chaos it had %d", p.Name, p.Descriptors[1], p.Descriptors[0])
		}
	}
	for _, l := range c.h.Left {
		c.add(LeftBehind, task.Key{}, "%s", l)
	}
}
