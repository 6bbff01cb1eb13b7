package wire

import (
	"fmt"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/batchyard/batchyard/task"
)

// namedTask is a task as a MessagePack map with named fields.
type namedTask struct {
	ID          string            `msgpack:"task_id,omitempty"`
	Tenant      string            `msgpack:"tenant,omitempty"`
	Model       string            `msgpack:"model"`
	Endpoint    string            `msgpack:"endpoint,omitempty"`
	Input       task.Input        `msgpack:"input"`
	Priority    task.Priority     `msgpack:"priority,omitempty"`
	Level       int               `msgpack:"level,omitempty"`
	Needs       []string          `msgpack:"needs,omitempty"`
	DependsOn   []string          `msgpack:"depends_on,omitempty"`
	SessionID   string            `msgpack:"session_id,omitempty"`
	Deadline    anyTime           `msgpack:"deadline,omitempty"`
	NotBefore   anyTime           `msgpack:"not_before,omitempty"`
	MaxAttempts int               `msgpack:"max_attempts,omitempty"`
	Degrade     bool              `msgpack:"degrade,omitempty"`
	Callback    *task.Callback    `msgpack:"callback,omitempty"`
	Labels      map[string]string `msgpack:"labels,omitempty"`
	JobID       string            `msgpack:"job_id,omitempty"`
	CustomID    string            `msgpack:"custom_id,omitempty"`
	TraceID     string            `msgpack:"trace_id,omitempty"`
	SubmittedAt anyTime           `msgpack:"submitted_at,omitempty"`
	Progress    *task.Progress    `msgpack:"progress,omitempty"`
}

func (e *namedTask) task() *task.Task {
	return &task.Task{
		ID:          e.ID,
		Tenant:      e.Tenant,
		Model:       e.Model,
		Endpoint:    e.Endpoint,
		Input:       e.Input,
		Priority:    e.Priority,
		Level:       e.Level,
		Needs:       e.Needs,
		DependsOn:   e.DependsOn,
		SessionID:   e.SessionID,
		Deadline:    time.Time(e.Deadline),
		NotBefore:   time.Time(e.NotBefore),
		MaxAttempts: e.MaxAttempts,
		Degrade:     e.Degrade,
		Callback:    e.Callback,
		Labels:      e.Labels,
		JobID:       e.JobID,
		CustomID:    e.CustomID,
		TraceID:     e.TraceID,
		SubmittedAt: time.Time(e.SubmittedAt),
		Progress:    e.Progress,
	}
}

func newNamedTask(t *task.Task) *namedTask {
	return &namedTask{
		ID:          t.ID,
		Tenant:      t.Tenant,
		Model:       t.Model,
		Endpoint:    t.Endpoint,
		Input:       t.Input,
		Priority:    t.Priority,
		Level:       t.Level,
		Needs:       t.Needs,
		DependsOn:   t.DependsOn,
		SessionID:   t.SessionID,
		Deadline:    anyTime(t.Deadline),
		NotBefore:   anyTime(t.NotBefore),
		MaxAttempts: t.MaxAttempts,
		Degrade:     t.Degrade,
		Callback:    t.Callback,
		Labels:      t.Labels,
		JobID:       t.JobID,
		CustomID:    t.CustomID,
		TraceID:     t.TraceID,
		SubmittedAt: anyTime(t.SubmittedAt),
		Progress:    t.Progress,
	}
}

// anyTime is a time in any form that clients write: a MessagePack timestamp, RFC 3339
// text or Unix seconds.
type anyTime time.Time

// IsZero makes omitempty work.
func (t anyTime) IsZero() bool { return time.Time(t).IsZero() }

// EncodeMsgpack writes RFC 3339 text, which every client can parse.
func (t anyTime) EncodeMsgpack(e *msgpack.Encoder) error {
	if t.IsZero() {
		return e.EncodeNil()
	}
	return e.EncodeString(time.Time(t).UTC().Format(time.RFC3339Nano))
}

// DecodeMsgpack accepts all of these forms.
func (t *anyTime) DecodeMsgpack(d *msgpack.Decoder) error {
	raw, err := d.DecodeRaw()
	if err != nil {
		return err
	}
	w := walker{b: raw}
	h, err := w.head()
	if err != nil {
		return err
	}
	const remedy = "send times as RFC 3339, such as 2026-01-31T12:00:00Z, as Unix seconds, or as a MessagePack timestamp"
	switch h.kind {
	case kindNil:
		*t = anyTime{}
		return nil
	case kindStr:
		s := string(raw[w.at : w.at+h.n])
		at, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			return task.NewFieldError("", remedy, "a text is not a time")
		}
		*t = anyTime(at.UTC())
		return nil
	case kindInt, kindUint:
		*t = anyTime(time.Unix(int64(h.num), 0).UTC())
		return nil
	case kindExt:
		var at time.Time
		if err := msgpack.Unmarshal(raw, &at); err != nil {
			return task.NewFieldError("", remedy, "an extension value of type %d is not a time", h.ext)
		}
		*t = anyTime(at.UTC())
		return nil
	}
	return task.NewFieldError("", remedy, "%s", fmt.Sprintf("a value of kind %d is not a time", h.kind))
}
