package status

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/task"
)

// TaskRow is what Postgres knows about a task.
type TaskRow struct {
	Tenant       string
	ID           string
	State        task.State
	Version      int64 // counts changes of the row
	Attempt      int   // 0: none yet
	Device       string
	Model        string
	Endpoint     string
	Priority     task.Priority
	Job          string
	CustomID     string
	TraceID      string
	SubmittedAt  time.Time
	AssignedAt   time.Time
	StartedAt    time.Time
	FinishedAt   time.Time
	Deadline     time.Time
	UpdatedAt    time.Time
	ErrorClass   task.ErrorClass
	ErrorMessage string
	CallbackURL  string
	Generation   int // 0: the first run

	// Result is the result of a finished task; nil before, and in lists.
	Result *task.Result
}

// Key returns the identity of the task.
func (r *TaskRow) Key() task.Key { return task.Key{Tenant: r.Tenant, ID: r.ID} }

// taskColumns are what [TaskRow.targets] scans.
const taskColumns = `t.tenant, t.task_id, t.state, t.version, t.attempt, coalesce(t.device_id, ''), coalesce(t.model, ''),
	coalesce(t.endpoint, ''), coalesce(t.priority, ''), coalesce(t.job_id, ''), coalesce(t.custom_id, ''), coalesce(t.trace_id, ''),
	t.submitted_at, t.assigned_at, t.started_at, t.finished_at, t.deadline, t.updated_at,
	coalesce(t.error_class, ''), coalesce(t.error_message, ''), coalesce(t.callback_url, ''), t.generation`

func (r *TaskRow) targets() []any {
	return []any{&r.Tenant, &r.ID, &r.State, &r.Version, &r.Attempt, &r.Device, &r.Model, &r.Endpoint, &r.Priority, &r.Job,
		&r.CustomID, &r.TraceID, pg.NullTime(&r.SubmittedAt), pg.NullTime(&r.AssignedAt), pg.NullTime(&r.StartedAt), pg.NullTime(&r.FinishedAt),
		pg.NullTime(&r.Deadline), pg.NullTime(&r.UpdatedAt), &r.ErrorClass, &r.ErrorMessage, &r.CallbackURL, &r.Generation}
}

// resultColumns are what [resultRow.targets] scans. The tenant is NULL if there is no result.
const resultColumns = `r.tenant, coalesce(r.task_id, ''), coalesce(r.state, ''), coalesce(r.status, 0), r.output::text, coalesce(r.error_class, ''),
	coalesce(r.error_message, ''), r.attempts::text, coalesce(r.input_tokens, 0), coalesce(r.output_tokens, 0), coalesce(r.device_id, ''),
	coalesce(r.model, ''), coalesce(r.requested_model, ''), coalesce(r.endpoint, ''), coalesce(r.priority, ''), coalesce(r.job_id, ''),
	coalesce(r.custom_id, ''), r.labels::text, coalesce(r.callback_url, ''), coalesce(r.trace_id, ''),
	r.submitted_at, r.assigned_at, r.started_at, r.finished_at, coalesce(r.generation, 0), coalesce(encode(r.fingerprint, 'hex'), '')`

type resultRow struct {
	tenant           *string
	res              task.Result
	output           []byte
	class, message   string
	attempts, labels []byte
	callback         string
}

func (r *resultRow) targets() []any {
	return []any{&r.tenant, &r.res.TaskID, &r.res.State, &r.res.Status, &r.output, &r.class, &r.message, &r.attempts,
		&r.res.Usage.InputTokens, &r.res.Usage.OutputTokens, &r.res.DeviceID, &r.res.Model, &r.res.RequestedModel, &r.res.Endpoint,
		&r.res.Priority, &r.res.JobID, &r.res.CustomID, &r.labels, &r.callback, &r.res.TraceID,
		pg.NullTime(&r.res.SubmittedAt), pg.NullTime(&r.res.AssignedAt), pg.NullTime(&r.res.StartedAt), pg.NullTime(&r.res.FinishedAt), &r.res.Generation,
		&r.res.Fingerprint}
}

// result returns what was scanned; nil if there was no row.
func (r *resultRow) result() (*task.Result, error) {
	if r.tenant == nil {
		return nil, nil
	}
	r.res.Tenant = *r.tenant
	r.res.Output = r.output
	if r.class != "" || r.message != "" {
		r.res.Error = &task.Error{Class: task.ErrorClass(r.class), Message: r.message}
	}
	if r.callback != "" {
		r.res.Callback = &task.Callback{URL: r.callback}
	}
	if r.attempts != nil {
		if err := json.Unmarshal(r.attempts, &r.res.Attempts); err != nil {
			return nil, fmt.Errorf("reading the attempts of task %s: %w", r.res.Key(), err)
		}
	}
	if r.labels != nil {
		if err := json.Unmarshal(r.labels, &r.res.Labels); err != nil {
			return nil, fmt.Errorf("reading the labels of task %s: %w", r.res.Key(), err)
		}
	}
	return &r.res, nil
}
