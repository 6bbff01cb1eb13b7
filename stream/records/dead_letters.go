package records

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/text"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// Reasons for which a record becomes a dead letter; they are a header of it and a label of the metric.
const (
	ReasonInvalid    = "invalid"    // it was read, and may never succeed
	ReasonUnreadable = "unreadable" // it cannot be decoded
	ReasonIDReused   = "id_reused"  // its task id belongs to another request
	ReasonNotOurs    = "not_ours"   // it is in an internal topic, and no stage of this installation wrote it
	ReasonTooLarge   = "too_large"  // it is too large to be read
)

// RefusedError reports a record that a stage must not process, whatever it holds.
type RefusedError struct {
	Reason string // for its dead letter
	Err    error
}

func (e *RefusedError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *RefusedError) Unwrap() error { return e.Err }

var (
	errUnsigned = errors.New("it has no header " + stream.HeaderSignature + ": only stages of this installation may write to this topic")
	errForged   = errors.New("its header " + stream.HeaderSignature + " does not match: either it was changed or forged, or its writer has other kafka.signing_keys")
)

// CheckWhole returns a *RefusedError for a record that could not be read as a whole. Stages call it
// before they decode a record.
func CheckWhole(r *stream.Record) error {
	switch in := r.Incomplete; {
	case in == nil:
		return nil
	case in.Last > r.Offset || !stream.IsTooLarge(in.Err):
		return &RefusedError{ReasonUnreadable, in.Err}
	default:
		return &RefusedError{ReasonTooLarge, in.Err}
	}
}

// CheckOurs returns a *RefusedError for a record that could not be read as a whole, or that no stage
// of this installation wrote. Stages call it before they decode a record of an internal topic.
func CheckOurs(r *stream.Record) error {
	if err := CheckWhole(r); err != nil {
		return err
	}
	switch {
	case r.Ours():
		return nil
	case r.Header(stream.HeaderSignature) == "":
		return &RefusedError{ReasonNotOurs, errUnsigned}
	default:
		return &RefusedError{ReasonNotOurs, errForged}
	}
}

// ReasonOf returns the reason for the dead letter of a record: that of a *RefusedError, otherwise the
// given one.
func ReasonOf(err error, otherwise string) string {
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		return refused.Reason
	}
	return otherwise
}

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
	// Done is called once, when the letter is acknowledged, or with an error when it never will be. Nil
	// finishes the record after the acknowledgement, or makes the stage get it again.
	Done func(err error)
}

// Put hands a dead letter to the outbox. It waits while the outbox is full; an error means that ctx
// ended or the outbox is closed, and the record will be read again. If the process dies before the
// acknowledgement, the record is read, and written, again.
func (d *DeadLetters) Put(ctx context.Context, l Letter) error {
	d.Metrics.DeadLetters.WithLabelValues(d.Stage, l.Reason).Inc()
	rec := l.Record
	if l.Value != nil {
		rec = rec.WithValue(l.Value) // with a signature of its own, so that a replay of it is ours
	}
	d.Logger.Warn("moving a record to the dead-letter topic", "record", rec.Position(), "reason", l.Reason, "error", l.Cause)
	return d.Outbox.Put(ctx, stream.Unit{
		Messages: []stream.Message{DeadLetter(rec, d.Stage, l.Reason, l.Cause)},
		Events:   []task.Event{d.event(l)},
		Acked: func(err error) {
			if _, large := errors.AsType[*stream.TooLargeError](err); large {
				go d.putStub(context.WithoutCancel(ctx), l, rec) // Put may wait for this function to return
				return
			}
			l.finish(err)
		},
	})
}

// putStub writes what identifies a record whose dead letter is too large for the topic: its bytes are
// not kept, but it holds up nothing. If the process dies before the acknowledgement, the record is read
// again.
func (d *DeadLetters) putStub(ctx context.Context, l Letter, rec *stream.Record) {
	where := []any{"record", rec.Position(), "reason", l.Reason, "size", len(rec.Value)}
	d.Logger.Error("the dead-letter topic refuses a record for its size; keeping only its size and hash: raise max.message.bytes of the topic dlq", where...)
	err := d.Outbox.Put(ctx, stream.Unit{
		Messages: []stream.Message{stub(rec, d.Stage, l.Reason, l.Cause)},
		Acked: func(err error) {
			if _, large := errors.AsType[*stream.TooLargeError](err); large {
				d.Logger.Error("the dead-letter topic refuses even the size and hash of a record: raise its max.message.bytes", where...)
				err = nil // the audit log has its event; waiting would not help
			}
			l.finish(err)
		},
	})
	if err != nil {
		l.finish(err)
	}
}

// finish reports the outcome of a dead letter.
func (l *Letter) finish(err error) {
	switch {
	case l.Done != nil:
		l.Done(err)
	case err == nil:
		l.Record.Done()
	default:
		l.Record.Again(err)
	}
}

