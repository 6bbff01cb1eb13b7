// Package records says what the stages do with records. It writes tasks and results as messages
// with their headers, counts what a record became until all of it is acknowledged ([Ack]), and
// moves a record that cannot be processed to the dead-letter topic ([DeadLetters]).
//
// A record is finished only after everything it became is acknowledged. If the process dies
// before, the record is read again.
package records

import (
	"fmt"
	"strconv"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// Headers of task records. All are optional for tasks written by other clients.
const (
	// HeaderAccepted marks a record whose task.accepted event the producer writes; without
	// it the router writes the event.
	HeaderAccepted = "origin-accepted"
	// HeaderActor, HeaderAddr and HeaderAgent say who sent a task and from where.
	HeaderActor = "origin-actor"
	HeaderAddr  = "origin-addr"
	HeaderAgent = "origin-agent"
)

// TaskMessage encodes a task for a topic: MessagePack, keyed by task id.
func TaskMessage(topic string, t *task.Task, headers ...stream.Header) (stream.Message, error) {
	b, err := wire.EncodeTask(t, wire.ContentMsgpack)
	if err != nil {
		return stream.Message{}, fmt.Errorf("encoding task %s: %w", t.Key(), err)
	}
	h := append([]stream.Header{{Key: wire.HeaderContentType, Value: []byte(wire.ContentMsgpack)}}, headers...)
	return stream.Message{Topic: topic, Key: t.ID, Value: b, Headers: h}, nil
}

// TaskID returns the id for a task that was sent without one. It is made of the record's position
// and time, so that a record that is read twice stays one task. The record's key is not used as
// an id, because clients may use keys to keep the tasks of one user in order.
func TaskID(r *stream.Record) string {
	return fmt.Sprintf("%s-%d-%d-%s", r.Topic, r.Partition, r.Offset, strconv.FormatInt(r.Time.UnixMilli(), 36))
}

// ResultMessage encodes a result for the results topic: JSON, because users read it with their own
// clients, keyed by task id, with the headers that the task's record had.
func ResultMessage(r *task.Result) (stream.Message, error) {
	b, err := wire.EncodeResult(r, wire.ContentJSON)
	if err != nil {
		return stream.Message{}, fmt.Errorf("encoding the result of task %s: %w", r.Key(), err)
	}
	h := make([]stream.Header, 0, 2+len(r.Sent)) // and the signature
	h = append(h, stream.Header{Key: wire.HeaderContentType, Value: []byte(wire.ContentJSON)})
	for _, sent := range r.Sent {
		h = append(h, stream.Header(sent))
	}
	return stream.Message{Topic: stream.Results, Key: r.TaskID, Value: b, Headers: h}, nil
}

// RequeueHeaders returns the headers that a task keeps when a stage writes it back to a tasks topic. The
// record that it came from may be nil. Of a record that a client wrote, no header becomes one of ours.
func RequeueHeaders(r *stream.Record) []stream.Header {
	h := []stream.Header{{Key: HeaderAccepted, Value: []byte("1")}}
	if r == nil || !r.Ours() {
		return h
	}
	for _, k := range []string{HeaderActor, HeaderAddr, HeaderAgent} {
		if v := r.Header(k); v != "" {
			h = append(h, stream.Header{Key: k, Value: []byte(v)})
		}
	}
	return h
}
