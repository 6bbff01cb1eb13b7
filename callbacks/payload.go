package callbacks

import (
	"encoding/json"
	"fmt"
	"net/url"
	"time"

	"github.com/batchyard/batchyard/task"
)

// Payload is the body of a task's callback. That of a job has the type job.finished and the job's
// progress as its data.
type Payload struct {
	ID        string `json:"id"`     // the webhook-id, the same in every delivery
	Object    string `json:"object"` // "event"
	Type      string `json:"type"`   // task.completed, task.failed, task.cancelled or task.expired
	CreatedAt int64  `json:"created_at"`
	Data      Data   `json:"data"`
}

// Data is the result, in the form of the status API.
type Data struct {
	ID          string            `json:"task_id"`
	Tenant      string            `json:"tenant"`
	State       task.State        `json:"state"`
	Model       string            `json:"model,omitempty"`
	Requested   string            `json:"requested_model,omitempty"`
	Endpoint    string            `json:"endpoint,omitempty"`
	Priority    string            `json:"priority,omitempty"`
	Job         string            `json:"job_id,omitempty"`
	CustomID    string            `json:"custom_id,omitempty"`
	TraceID     string            `json:"trace_id,omitempty"`
	Device      string            `json:"device_id,omitempty"`
	Generation  int               `json:"generation,omitempty"`
	Attempt     int               `json:"attempt"`
	Attempts    json.RawMessage   `json:"attempts,omitempty"`
	Status      int               `json:"status,omitempty"`
	Output      json.RawMessage   `json:"output,omitempty"`
	Truncated   bool              `json:"truncated,omitempty"`  // the output is too large for a callback,
	OutputURL   string            `json:"output_url,omitempty"` // and is here, relative to the API
	Error       *task.Error       `json:"error,omitempty"`
	Usage       *task.Usage       `json:"usage,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	SubmittedAt *time.Time        `json:"submitted_at,omitempty"`
	AssignedAt  *time.Time        `json:"assigned_at,omitempty"`
	StartedAt   *time.Time        `json:"started_at,omitempty"`
	FinishedAt  *time.Time        `json:"finished_at,omitempty"`
}

// types maps states to the type of the webhook.
var types = map[task.State]string{
	task.Success: "task.completed", task.Failed: "task.failed", task.Cancelled: "task.cancelled", task.Expired: "task.expired",
}

// body returns the body of the request. It is made of the result's row, which never changes, so it is
// the same in every delivery.
func (c *callback) body() ([]byte, error) {
	if c.job != "" {
		return c.ready, nil // the recorder made it when the job finished
	}
	p := Payload{ID: c.id, Object: "event", Type: types[c.data.State], Data: c.data}
	if c.data.FinishedAt != nil {
		p.CreatedAt = c.data.FinishedAt.Unix()
	}
	if c.truncated {
		p.Data.Truncated, p.Data.OutputURL = true, "/v1/tasks/"+url.PathEscape(c.data.ID)
	}
	b, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encoding callback %s: %w", c.id, err)
	}
	return b, nil
}
