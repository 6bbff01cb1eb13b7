package records

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/text"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// Reasons for which a record becomes a dead letter; they are a header of it and a label of the metric.
const (
	ReasonInvalid    = "invalid"    // it was read, and may never succeed
	ReasonUnreadable = "unreadable" // it cannot be decoded
)

// DeadLetters is a stage's one way to the dead-letter topic. It writes the record's original bytes,
// an audit event, a metric and a log line.
type DeadLetters struct {
	Stage    string
	Instance string // who acted, in the event
	Outbox   *stream.Outbox
	Logger   *slog.Logger
	Metrics  *metrics.Stream
}

// Letter is a record that a stage cannot process.
type Letter struct {
	Record *stream.Record
	Reason string // a short class, such as [ReasonInvalid]
	Cause  error
	// Value, when not nil, is written in place of the record's own: what is left of a record
	// of which a part was processed.
	Value []byte
	// Entries counts what Value holds; it goes into the event.
	Entries int
	// Done is called once, when the letter is acknowledged, or when the broker will never take it.
	// Nil finishes the record after the acknowledgement, and leaves a record that the broker refuses
	// unfinished.
	Done func(err error)
}

// Put hands a dead letter to the outbox. It waits while the outbox is full; an error means that ctx
// ended or the outbox is closed, and the record will be read again. If the process dies before the
// acknowledgement, the record is read, and written, again.
func (d *DeadLetters) Put(ctx context.Context, l Letter) error {
	d.Metrics.DeadLetters.WithLabelValues(d.Stage, l.Reason).Inc()
	m := DeadLetter(l.Record, d.Stage, l.Reason, l.Cause)
	if l.Value != nil {
		m.Value = l.Value
	}
	where := []any{"record", l.Record.Position(), "reason", l.Reason}
	d.Logger.Warn("moving a record to the dead-letter topic", append(where, "error", l.Cause)...)
	return d.Outbox.Put(ctx, stream.Unit{
		Messages: []stream.Message{m},
		Events:   []task.Event{d.event(l)},
		Acked: func(err error) {
			var large *stream.TooLargeError
			if errors.As(err, &large) {
				d.Logger.Error("the dead-letter topic refuses a record for its size: raise max.message.bytes of the topic dlq", append(where, "error", err)...)
			}
			switch {
			case l.Done != nil:
				l.Done(err)
			case err == nil:
				l.Record.Done()
			}
		},
	})
}

// event is the audit event of a dead letter. It holds no part of the record, which may contain a prompt.
func (d *DeadLetters) event(l Letter) task.Event {
	where := l.Record.Position()
	return task.Event{
		Time: time.Now().UTC(), Action: task.RecordDeadLettered, Outcome: task.OutcomeRefused, Tenant: task.DefaultTenant,
		ActorType: task.ActorStage, ActorID: d.Instance, SourceAddr: "kafka:" + where,
		ResourceType: "record", ResourceID: where, ErrorClass: task.ClassInvalid,
		InputSize: int64(len(l.Record.Value)), Detail: d.detail(l),
	}
}

// detail says why, in at most [task.MaxDetail] bytes: the recorder refuses an event with more. A cause that
// quotes control characters takes six bytes for each in JSON, so it may have to be shortened further.
func (d *DeadLetters) detail(l Letter) []byte {
	for why := text.Clip(l.Cause.Error(), maxDLQError); ; why = text.Clip(why, len(why)/2) {
		detail, err := json.Marshal(struct {
			Stage   string `json:"stage"`
			Reason  string `json:"reason"`
			Error   string `json:"error"`
			Entries int    `json:"entries,omitempty"`
		}{d.Stage, l.Reason, why, l.Entries})
		if err != nil { // text and numbers: it cannot fail
			return nil
		}
		if len(detail) <= task.MaxDetail || why == "" {
			return detail
		}
	}
}

// Headers of a dead letter.
const (
	HeaderDLQStage     = "dlq-stage"
	HeaderDLQReason    = "dlq-reason"
	HeaderDLQError     = "dlq-error"
	HeaderDLQTopic     = "dlq-topic"
	HeaderDLQPartition = "dlq-partition"
	HeaderDLQOffset    = "dlq-offset"
	HeaderDLQTime      = "dlq-time"
)

// maxDLQError bounds the text of the cause in a dead letter, in bytes.
const maxDLQError = 1024

// DeadLetter returns the message that preserves a record which cannot be processed: its original
// bytes, and headers that say which stage gave up, why (a short reason and the error), and
// where the record came from. Headers of an earlier dead letter are dropped.
func DeadLetter(r *stream.Record, stage, reason string, cause error) stream.Message {
	m := stream.Message{Topic: stream.DLQ, Key: string(r.Key), Value: r.Value, Headers: make([]stream.Header, 0, len(r.Headers)+7)}
	for _, h := range r.Headers {
		if !strings.HasPrefix(h.Key, "dlq-") {
			m.Headers = append(m.Headers, h)
		}
	}
	message := ""
	if cause != nil {
		message = text.Clip(cause.Error(), maxDLQError)
	}
	add := func(key, value string) { m.Headers = append(m.Headers, stream.Header{Key: key, Value: []byte(value)}) }
	add(HeaderDLQStage, stage)
	add(HeaderDLQReason, reason)
	add(HeaderDLQError, message)
	add(HeaderDLQTopic, r.Topic)
	add(HeaderDLQPartition, strconv.Itoa(r.Partition))
	add(HeaderDLQOffset, strconv.FormatInt(r.Offset, 10))
	add(HeaderDLQTime, time.Now().UTC().Format(time.RFC3339Nano))
	return m
}
