package task

import (
	"crypto/sha256"
	"time"
)

// MaxDetail is the maximum size of the JSON detail of an event, in bytes.
const MaxDetail = 4096

// ActorType is the kind of an actor.
type ActorType string

// The kinds of actors.
const (
	ActorUser   ActorType = "user"   // a person or program that uses Batchyard
	ActorStage  ActorType = "stage"  // a stage of Batchyard: router, batcher, workers …
	ActorDevice ActorType = "device" // a device or its agent
)

// Outcome is how an action ended.
type Outcome string

// The outcomes.
const (
	OutcomeOK      Outcome = "ok"
	OutcomeFailed  Outcome = "failed"
	OutcomeRefused Outcome = "refused"
)

// Event is one action of an actor. It becomes one row of audit_log. It never contains a
// prompt, an answer, a key or a secret: only their sizes, token counts and SHA-256. The
// order of the fields is the positional wire form: append only.
type Event struct {
	_msgpack struct{} `msgpack:",as_array"`

	Time         time.Time
	Action       Action
	Outcome      Outcome
	Tenant       string
	ActorType    ActorType
	ActorID      string // user: name of the tenant or key; stage: stage@host-pid; device: its id
	SourceAddr   string // "203.0.113.7:4711", or "kafka:tasks.normal/3@42" for a record
	UserAgent    string
	ResourceType string // task, batch, device, callback, job, config …
	ResourceID   string
	ErrorClass   ErrorClass
	TaskID       string
	JobID        string
	BatchID      string
	DeviceID     string
	Attempt      int
	TraceID      string
	Duration     time.Duration // of the action; 0 if it has none
	Model        string
	InputTokens  int64
	OutputTokens int64
	InputSize    int64
	InputSHA256  []byte
	OutputSize   int64
	OutputSHA256 []byte
	Detail       []byte // a small JSON object, or nil

	// Set in events that start the life of a task, for the first version of its row.
	Endpoint    string
	Priority    Priority
	CustomID    string
	SubmittedAt time.Time
	Deadline    time.Time
	CallbackURL string

	Generation  int    // of the task: 0 is the first run, n the nth retry on request
	Fingerprint []byte // of the task, where it was accepted, let in or ended by a router; nil elsewhere
}

// Origin is who sent something and from where; every user action has one.
type Origin struct {
	Actor     string // name of the user, tenant or key
	Addr      string
	UserAgent string
}

// NewEvent returns an event about a task, by the given stage instance.
func NewEvent(a Action, t *Task, actor string, at time.Time) Event {
	return Event{
		Time: at.UTC(), Action: a, Outcome: OutcomeOK, Tenant: t.Tenant,
		ActorType: ActorStage, ActorID: actor,
		ResourceType: "task", ResourceID: t.ID, TaskID: t.ID, JobID: t.JobID,
		Attempt: t.Tried(), TraceID: t.TraceID, Model: t.Model, Generation: t.Generation(),
	}
}

// Accepted returns the event that starts the life of a task: who sent it, from where, and
// what it is, without its content.
func Accepted(t *Task, o Origin, at time.Time) Event {
	e := NewEvent(TaskAccepted, t, o.Actor, at)
	e.ActorType = ActorUser
	e.SourceAddr, e.UserAgent = o.Addr, o.UserAgent
	sum := sha256.Sum256(t.Input)
	e.InputSize, e.InputSHA256 = int64(len(t.Input)), sum[:]
	e.Endpoint, e.Priority, e.CustomID = t.Endpoint, t.Priority, t.CustomID
	e.SubmittedAt, e.Deadline = t.SubmittedAt, t.Deadline
	e.Fingerprint = t.Fingerprint().Bytes()
	if t.Callback != nil {
		e.CallbackURL = t.Callback.URL
	}
	e.Detail = ConstraintsOf(t).Detail()
	return e
}

// Key returns the identity of the event's task; its ID is empty if the event is not about
// a task.
func (e *Event) Key() Key { return Key{e.Tenant, e.TaskID} }
