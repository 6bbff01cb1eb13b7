package chaos

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"github.com/batchyard/batchyard/task"
)

// Outcome is what a client knows about the result of its submission.
type Outcome string

// The outcomes. After a timeout or a broken connection, it is Unknown.
const (
	Accepted Outcome = "accepted"
	Refused  Outcome = "refused"
	Unknown  Outcome = "unknown"
)

// Submit is one attempt to submit one task.
type Submit struct {
	Key      task.Key
	Outcome  Outcome
	Via      string // http/api-a, http/api-b or kafka
	At       time.Time
	Callback bool // the task asks for a callback
	Deadline bool
	Cancel   bool // a client requested cancellation, with whatever result
	Said     string
}

// Seen is an answer to a status query.
type Seen struct {
	Key   task.Key
	State task.State
}

// Row is a row of tasks or results, or a record of the results topic.
type Row struct {
	Key    task.Key
	State  task.State
	Output [sha256.Size]byte // of results
}

// Change is a change recorded by a trigger in the database.
type Change struct {
	Table string // tasks or results
	Key   task.Key
	Op    string // INSERT, UPDATE or DELETE
	From  task.State
	To    task.State
}

// Due is a row of the callbacks table.
type Due struct {
	ID    string
	Key   task.Key
	State string
}

// Delivery is a request that reached the callback receiver.
type Delivery struct {
	ID      string // webhook-id
	Key     task.Key
	State   task.State
	Status  int    // of the receiver's answer
	Problem string // with the body or the signature
}

// Place is the position of an event in the events topic.
type Place struct {
	Partition int32
	Offset    int64
	Index     int
}

// Event is the part of an event that is compared with its audit row.
type Event struct {
	Place
	Action string
	Key    task.Key
}

// Poison is an acknowledged record that is not a valid task.
type Poison struct {
	Topic     string
	Partition int32
	Offset    int64
}

// Command is the result of one of the program's own checks.
type Command struct {
	Args   string
	Code   int
	Output string
}

// Process is what is known about one process of the program.
type Process struct {
	Name        string
	Exit        int    // code after the last SIGTERM; -1 if it hung and was killed
	Crash       string // how it crashed after it was ready; empty if it didn't
	Goroutines  [2]int // while idle, before and after the chaos
	Descriptors [2]int
}

// History is everything that clients, services and processes know after a run.
type History struct {
	Submits    []Submit
	Seen       []Seen
	Tasks      []Row
	Results    []Row
	Topic      []Row // records of the results topic
	Changes    []Change
	Callbacks  []Due
	Deliveries []Delivery
	Events     []Event // in the events topic
	Rows       []Event // in audit_log
	Poisons    []Poison
	Dead       []Poison // origins of the dead letters
	Commands   []Command
	Processes  []Process
	Left       []string // leaked credits, sessions and group members
	Undrained  string   // why the pipeline didn't drain; empty if it did
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
	NotDrained        = "not-drained"
	Lost              = "lost"            // accepted, but unknown to Postgres
	NotEnded          = "not-ended"       // not in a terminal state
	NoResult          = "no-result"       // ended without a row in results
	Disagree          = "disagree"        // two sources report different states
	Duplicate         = "duplicate"       // two rows for one task
	NeverSubmitted    = "never-submitted" // no client submitted it
	RefusedButPresent = "refused-but-present"
	LeftTerminal      = "left-terminal" // a terminal state was changed
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
)

// Slack is how many more goroutines or descriptors an idle process may have than
// before, for connections that are kept open and for the runtime.
const Slack = 40

// identity is what all clients together know about one task.
type identity struct {
	accepted, unknown, callback, deadline, cancel bool
	via                                           string
}

// Check compares a history with the promises and returns the violations.
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
			continue // a refused submission has no effect
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

