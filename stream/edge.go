package stream

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/batchyard/batchyard/task"
)

// Headers of task records. Whoever writes tasks with another client may leave
// all of them out.
const (
	// HeaderAccepted marks a record whose task.accepted event is written by the
	// producer already; without it the router records the acceptance.
	HeaderAccepted = "origin-accepted"
	// HeaderActor, HeaderAddr and HeaderAgent say who sent a task and from where.
	HeaderActor = "origin-actor"
	HeaderAddr  = "origin-addr"
	HeaderAgent = "origin-agent"
	// HeaderParkedUntil is the time at which a parked task is looked at again.
	HeaderParkedUntil = "parked-until"
	// HeaderParkedFor is why: what it waits for.
	HeaderParkedFor = "parked-for"
)

// TaskMessage is a task as a record of the topic: MessagePack, key task id.
func TaskMessage(topic string, t *task.Task, headers ...Header) (Message, error) {
	b, err := task.EncodeTask(t, task.ContentMsgpack)
	if err != nil {
		return Message{}, fmt.Errorf("encoding task %s: %w", t.Key(), err)
	}
	h := append([]Header{{Key: task.HeaderContentType, Value: []byte(task.ContentMsgpack)}}, headers...)
	return Message{Topic: topic, Key: t.ID, Value: b, Headers: h}, nil
}

// TaskID is the id of a task whose sender gave none: its record's place and time,
// so that a record that is read twice stays one task. The record's key is no id:
// clients use it to keep together what is of one user, say.
func TaskID(r *Record) string {
	return fmt.Sprintf("%s-%d-%d-%s", r.Topic, r.Partition, r.Offset, strconv.FormatInt(r.Time.UnixMilli(), 36))
}

// ResultMessage is a result as a record of the results topic: JSON, because
// users read it with clients of their own; key task id.
func ResultMessage(r *task.Result) (Message, error) {
	b, err := task.EncodeResult(r, task.ContentJSON)
	if err != nil {
		return Message{}, fmt.Errorf("encoding the result of task %s: %w", r.Key(), err)
	}
	return Message{Topic: Results, Key: r.TaskID, Value: b,
		Headers: []Header{{Key: task.HeaderContentType, Value: []byte(task.ContentJSON)}}}, nil
}

// Requeued returns the headers that a task keeps when a stage writes it again.
func Requeued(r *Record) []Header {
	h := []Header{{Key: HeaderAccepted, Value: []byte("1")}}
	if r == nil {
		return h
	}
	for _, k := range []string{HeaderActor, HeaderAddr, HeaderAgent} {
		if v := r.Header(k); v != "" {
			h = append(h, Header{Key: k, Value: []byte(v)})
		}
	}
	return h
}

// ParkedUntil reads the header of a parked task; zero when it is missing or
// broken, which means now.
func ParkedUntil(r *Record) time.Time {
	at, err := time.Parse(time.RFC3339Nano, r.Header(HeaderParkedUntil))
	if err != nil {
		return time.Time{}
	}
	return at
}

// DeadLetterEvent tells the audit log of a record that went to the dead
// letters. The record itself is in the dead-letter topic; the event holds no
// part of it.
func DeadLetterEvent(r *Record, actor string, cause error) task.Event {
	why := cause.Error()
	note, err := json.Marshal(map[string]string{"reason": why[:min(len(why), 1024)]})
	if err != nil {
		note = nil
	}
	return task.Event{
		Time: time.Now().UTC(), Action: task.RecordDead, Outcome: task.OutcomeRefused, Tenant: task.DefaultTenant,
		ActorType: task.ActorStage, ActorID: actor, SourceAddr: "kafka:" + r.Position(),
		ResourceType: "record", ResourceID: r.Position(), ErrorClass: task.ClassInvalid,
		InputSize: int64(len(r.Value)), Detail: note,
	}
}
