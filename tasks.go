package batchyard

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/batchyard/batchyard/task"
)

// longPoll is how long the server is asked to hold one answer back.
const longPoll = 30 * time.Second

// pollPause is the least time between two polls: a server that is stopping, or has no
// Postgres, answers at once.
const pollPause = time.Second

// TaskStatus is a task as it stands, with its result once it has one.
type TaskStatus struct {
	TaskID      string            `json:"task_id"`
	Tenant      string            `json:"tenant"`
	State       task.State        `json:"state"`
	Model       string            `json:"model,omitempty"`           // that answered, or was asked for
	Requested   string            `json:"requested_model,omitempty"` // the model asked for, when another answered
	Endpoint    string            `json:"endpoint,omitempty"`
	Priority    task.Priority     `json:"priority,omitempty"`
	JobID       string            `json:"job_id,omitempty"`
	CustomID    string            `json:"custom_id,omitempty"`
	TraceID     string            `json:"trace_id,omitempty"`
	DeviceID    string            `json:"device_id,omitempty"`  // where it runs, or ran last
	Generation  int               `json:"generation,omitempty"` // which run this is: 0 the first, n the nth retry
	Attempt     int               `json:"attempt"`              // number of the present or last attempt; 0 before the first
	Attempts    []task.Attempt    `json:"attempts,omitempty"`   // what was tried, once the task has ended
	HTTPStatus  int               `json:"status,omitempty"`     // of the device's last answer
	Output      json.RawMessage   `json:"output,omitempty"`     // the device's answer; only [Client.Get] and [Client.Wait] fetch it
	Error       *task.Error       `json:"error,omitempty"`      // why it did not succeed
	LastError   *task.Error       `json:"last_error,omitempty"` // why the last attempt failed, while it has not ended
	Usage       *task.Usage       `json:"usage,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	SubmittedAt *time.Time        `json:"submitted_at,omitempty"`
	AssignedAt  *time.Time        `json:"assigned_at,omitempty"`
	StartedAt   *time.Time        `json:"started_at,omitempty"`
	FinishedAt  *time.Time        `json:"finished_at,omitempty"`
	Deadline    *time.Time        `json:"deadline,omitempty"`
	CallbackURL string            `json:"callback_url,omitempty"`

	answered
}

// Submit hands tasks over and returns nil when every one is durable. All or
// nothing: when one task is invalid, none is taken, and the [*Error] names the
// fields, the first task's as /0/…. The server bounds one submit, to 1,000 tasks
// and 64 MiB unless it is configured otherwise.
//
// A task without an id gets one, in place, before anything is sent. So after an
// error that leaves the outcome unknown, submitting the same values again is safe:
// they are the same tasks. Submit itself does that as the retry policy says.
func (c *Client) Submit(ctx context.Context, tasks ...*task.Task) error {
	if len(tasks) == 0 {
		return nil
	}
	for i, t := range tasks {
		if t == nil {
			return fmt.Errorf("%w: task %d of the submit is nil", ErrInvalid, i)
		}
		if t.ID == "" {
			t.ID = task.NewID()
		}
	}
	// Only 202 is the promise; a proxy may answer 200 to anything.
	var accepted map[string]json.RawMessage
	return c.do(ctx, call{method: http.MethodPost, path: "/v1/tasks", body: tasks, status: http.StatusAccepted}, &accepted)
}

// Get returns a task as it stands. It is [ErrNotFound] when the tenant has no such
// task.
func (c *Client) Get(ctx context.Context, taskID string) (*TaskStatus, error) {
	return c.get(ctx, taskID, 0)
}

func (c *Client) get(ctx context.Context, taskID string, wait time.Duration) (*TaskStatus, error) {
	path, err := pathOf("tasks", taskID, "")
	if err != nil {
		return nil, err
	}
	q := call{method: http.MethodGet, path: path, wait: wait}
	if wait > 0 {
		q.query = url.Values{"wait": {wait.String()}}
	}
	var s TaskStatus
	if err := c.do(ctx, q, &s); err != nil {
		return nil, err
	}
	return &s, nil
}

// Wait returns a task once it has ended, however it ended: look at its State. It
// waits as long as the context lets it; then the error is the context's.
func (c *Client) Wait(ctx context.Context, taskID string) (*TaskStatus, error) {
	for {
		asked, wait := time.Now(), longPoll
		if end, ok := ctx.Deadline(); ok { // better answered a little early than cut off
			wait = min(wait, time.Until(end)*9/10)
		}
		s, err := c.get(ctx, taskID, wait)
		if err != nil {
			return nil, err
		}
		if s.State.Terminal() {
			return s, nil
		}
		if err := sleep(ctx, pollPause-time.Since(asked)); err != nil {
			return nil, fmt.Errorf("waiting for task %s, which is %s: %w", taskID, s.State, err)
		}
	}
}

// Filter chooses tasks. The zero value is all of the tenant's.
type Filter struct {
	State  task.State // empty: any
	JobID  string     // empty: any
	Limit  int        // of one page, at most 1,000; 0: 100
	Cursor string     // the Next of the page before, with the same filter; empty: the first page
}

// Page is a part of a list of tasks.
type Page struct {
	Tasks []TaskStatus
	Next  string // the cursor of the next page; empty on the last
}

// UnmarshalJSON reads a page as the server sends it.
func (p *Page) UnmarshalJSON(b []byte) error {
	var wire struct {
		Tasks []json.RawMessage `json:"tasks"`
		Next  string            `json:"next"`
	}
	if err := json.Unmarshal(b, &wire); err != nil {
		return err
	}
	var err error
	p.Next = wire.Next
	p.Tasks, err = readAll[TaskStatus](wire.Tasks)
	return err
}

// Page returns one page of tasks, newest first; those of one job by id, the last
// first. Outputs are left out.
func (c *Client) Page(ctx context.Context, f Filter) (*Page, error) {
	query := url.Values{}
	for name, value := range map[string]string{"state": string(f.State), "job_id": f.JobID, "cursor": f.Cursor} {
		if value != "" {
			query.Set(name, value)
		}
	}
	if f.Limit != 0 {
		query.Set("limit", strconv.Itoa(f.Limit))
	}
	var p Page
	if err := c.do(ctx, call{method: http.MethodGet, path: "/v1/tasks", query: query}, &p); err != nil {
		return nil, err
	}
	return &p, nil
}

// List yields every task that the filter chooses, fetching page after page. An
// error is the last thing it yields.
func (c *Client) List(ctx context.Context, f Filter) iter.Seq2[*TaskStatus, error] {
	return func(yield func(*TaskStatus, error) bool) {
		for {
			p, err := c.Page(ctx, f)
			if err != nil {
				yield(nil, err)
				return
			}
			for i := range p.Tasks {
				if !yield(&p.Tasks[i], nil) {
					return
				}
			}
			if p.Next == "" {
				return
			}
			f.Cursor = p.Next
		}
	}
}

// Cancel asks for a task to be stopped, wherever it is, and returns the state in
// which it was. From then on it ends as CANCELLED, unless another result came
// first. It is [ErrConflict] when the task has ended already; [Error.State] says
// how, and CANCELLED may be the effect of an earlier try of the same call.
func (c *Client) Cancel(ctx context.Context, taskID string) (task.State, error) {
	path, err := pathOf("tasks", taskID, "/cancel")
	if err != nil {
		return "", err
	}
	var asked struct {
		State task.State `json:"state"`
	}
	err = c.do(ctx, call{method: http.MethodPost, path: path}, &asked)
	return asked.State, err
}

// Retried is a finished task that runs again.
type Retried struct {
	TaskID     string     `json:"task_id"`
	Tenant     string     `json:"tenant"`
	State      task.State `json:"state"`          // PENDING
	Generation int        `json:"generation"`     // of the new run: 1 for the first retry
	Previous   task.State `json:"previous_state"` // how the earlier run ended

	answered
}

// Retry runs a finished task again. The result of the new run becomes the answer, and the earlier ones stay
// in the history. The reason, which may be empty, goes into the audit log. It is [ErrConflict] when the task
// has not finished, and the answer may then be to an earlier try of the same call.
func (c *Client) Retry(ctx context.Context, taskID, reason string) (*Retried, error) {
	path, err := pathOf("tasks", taskID, "/retry")
	if err != nil {
		return nil, err
	}
	var r Retried
	if err := c.do(ctx, call{method: http.MethodPost, path: path, body: map[string]string{"reason": reason}}, &r); err != nil {
		return nil, err
	}
	return &r, nil
}

// Rank is where a task stands among those that wait.
type Rank struct {
	Priority task.Priority `json:"priority"`
	Level    int           `json:"level"` // within the priority, 0 to 9, 9 first
}

// PriorityChange is what is to change of a waiting task's rank.
type PriorityChange struct {
	Priority task.Priority `json:"priority,omitempty"` // empty: as it is
	Level    *int          `json:"level,omitempty"`    // nil: as it is
}

// Reprioritized is a task whose rank was changed.
type Reprioritized struct {
	TaskID string     `json:"task_id"`
	Tenant string     `json:"tenant"`
	State  task.State `json:"state"` // as far as is known; a task that goes to a device meanwhile goes as it was
	From   Rank       `json:"from"`
	To     Rank       `json:"to"`

	answered
}

// SetPriority makes a waiting task go earlier or later. It is [ErrConflict] when
// the task has ended, or is at a device already.
func (c *Client) SetPriority(ctx context.Context, taskID string, change PriorityChange) (*Reprioritized, error) {
	path, err := pathOf("tasks", taskID, "")
	if err != nil {
		return nil, err
	}
	var r Reprioritized
	if err := c.do(ctx, call{method: http.MethodPatch, path: path, body: change}, &r); err != nil {
		return nil, err
	}
	return &r, nil
}
