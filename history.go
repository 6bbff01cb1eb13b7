package batchyard

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/batchyard/batchyard/task"
)

// Event is one line of a task's history.
type Event struct {
	Time       time.Time       `json:"time"`
	Action     task.Action     `json:"action"`
	Outcome    task.Outcome    `json:"outcome"`
	ActorType  task.ActorType  `json:"actor_type"`
	ActorID    string          `json:"actor_id,omitempty"`
	SourceAddr string          `json:"source_addr,omitempty"` // where the actor's request came from
	UserAgent  string          `json:"user_agent,omitempty"`
	ErrorClass task.ErrorClass `json:"error_class,omitempty"`
	BatchID    string          `json:"batch_id,omitempty"`
	DeviceID   string          `json:"device_id,omitempty"`
	Attempt    int             `json:"attempt,omitempty"`
	DurationMS float64         `json:"duration_ms,omitempty"`
	Detail     json.RawMessage `json:"detail,omitempty"` // a small JSON object

	answered
}

// history is a task's events as the server sends them.
type history struct {
	Events []json.RawMessage `json:"events"`
}

// Events returns what happened to a task, in order. Events are recorded
// asynchronously: the latest may be missing for a moment.
func (c *Client) Events(ctx context.Context, taskID string) ([]Event, error) {
	path, err := pathOf("tasks", taskID, "/events")
	if err != nil {
		return nil, err
	}
	var h history
	if err := c.do(ctx, call{method: http.MethodGet, path: path}, &h); err != nil {
		return nil, err
	}
	return readAll[Event](h.Events)
}

// Why says why a task is where it is, or why it still waits.
type Why struct {
	TaskID   string      `json:"task_id"`
	Tenant   string      `json:"tenant"`
	State    task.State  `json:"state"`
	Sentence string      `json:"sentence"`           // all of it in words
	Waiting  *Waiting    `json:"waiting,omitempty"`  // what it waits for as of now; nil when it does not wait
	Attempts []Placement `json:"attempts,omitempty"` // where it went, and why there, in order
	Place    *Place      `json:"place,omitempty"`    // the stage that has it; nil once it has ended

	answered
}

// Place is the stage that has a task, or from whose topic it has not been read yet.
type Place struct {
	Stage  string     `json:"stage"`
	Since  *time.Time `json:"since,omitempty"`
	Reason string     `json:"reason"` // why it waits there, as in the metric batchyard_stage_oldest_seconds
	Means  string     `json:"means"`  // the reason in words
	Remedy string     `json:"remedy"` // what makes it move
}

// Waiting is what a waiting task waits for, in figures.
type Waiting struct {
	Priority  task.Priority  `json:"priority"`
	Level     int            `json:"level"`
	Model     string         `json:"model"`
	Needs     []string       `json:"needs,omitempty"`    // tags that the device must have
	Exclude   []string       `json:"exclude,omitempty"`  // devices that are not tried again
	Declined  []string       `json:"declined,omitempty"` // devices that have refused it
	Since     *time.Time     `json:"since,omitempty"`
	Read      bool           `json:"read"`             // a router has read it; until then it waits in Kafka behind others
	Aside     bool           `json:"aside,omitempty"`  // the router has no room for it now, and reads it again when its turn comes
	Parked    string         `json:"parked,omitempty"` // why a router set it aside in the log
	ParkedAt  *time.Time     `json:"parked_at,omitempty"`
	NotBefore *time.Time     `json:"not_before,omitempty"`
	Deadline  *time.Time     `json:"deadline,omitempty"`
	Devices   int            `json:"devices"`           // known
	Able      int            `json:"able"`              // of these, able to run it
	Slots     int            `json:"slots"`             // of the able ones, together
	Used      int            `json:"used"`              // tasks that the able ones have now
	Batched   bool           `json:"batched,omitempty"` // requests of its endpoint are batched: a slot takes many tasks at once
	Out       map[string]int `json:"out,omitempty"`     // why the others cannot run it, and how many for each reason
	Models    []string       `json:"models,omitempty"`  // that the devices serve, at most ten, if none serves the task's
	Nearest   string         `json:"nearest,omitempty"` // the one of the devices' models that is probably meant, if none serves the task's
	Fleet     []FleetDevice  `json:"fleet,omitempty"`   // the devices, at most twenty, those first that could run it
}

// FleetDevice is a device, and why it can't run a task.
type FleetDevice struct {
	DeviceID string   `json:"device_id"`
	State    string   `json:"state"`         // as in [Device.State]
	Out      string   `json:"out,omitempty"` // why it can't run the task, as in [Waiting.Out]; empty: it could
	Models   []string `json:"models,omitempty"`
	Tags     []string `json:"tags,omitempty"`
	Line     string   `json:"line"` // the same in words
}

// Placement is one device that a router chose for a task.
type Placement struct {
	Attempt    int             `json:"attempt"`
	DeviceID   string          `json:"device_id"`
	At         time.Time       `json:"at"`
	WaitedMS   float64         `json:"waited_ms"` // in the router
	Policy     string          `json:"policy,omitempty"`
	Why        string          `json:"why,omitempty"`
	Of         int             `json:"of,omitempty"`         // devices that could have run it
	Candidates []ScoredDevice  `json:"candidates,omitempty"` // the best of them, the chosen one first
	Out        map[string]int  `json:"out,omitempty"`        // why the other devices could not run it
	Outcome    task.Outcome    `json:"outcome,omitempty"`    // of the attempt, once it has one
	ErrorClass task.ErrorClass `json:"error_class,omitempty"`
	DurationMS float64         `json:"duration_ms,omitempty"`
}

// ScoredDevice is a device as the policy saw it.
type ScoredDevice struct {
	DeviceID  string   `json:"device_id"`
	Score     *float64 `json:"score,omitempty"` // lower is better
	Unit      string   `json:"unit,omitempty"`
	Used      int      `json:"used"`
	Slots     int      `json:"slots"`
	Limit     int      `json:"limit"`
	ServiceMS float64  `json:"service_ms,omitempty"`
}

// Why explains why a task waits, or went where it went.
func (c *Client) Why(ctx context.Context, taskID string) (*Why, error) {
	path, err := pathOf("tasks", taskID, "/why")
	if err != nil {
		return nil, err
	}
	var w Why
	if err := c.do(ctx, call{method: http.MethodGet, path: path}, &w); err != nil {
		return nil, err
	}
	return &w, nil
}