// event is the audit event of a dead letter. It holds no part of the record, which may contain a prompt.
func (d *DeadLetters) event(l Letter) task.Event {
	where := l.Record.Position()
	return task.Event{
		Time: clock.Now().UTC(), Action: task.RecordDeadLettered, Outcome: task.OutcomeRefused, Tenant: task.DefaultTenant,
		ActorType: task.ActorStage, ActorID: d.Instance, SourceAddr: "kafka:" + where,
		ResourceType: "record", ResourceID: where, ErrorClass: task.ClassInvalid,
		InputSize: sizeOf(l.Record), Detail: d.detail(l),
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

// sizeOf returns the size of a record's value, also if it was not read.
func sizeOf(r *stream.Record) int64 {
	if r.Incomplete != nil {
		return r.Incomplete.Size
	}
	return int64(len(r.Value))
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
	// A dead letter with these has no value. They are the size and the SHA-256, in hex, of what the
	// value was; if a whole batch was unreadable, of the batch, and the last offset in it.
	HeaderDLQSize   = "dlq-size"
	HeaderDLQSHA256 = "dlq-sha256"
	HeaderDLQLast   = "dlq-last-offset"
)

// Of a record whose bytes are not kept, a key and headers up to these sizes are, in bytes.
const (
	maxStubKey     = 16 << 10
	maxStubHeaders = 64 << 10
)

// maxDLQError bounds the text of the cause in a dead letter, in bytes.
const maxDLQError = 1024

// originalPrefix marks those headers of the record that have the name of a dead letter's own header.
const originalPrefix = "dlq-original-"

// DeadLetter returns the message that preserves a record which cannot be processed: its original
// key, bytes and headers, and headers that say which stage gave up, why (a short reason and the
// error), and where the record came from. The record's own signature and those of its headers that
// begin with "dlq-" get another name, from which [Restore] takes them back.
func DeadLetter(r *stream.Record, stage, reason string, cause error) stream.Message {
	m := stream.Message{
		Topic: stream.DLQ, Key: string(r.Key), EmptyKey: r.Key != nil && len(r.Key) == 0,
		Value: r.Value, Headers: make([]stream.Header, 0, len(r.Headers)+8),
	}
	for _, h := range r.Headers {
		if strings.HasPrefix(h.Key, "dlq-") || h.Key == stream.HeaderSignature {
			h.Key = originalPrefix + h.Key
		}
		m.Headers = append(m.Headers, h)
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
	add(HeaderDLQTime, clock.Now().UTC().Format(time.RFC3339Nano))
	if in := r.Incomplete; in != nil {
		m.Value = nil
		add(HeaderDLQSize, strconv.FormatInt(in.Size, 10))
		add(HeaderDLQSHA256, hex.EncodeToString(in.SHA256[:]))
		if in.Last > r.Offset {
			add(HeaderDLQLast, strconv.FormatInt(in.Last, 10))
		}
	}
	return m
}

// stub returns the dead letter of a record without its value, and without a key or headers that are
// large.
func stub(r *stream.Record, stage, reason string, cause error) stream.Message {
	short := &stream.Record{
		Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Key: r.Key, Headers: r.Headers, Time: r.Time,
		Incomplete: &stream.Incomplete{Size: int64(len(r.Value)), SHA256: sha256.Sum256(r.Value), Last: r.Offset},
	}
	if len(short.Key) > maxStubKey {
		short.Key = nil
	}
	size := 0
	for _, h := range r.Headers {
		size += len(h.Key) + len(h.Value) + len(originalPrefix)
	}
	if size > maxStubHeaders {
		short.Headers = nil
	}
	return DeadLetter(short, stage, reason, cause)
}

// Whole reports whether a dead letter holds the bytes of its record, so that it can be replayed.
func Whole(letter *stream.Record) bool { return letter.Header(HeaderDLQSHA256) == "" }

// Restore returns the message that a dead letter was made of, for the topic that its header names.
// It keeps the signature that it had, or has none.
func Restore(letter *stream.Record) stream.Message {
	m := stream.Message{
		Topic: letter.Header(HeaderDLQTopic), Key: string(letter.Key), EmptyKey: letter.Key != nil && len(letter.Key) == 0,
		Value: letter.Value, Headers: make([]stream.Header, 0, len(letter.Headers)), Verbatim: true,
	}
	for _, h := range letter.Headers {
		original, ok := strings.CutPrefix(h.Key, originalPrefix)
		switch {
		case ok:
			h.Key = original
		case strings.HasPrefix(h.Key, "dlq-"), h.Key == stream.HeaderSignature, h.Key == stream.HeaderReplay, h.Key == stream.HeaderReplayFrom:
			continue
		}
		m.Headers = append(m.Headers, h)
	}
	return m
}
