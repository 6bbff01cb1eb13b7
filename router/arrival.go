package router

import (
	"fmt"
	"net"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/router/decide"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// topicPriority is the priority of the tasks in a topic: the topic decides when a record is read.
var topicPriority = map[string]task.Priority{
	stream.TasksHigh: task.High, stream.TasksNormal: task.Normal, stream.TasksLow: task.Low,
}

// decode reads and checks the task of a record. What only Batchyard may say is believed only in a
// record that it wrote: progress, when the task was submitted, and by whom.
func (r *Router) decode(rec *stream.Record) (*decide.Item, error) {
	check := records.CheckWhole
	if rec.Topic == stream.TasksParked {
		check = records.CheckOurs
	}
	if err := check(rec); err != nil {
		return nil, err
	}
	t, err := decodeTask(rec)
	if err != nil {
		return nil, err
	}
	now := clock.Now()
	if t.ID == "" {
		t.ID = records.TaskID(rec)
	}
	if t.TraceID == "" {
		t.TraceID = traceOf(rec, t)
	}
	if t.SubmittedAt.IsZero() || believed(rec, records.HeaderAccepted) == "" {
		// The log's time, not the sender's: it decides who goes first.
		t.SubmittedAt, _ = submittedAt(rec, now, r.deps.retention(rec.Topic))
	}
	if sent := sentWith(rec, t); len(sent) > 0 {
		t.Progress = &task.Progress{Sent: sent}
	}
	t.Normalize(now)
	if err := t.Validate(r.deps.Limits); err != nil {
		return nil, err
	}
	if p := t.Progress; p != nil && p.BackoffMS > 0 {
		p.NotBefore = backoffEnd(rec, time.Duration(p.BackoffMS)*time.Millisecond, now)
	}
	it := &decide.Item{
		Task: t, Fingerprint: t.Fingerprint(), Origin: newOrigin(rec), Offset: rec.Offset, Source: rec.Topic, Size: int64(len(rec.Value)),
		Client: hostOf(believed(rec, records.HeaderAddr)), ReadyAt: t.ReadyAt(), Parked: rec.Topic == stream.TasksParked,
	}
	if o := rec.Ownership(); o != nil {
		it.Owner = o
	}
	if w := rec.Recalled(); w != nil {
		it.Seen = w.Marked
	}
	return it, nil
}

// backoffEnd returns when the backoff of a task ends that was written back with it. How old the record is
// depends on the broker's clock and ours. If they disagree, the task waits for at most its backoff from now
// on, or not at all.
func backoffEnd(rec *stream.Record, backoff time.Duration, now time.Time) time.Time {
	age := time.Duration(0)
	if rec.Time.UnixMilli() > 0 { // otherwise it was written without a time
		age = min(backoff, max(0, now.Sub(rec.Time)))
	}
	return now.Add(backoff - age).UTC()
}

// decodeTask decodes the task of a record, and gives it the priority of its topic. A client that
// asks for another priority, or an unknown one, made a mistake: the task does not run.
func decodeTask(rec *stream.Record) (*task.Task, error) {
	contentType := rec.Header(wire.HeaderContentType)
	p, known := topicPriority[rec.Topic]
	if rec.Ours() {
		t, err := wire.DecodeOwnTask(rec.Value, contentType)
		if err == nil && known {
			t.Priority = p
		}
		return t, err
	}
	t, err := wire.DecodeTask(rec.Value, contentType)
	switch {
	case err != nil:
		return nil, err
	case t.Priority == "" && known:
		t.Priority = p
	case t.Priority != p && topicOf[t.Priority] != "":
		return nil, task.NewFieldError("priority", fmt.Sprintf("send the task to %s, or omit the priority", topicOf[t.Priority]),
			"it is %s, but the record is in the topic %s", t.Priority, rec.Topic)
	case t.Priority != p:
		return nil, task.NewFieldError("priority", "use high, normal or low, or omit it", "the record is in the topic %s, and its priority is unknown", rec.Topic)
	}
	return t, nil
}

// HeaderSenderKey is the header of a result with the key of the task's record.
const HeaderSenderKey = "sender-key"

// Limits of what a result repeats of the record of its task.
const (
	maxSent      = 16
	maxSentBytes = 4 << 10
)

// sentWith returns what the record of a client has besides its task, for the record of the result,
// so that the client can join the two: its headers, without those that are Batchyard's or describe
// the value, and its key, unless that is the task's id. What exceeds the limits is left out.
func sentWith(rec *stream.Record, t *task.Task) []task.Header {
	if rec.Ours() {
		return nil // the task has it
	}
	var sent []task.Header
	left := maxSentBytes
	add := func(key string, value []byte) {
		if left -= len(key) + len(value); left >= 0 && len(sent) < maxSent {
			sent = append(sent, task.Header{Key: key, Value: value})
			return
		}
		left += len(key) + len(value)
	}
	if len(rec.Key) > 0 && string(rec.Key) != t.ID {
		add(HeaderSenderKey, rec.Key)
	}
	for _, h := range rec.Headers {
		if !reserved(h.Key) {
			add(h.Key, h.Value)
		}
	}
	return sent
}

// reserved reports whether a header is Batchyard's, or says what the value is.
func reserved(header string) bool {
	for _, prefix := range []string{"origin-", "batchyard-", "dlq-", "parked-", "replay-"} {
		if strings.HasPrefix(header, prefix) {
			return true
		}
	}
	return header == HeaderSenderKey || header == wire.HeaderContentType || !utf8.ValidString(header)
}

// topicOf is the inverse of topicPriority.
var topicOf = map[task.Priority]string{task.High: stream.TasksHigh, task.Normal: stream.TasksNormal, task.Low: stream.TasksLow}

// believed returns a header that only Batchyard sets: "" in a record that it did not write.
func believed(rec *stream.Record, key string) string {
	if !rec.Ours() {
		return ""
	}
	return rec.Header(key)
}

// Times of records that are plausible. Kafka has timestamps since 2015; a client's clock may be fast.
var earliestRecord = time.Date(2015, 1, 1, 0, 0, 0, 0, time.UTC)

const (
	fastestClock = time.Hour
	slowestClock = 24 * time.Hour // beyond the retention: Kafka deletes whole segments
)

// submittedAt returns when the record was written: by its timestamp, which the client may set, or
// now if that is implausible, such as −1, or seconds or microseconds in place of milliseconds. Such
// a task would go before all others, or after them.
func submittedAt(rec *stream.Record, now time.Time, retention time.Duration) (at time.Time, plausible bool) {
	oldest := earliestRecord
	if retention > 0 {
		oldest = now.Add(-retention - slowestClock)
	}
	if rec.Time.Before(oldest) || rec.Time.After(now.Add(fastestClock)) {
		return now.UTC().Truncate(time.Microsecond), false
	}
	return rec.Time.UTC(), true
}

// arrivalOf describes a record whose task.accepted event the router writes.
func arrivalOf(rec *stream.Record, t *task.Task, now time.Time, retention time.Duration) task.Arrival {
	a := task.Arrival{Constraints: task.ConstraintsOf(t)}
	if !rec.Ours() {
		a.Identity = task.IdentityClaimed
		for _, h := range []string{records.HeaderAccepted, records.HeaderActor, records.HeaderAddr, records.HeaderAgent} {
			if rec.Header(h) != "" {
				a.Ignored = append(a.Ignored, h)
			}
		}
	}
	if _, plausible := submittedAt(rec, now, retention); !plausible {
		a.RecordTime = new(rec.Time.UnixMilli())
	}
	return a
}

// hostOf is an address without its port.
func hostOf(addr string) string {
	if host, _, err := net.SplitHostPort(addr); err == nil {
		return host
	}
	return addr
}

// traceOf takes the trace from a W3C traceparent header, or derives it from the identity, so that a
// task that is read twice keeps its trace.
func traceOf(rec *stream.Record, t *task.Task) string {
	if trace := task.TraceOf(rec.Header("traceparent")); trace != "" {
		return trace
	}
	return fmt.Sprintf("%x", t.Key().Hash())
}

// submitter is who sent a record: as the headers of the API say, or else the tenant as the record
// claims it.
func submitter(rec *stream.Record, t *task.Task) task.Origin {
	o := task.Origin{Actor: believed(rec, records.HeaderActor), Addr: believed(rec, records.HeaderAddr), UserAgent: believed(rec, records.HeaderAgent)}
	if o.Actor == "" {
		o.Actor = t.Tenant
	}
	if o.Addr == "" {
		o.Addr = "kafka:" + rec.Position()
	}
	return o
}