// answers checks that every accepted task is in one terminal state with one result,
// and that no other tasks exist.
func (c *checker) answers() {
	for _, t := range c.h.Tasks {
		if _, ok := c.tasks[t.Key]; ok {
			c.add(Duplicate, t.Key, "two rows in tasks")
		}
		c.tasks[t.Key] = t.State
	}
	for _, r := range c.h.Results {
		if _, ok := c.results[r.Key]; ok {
			c.add(Duplicate, r.Key, "two rows in results")
		}
		c.results[r.Key] = r
	}
	for key, id := range c.known {
		state, there := c.tasks[key]
		result, ended := c.results[key]
		switch {
		case id.accepted && !there && !ended:
			c.add(Lost, key, "accepted (%s), but in neither tasks nor results", id.via)
		case !id.accepted && !id.unknown && (there || ended):
			c.add(RefusedButPresent, key, "every submission was refused (%s), but it is %s", id.via, state)
		case ended && !there:
			c.add(Disagree, key, "has the result %s, but is not in tasks", result.State)
		}
	}
	for key, state := range c.tasks {
		id, result := c.known[key], c.results[key]
		switch {
		case id == nil:
			c.add(NeverSubmitted, key, "no client submitted it, but it is %s", state)
			continue
		case !state.Terminal():
			c.add(NotEnded, key, "still %s after everything was healed and drained (%s)", state, id.via)
			continue
		case result.State == "":
			c.add(NoResult, key, "ended as %s, but has no row in results", state)
		case result.State != state:
			c.add(Disagree, key, "tasks says %s, results says %s", state, result.State)
		}
		if state == task.Expired && !id.deadline {
			c.add(UnexpectedExpiry, key, "expired without a deadline")
		}
		if state == task.Cancelled && !id.cancel {
			c.add(UnrequestedCancel, key, "cancelled, but no client requested it")
		}
	}
	for key := range c.results {
		if c.known[key] == nil {
			c.add(NeverSubmitted, key, "no client submitted it, but it has a result")
		}
	}
	for _, s := range c.h.Seen {
		if s.State.Terminal() && c.results[s.Key].State != s.State {
			c.add(Disagree, s.Key, "the API reported %s, but results says %q", s.State, c.results[s.Key].State)
		}
	}
}

// changes checks that no task leaves a terminal state and no result is overwritten.
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

// topic checks that each result in Postgres is also in the results topic.
func (c *checker) topic() {
	on := map[task.Key][]Row{}
	for _, r := range c.h.Topic {
		on[r.Key] = append(on[r.Key], r)
		if c.known[r.Key] == nil {
			c.add(NeverSubmitted, r.Key, "no client submitted it, but it is in the results topic")
		}
	}
	for key, want := range c.results {
		if !slices.ContainsFunc(on[key], func(r Row) bool { return r.State == want.State && r.Output == want.Output }) {
			c.add(NotOnTopic, key, "none of the %d results in the topic matches the one in Postgres (%s)", len(on[key]), want.State)
		}
	}
	for key := range on {
		if _, ok := c.results[key]; !ok {
			c.add(NoResult, key, "in the results topic, but not in Postgres")
		}
	}
}

// callbacks checks that each task with a callback was delivered at least once, always
// with the same id and a valid signature.
func (c *checker) callbacks() {
	due := map[task.Key]Due{}
	for _, d := range c.h.Callbacks {
		if _, ok := due[d.Key]; ok {
			c.add(Duplicate, d.Key, "two rows in callbacks")
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
			c.add(BadCallback, d.Key, "delivered with id %q, but callbacks says %q", d.ID, want.ID)
		}
		if r, ok := c.results[d.Key]; !ok || r.State != d.State {
			c.add(BadCallback, d.Key, "delivered as %s, but results says %q", d.State, r.State)
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
			c.add(NoCallback, key, "has a result, but no row in callbacks")
		case got[key] == 0:
			c.add(NoCallback, key, "the receiver never accepted a delivery; callbacks says %s", d.State)
		case d.State != "DELIVERED":
			c.add(NoCallback, key, "delivered, but callbacks says %s", d.State)
		}
	}
	for key := range due {
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
		case !ok:
			c.add(EventMissing, e.Key, "events/%d@%d[%d] %s is not in audit_log", e.Partition, e.Offset, e.Index, e.Action)
		case r != e:
			c.add(EventChanged, e.Key, "events/%d@%d[%d] is %s of %s, but its row says %s of %s", e.Partition, e.Offset, e.Index, e.Action, e.Key, r.Action, r.Key)
		}
		delete(rows, e.Place)
	}
	for _, r := range rows {
		c.add(EventInvented, r.Key, "audit_log has events/%d@%d[%d] %s, but the topic does not", r.Partition, r.Offset, r.Index, r.Action)
	}
}

// rest checks dead letters, the program's own checks, and leaks of processes.
func (c *checker) rest() {
	dead := map[Poison]bool{}
	for _, d := range c.h.Dead {
		dead[d] = true
	}
	for _, p := range c.h.Poisons {
		if !dead[p] {
			c.add(DeadMissing, task.Key{}, "%s/%d@%d is not a valid task, but not in the dead-letter topic", p.Topic, p.Partition, p.Offset)
		}
	}
	for _, cmd := range c.h.Commands {
		if cmd.Code != 0 {
			c.add(CommandFailed, task.Key{}, "batchyard %s exited with code %d:\n%s", cmd.Args, cmd.Code, cmd.Output)
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
