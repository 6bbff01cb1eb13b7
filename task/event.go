package task

import (
	"crypto/sha256"
	"time"
)

// MaxDetail bounds the JSON detail of an event, in bytes.
const MaxDetail = 4096

// ActorType says what kind of somebody acted.
type ActorType string

// The kinds of actors.
const (
	ActorUser   ActorType = "user"   // a person or a program that uses Batchyard
	ActorStage  ActorType = "stage"  // one of ours: router, batcher, workers …
	ActorDevice ActorType = "device" // a device or its agent
)

// Outcome says how an action ended.
type Outcome string

// The outcomes.
const (
	OutcomeOK      Outcome = "ok"
	OutcomeFailed  Outcome = "failed"
	OutcomeRefused Outcome = "refused"
)

// Event is one action that somebody or something took. It becomes one row of
// audit_log. It never holds a prompt, an answer, a key or a secret: of those,
// size, token counts and SHA-256 only. The order of the fields is the
// positional wire form: append only.
type Event struct {
	_msgpack struct{} `msgpack:",as_array"`

	Time         time.Time
	Action       Action
	Outcome      Outcome
	Tenant       string
	ActorType    ActorType
	ActorID      string // user: tenant or key name; stage: stage@host-pid; device: device id
	SourceAddr   string // "203.0.113.7:4711", or "kafka:tasks.normal/3@42" for a record
	UserAgent    string
	ResourceType string // task, batch, device, callback, job, config …
	ResourceID   string
	ErrorClass   ErrorClass
	TaskID       string
	Job          string
	Batch        string
	Device       string
	Attempt      int
	TraceID      string
	Duration     time.Duration // of the action; 0 when it has none
	Model        string
	TokensIn     int64
	TokensOut    int64
	InputSize    int64
	InputSHA256  []byte
	OutputSize   int64
	OutputSHA256 []byte
	Detail       []byte // a small JSON object, or nil

	// For events that begin the life of a task: what its row starts with.
	Endpoint    string
	Priority    Priority
	CustomID    string
	SubmittedAt time.Time
	Deadline    time.Time
	CallbackURL string
}

// Origin says who sent something and from where; every user action carries it.
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
		ResourceType: "task", ResourceID: t.ID, TaskID: t.ID, Job: t.Job,
		Attempt: t.Tried(), TraceID: t.TraceID, Model: t.Model,
	}
}

// Accepted returns the event that begins the life of a task: who sent it, from
// where, and what it is, without its content.
func Accepted(t *Task, o Origin, at time.Time) Event {
	e := NewEvent(TaskAccepted, t, o.Actor, at)
	e.ActorType = ActorUser
	e.SourceAddr, e.UserAgent = o.Addr, o.UserAgent
	sum := sha256.Sum256(t.Input)
	e.InputSize, e.InputSHA256 = int64(len(t.Input)), sum[:]
	e.Endpoint, e.Priority, e.CustomID = t.Endpoint, t.Priority, t.CustomID
	e.SubmittedAt, e.Deadline = t.SubmittedAt, t.Deadline
	if t.Callback != nil {
		e.CallbackURL = t.Callback.URL
	}
	e.Detail = WishesOf(t).Detail()
	return e
}

// Key is the identity of the task that the event is about; its ID is empty
// when it is about none.
func (e *Event) Key() Key { return Key{e.Tenant, e.TaskID} }
