package task

import (
	"fmt"
	"time"

	"github.com/vmihailenco/msgpack/v5"
)

// edgeTask is a task as a MessagePack map with named fields.
type edgeTask struct {
	ID          string            `msgpack:"task_id,omitempty"`
	Tenant      string            `msgpack:"tenant,omitempty"`
	Model       string            `msgpack:"model"`
	Endpoint    string            `msgpack:"endpoint,omitempty"`
	Input       Input             `msgpack:"input"`
	Priority    Priority          `msgpack:"priority,omitempty"`
	Level       int               `msgpack:"level,omitempty"`
	Needs       []string          `msgpack:"needs,omitempty"`
	DependsOn   []string          `msgpack:"depends_on,omitempty"`
	Session     string            `msgpack:"session_id,omitempty"`
	Deadline    edgeTime          `msgpack:"deadline,omitempty"`
	NotBefore   edgeTime          `msgpack:"not_before,omitempty"`
	MaxAttempts int               `msgpack:"max_attempts,omitempty"`
	Degrade     bool              `msgpack:"degrade,omitempty"`
	Callback    *Callback         `msgpack:"callback,omitempty"`
	Labels      map[string]string `msgpack:"labels,omitempty"`
	Job         string            `msgpack:"job_id,omitempty"`
	CustomID    string            `msgpack:"custom_id,omitempty"`
	TraceID     string            `msgpack:"trace_id,omitempty"`
	SubmittedAt edgeTime          `msgpack:"submitted_at,omitempty"`
	Progress    *Progress         `msgpack:"progress,omitempty"`
}

func (e *edgeTask) task() *Task {
	return &Task{
		ID:          e.ID,
		Tenant:      e.Tenant,
		Model:       e.Model,
		Endpoint:    e.Endpoint,
		Input:       e.Input,
		Priority:    e.Priority,
		Level:       e.Level,
		Needs:       e.Needs,
		DependsOn:   e.DependsOn,
		Session:     e.Session,
		Deadline:    time.Time(e.Deadline),
		NotBefore:   time.Time(e.NotBefore),
		MaxAttempts: e.MaxAttempts,
		Degrade:     e.Degrade,
		Callback:    e.Callback,
		Labels:      e.Labels,
		Job:         e.Job,
		CustomID:    e.CustomID,
		TraceID:     e.TraceID,
		SubmittedAt: time.Time(e.SubmittedAt),
		Progress:    e.Progress,
	}
}

func toEdge(t *Task) *edgeTask {
	return &edgeTask{
		ID:          t.ID,
		Tenant:      t.Tenant,
		Model:       t.Model,
		Endpoint:    t.Endpoint,
		Input:       t.Input,
		Priority:    t.Priority,
		Level:       t.Level,
		Needs:       t.Needs,
		DependsOn:   t.DependsOn,
		Session:     t.Session,
		Deadline:    edgeTime(t.Deadline),
		NotBefore:   edgeTime(t.NotBefore),
		MaxAttempts: t.MaxAttempts,
		Degrade:     t.Degrade,
		Callback:    t.Callback,
		Labels:      t.Labels,
		Job:         t.Job,
		CustomID:    t.CustomID,
		TraceID:     t.TraceID,
		SubmittedAt: edgeTime(t.SubmittedAt),
		Progress:    t.Progress,
	}
}

// edgeTime is a time in any form that clients write: a MessagePack timestamp, RFC 3339
// text or Unix seconds.
type edgeTime time.Time

// IsZero makes omitempty work.
func (t edgeTime) IsZero() bool { return time.Time(t).IsZero() }

// EncodeMsgpack writes RFC 3339 text, which every client can parse.
func (t edgeTime) EncodeMsgpack(e *msgpack.Encoder) error {
	if t.IsZero() {
		return e.EncodeNil()
	}
	return e.EncodeString(time.Time(t).UTC().Format(time.RFC3339Nano))
}

// DecodeMsgpack accepts all of these forms.
func (t *edgeTime) DecodeMsgpack(d *msgpack.Decoder) error {
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
		*t = edgeTime{}
		return nil
	case kindStr:
		s := string(raw[w.at : w.at+h.n])
		at, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			return fieldErr("", remedy, "a text is not a time")
		}
		*t = edgeTime(at.UTC())
		return nil
	case kindInt, kindUint:
		*t = edgeTime(time.Unix(int64(h.num), 0).UTC())
		return nil
	case kindExt:
		var at time.Time
		if err := msgpack.Unmarshal(raw, &at); err != nil {
			return fieldErr("", remedy, "an extension value of type %d is not a time", h.ext)
		}
		*t = edgeTime(at.UTC())
		return nil
	}
	return fieldErr("", remedy, "%s", fmt.Sprintf("a value of kind %d is not a time", h.kind))
}
