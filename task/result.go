package task

import (
	"time"
)

// Result is the final outcome of one generation of a task. After a crash the results topic may hold more
// than one for a generation; the first one that Postgres accepts counts. The order of the fields
// does not matter: results are written with named fields.
type Result struct {
	TaskID         string            `json:"task_id" msgpack:"task_id"`
	Tenant         string            `json:"tenant" msgpack:"tenant"`
	State          State             `json:"state" msgpack:"state"` // SUCCESS, FAILED, CANCELLED or EXPIRED
	Model          string            `json:"model" msgpack:"model"` // that answered, or was asked for
	RequestedModel string            `json:"requested_model,omitempty" msgpack:"requested_model,omitempty"`
	Endpoint       string            `json:"endpoint" msgpack:"endpoint"`
	DeviceID       string            `json:"device_id,omitempty" msgpack:"device_id,omitempty"`
	Status         int               `json:"status,omitempty" msgpack:"status,omitempty"` // HTTP status of the last attempt
	Output         Input             `json:"output,omitempty" msgpack:"output,omitempty"` // the device's JSON answer, as it came
	Error          *Error            `json:"error,omitempty" msgpack:"error,omitempty"`
	Attempts       []Attempt         `json:"attempts,omitempty" msgpack:"attempts,omitempty"`
	Usage          Usage             `json:"usage,omitzero" msgpack:"usage,omitempty"`
	Priority       Priority          `json:"priority,omitempty" msgpack:"priority,omitempty"`
	JobID          string            `json:"job_id,omitempty" msgpack:"job_id,omitempty"`
	CustomID       string            `json:"custom_id,omitempty" msgpack:"custom_id,omitempty"`
	Labels         map[string]string `json:"labels,omitempty" msgpack:"labels,omitempty"`
	Callback       *Callback         `json:"callback,omitempty" msgpack:"callback,omitempty"`
	TraceID        string            `json:"trace_id,omitempty" msgpack:"trace_id,omitempty"`
	Generation     int               `json:"generation,omitempty" msgpack:"generation,omitempty"`   // 0 for the first run, n after the nth retry on request
	Fingerprint    string            `json:"fingerprint,omitempty" msgpack:"fingerprint,omitempty"` // of the request that was run, in hex; empty: not known
	SubmittedAt    time.Time         `json:"submitted_at,omitzero" msgpack:"submitted_at,omitempty"`
	AssignedAt     time.Time         `json:"assigned_at,omitzero" msgpack:"assigned_at,omitempty"`
	StartedAt      time.Time         `json:"started_at,omitzero" msgpack:"started_at,omitempty"`
	FinishedAt     time.Time         `json:"finished_at" msgpack:"finished_at"`
	Sent           []Header          `json:"-" msgpack:"-"` // headers of the record that the result becomes; not a part of its value
}

// Error is why a task did not succeed.
type Error struct {
	Class   ErrorClass `json:"class" msgpack:"class"`
	Message string     `json:"message" msgpack:"message"`
}

// Usage is the token counts reported by the device.
type Usage struct {
	InputTokens  int64 `json:"input_tokens" msgpack:"input_tokens"`
	OutputTokens int64 `json:"output_tokens" msgpack:"output_tokens"`
}

// Key returns the identity of the result's task.
func (r *Result) Key() Key { return Key{r.Tenant, r.TaskID} }

// Run returns which run of its task the result ends.
func (r *Result) Run() Run { return Run{r.Key(), r.Generation} }

// Request returns the fingerprint of the request that was run; the zero value if it is not known.
func (r *Result) Request() Fingerprint {
	f, err := ParseFingerprint(r.Fingerprint)
	if err != nil {
		return Fingerprint{} // Validate refuses it
	}
	return f
}

// Attempt returns the number of the last attempt, 0 if there were no attempts.
func (r *Result) Attempt() int {
	if len(r.Attempts) == 0 {
		return 0
	}
	return r.Attempts[len(r.Attempts)-1].Number
}

// NewResult returns a result with the fields that it takes over from its task.
func NewResult(t *Task, s State, at time.Time) *Result {
	r := &Result{
		TaskID: t.ID, Tenant: t.Tenant, State: s, Model: t.Model, Endpoint: t.Endpoint,
		Priority: t.Priority, JobID: t.JobID, CustomID: t.CustomID, Labels: t.Labels,
		Callback: t.Callback, TraceID: t.TraceID, Generation: t.Generation(), Fingerprint: t.Fingerprint().String(),
		SubmittedAt: t.SubmittedAt, FinishedAt: at.UTC(),
	}
	if t.Progress != nil {
		r.Attempts = t.Progress.Attempts
		r.RequestedModel = t.Progress.RequestedModel
		r.Sent = t.Progress.Sent
	}
	return r
}

// Validate returns why a result cannot be stored, as a *FieldError, or nil.
func (r *Result) Validate() error {
	if err := r.ValidateDecoded(); err != nil {
		return err
	}
	return r.CheckOutput()
}

// CheckOutput returns why the output cannot be stored.
func (r *Result) CheckOutput() error {
	if len(r.Output) > 0 {
		if err := CheckJSON(r.Output); err != nil {
			return NewFieldError("output", "", "%s", err)
		}
	}
	return nil
}

// ValidateDecoded is Validate for a result from wire.DecodeResult, which has already
// checked the output, the largest part.
func (r *Result) ValidateDecoded() error {
	for _, f := range []struct {
		name, value string
		max         int
		must        presence
	}{
		{"task_id", r.TaskID, MaxIDLength, true},
		{"tenant", r.Tenant, MaxIDLength, true},
		{"model", r.Model, MaxNameLength, false},
		{"requested_model", r.RequestedModel, MaxNameLength, false},
		{"endpoint", r.Endpoint, MaxNameLength, false},
		{"device_id", r.DeviceID, MaxNameLength, false},
		{"job_id", r.JobID, MaxIDLength, false},
		{"custom_id", r.CustomID, 512, false},
		{"trace_id", r.TraceID, 32, false},
	} {
		if err := checkText(f.name, f.value, f.max, f.must); err != nil {
			return err
		}
	}
	if r.Generation < 0 || r.Generation > maxGeneration {
		return NewFieldError("generation", "", "%d is not between 0 and %d", r.Generation, maxGeneration)
	}
	if _, err := ParseFingerprint(r.Fingerprint); err != nil {
		return NewFieldError("fingerprint", "leave it out or use 64 hexadecimal digits", "%s", err)
	}
	if !r.State.Terminal() {
		return NewFieldError("state", "use SUCCESS, FAILED, CANCELLED or EXPIRED", "it is not a terminal state")
	}
	if r.Callback != nil {
		if err := CheckCallbackURL(r.Callback.URL); err != nil {
			return err
		}
	}
	return nil
}
