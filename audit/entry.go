package audit

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/batchyard/batchyard/task"
)

// record is what the writer needs to know of a stream record.
type record interface {
	Done()      // recorded, or it never will be
	Lost() bool // its partition belongs to somebody else now
}

// entry is one record, decoded and checked: what is to be recorded of it, and
// what of it goes to the dead letters.
type entry struct {
	rec    record
	part   *tenure
	offset int64
	bytes  int64
	at     time.Time // when it was written, by the clock of who wrote it or the broker's

	held   bool // the record is not decoded yet
	value  []byte
	format string // the content type of a result
	framed int    // how many events there are, as their frame says
	events []item[task.Event]
	result *task.Result
	dead   []letter // not sent yet
}

// item is an event and its place in its record, which stays the same when
// others of the record are taken out.
type item[T any] struct {
	index int32
	v     T
}

// letter is what goes to the dead-letter topic: a whole record, or those events
// of it that cannot be recorded.
type letter struct {
	entry  *entry
	reason string // a short class
	cause  error
	events []task.Event // nil: the record as it came
}

// origin is where a row that is made from the entry comes from.
func (e *entry) origin(index int32) origin {
	return origin{e.part.topic, int32(e.part.partition), e.offset, index} //nolint:gosec // Kafka counts partitions in 32 bits
}

// rows is how many rows it makes at most; it stays the same.
func (e *entry) rows() int { return max(e.framed, 1) }

// Bounds of what a row holds, in characters. Longer text is cut: the event
// happened, whatever somebody called himself.
const (
	maxShort   = 64
	maxName    = 256
	maxText    = 512
	maxMessage = 4096
	maxAttempt = 1_000_000

	// maxCount bounds tokens and sizes. What a device says of them is anything up to
	// 2⁶³-1, and the sums over an hour and a day have to fit into 64 bits.
	maxCount = 1 << 32
)

var (
	earliest = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	latest   = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)
)

// holdEvents keeps a record of the events topic until a writer decodes it.
func (e *entry) holdEvents(value []byte) {
	e.held, e.value, e.framed = true, value, task.CountEvents(value)
}

// holdResult keeps a record of the results topic until a writer decodes it.
func (e *entry) holdResult(value []byte, contentType string) {
	e.held, e.value, e.format = true, value, contentType
}

// slab is memory for the events of a chunk, and then of the next one. Decoded, an
// event takes three times as much as in its record and is full of pointers, and so
// does a result: what waits in the queue stays as it came, or garbage collection would
// go through all of it again and again.
type slab struct{ events []item[task.Event] }

// slabKeep is up to how many events a slab is kept: 20 MB of them.
const slabKeep = 1 << 15

// decode fills the entries of a chunk from the records that they hold. What it
// gives them is theirs until reset.
func (s *slab) decode(c chunk) {
	n := 0
	for _, e := range c {
		n += e.framed
	}
	if cap(s.events) < n {
		s.events = make([]item[task.Event], 0, n)
	}
	room := s.events[:n]
	s.events = room
	for _, e := range c {
		switch {
		case !e.held:
		case laneOf(e) == eventsLane:
			e.decodeEvents(room[:e.framed:e.framed])
		default:
			e.decodeResult(e.value, e.format)
		}
		e.held, e.value = false, nil
		room = room[e.framed:]
	}
}

// reset takes the memory back from the entries of the last chunk.
func (s *slab) reset() {
	if cap(s.events) > slabKeep {
		s.events = nil
		return
	}
	clear(s.events)
	s.events = s.events[:0]
}

// decodeEvents reads the events that e holds, for which there is room. Those that
// cannot be recorded become a dead letter of their own, so that replaying it does not
// repeat the others.
func (e *entry) decodeEvents(room []item[task.Event]) {
	e.events = room
	err := task.DecodeEvents(e.value, func(i, _ int) *task.Event {
		e.events[i].index = int32(i) //nolint:gosec // at most task.MaxFrameEvents
		return &e.events[i].v
	})
	if err != nil {
		e.events = nil
		e.dead = append(e.dead, letter{entry: e, reason: "undecodable", cause: err})
		return
	}
	kept := 0
	for i := range e.events {
		it := &e.events[i]
		if err := cleanEvent(&it.v); err != nil {
			e.dead = append(e.dead, letter{entry: e, reason: "invalid", cause: fmt.Errorf("event %d: %w", i, err), events: []task.Event{it.v}})
			continue
		}
		if kept != i {
			e.events[kept] = *it
		}
		kept++
	}
	clear(e.events[kept:]) // what they hold is in their letters
	e.events = e.events[:kept]
}

// decodeResult fills e from a record of the results topic.
func (e *entry) decodeResult(b []byte, contentType string) {
	r, err := task.DecodeResult(b, contentType)
	reason := "undecodable"
	if err == nil {
		reason = "invalid"
		err = cleanResult(r)
	}
	if err != nil {
		e.dead = append(e.dead, letter{entry: e, reason: reason, cause: err})
		return
	}
	e.result = r
}

// cleanEvent makes the event fit into its row. An error means that it cannot be
// recorded as what it says it is; nothing of it was changed then.
func cleanEvent(e *task.Event) error {
	if !e.Action.Listed() {
		return fmt.Errorf("%q is no action of this version of Batchyard", cut(string(e.Action), maxShort))
	}
	if err := checkKey(e.Tenant, e.TaskID); err != nil {
		return err
	}
	if err := checkTime("time", e.Time); err != nil {
		return err
	}
	if e.Attempt < 0 || e.Attempt > maxAttempt {
		return fmt.Errorf("attempt %d is out of range", e.Attempt)
	}
	fit(&e.ActorID, maxName)
	fit(&e.SourceAddr, maxName)
	fit(&e.UserAgent, maxText)
	fit(&e.ResourceType, maxShort)
	fit(&e.ResourceID, maxText)
	fit(&e.Job, maxName)
	fit(&e.Batch, maxName)
	fit(&e.Device, maxName)
	fit(&e.TraceID, maxShort)
	fit(&e.Model, maxName)
	fit(&e.Endpoint, maxName)
	fit(&e.CustomID, maxText)
	fit(&e.ErrorClass, maxShort)
	fit(&e.Outcome, maxShort)
	fit(&e.ActorType, maxShort)
	fit(&e.Priority, maxShort)
	if len(e.InputSHA256) != 32 {
		e.InputSHA256 = nil
	}
	if len(e.OutputSHA256) != 32 {
		e.OutputSHA256 = nil
	}
	for _, n := range [...]*int64{&e.TokensIn, &e.TokensOut, &e.InputSize, &e.OutputSize} {
		*n = min(max(*n, 0), maxCount)
	}
	e.Time = micro(e.Time)
	e.SubmittedAt, e.Deadline = microOrNone(e.SubmittedAt), microOrNone(e.Deadline)
	if len(e.Detail) > 0 && (len(e.Detail) > task.MaxDetail || e.Detail[0] != '{' || task.CheckJSON(e.Detail) != nil) {
		e.Detail = fmt.Appendf(nil, `{"unreadable_bytes":%d}`, len(e.Detail))
	}
	return nil
}

// cleanResult makes the result fit into its row. It came from [task.DecodeResult],
// which has checked the output.
func cleanResult(r *task.Result) error {
	if err := r.ValidateDecoded(); err != nil {
		return err
	}
	if err := checkTime("finished_at", r.FinishedAt); err != nil {
		return err
	}
	if n := r.Attempt(); n < 0 || n > maxAttempt {
		return fmt.Errorf("attempt %d is out of range", n)
	}
	if r.Status < 0 || r.Status > math.MaxInt32 {
		return fmt.Errorf("status %d is out of range", r.Status)
	}
	if r.Error != nil {
		fit(&r.Error.Class, maxShort)
		fit(&r.Error.Message, maxMessage)
	}
	r.Usage.InputTokens = min(max(r.Usage.InputTokens, 0), maxCount)
	r.Usage.OutputTokens = min(max(r.Usage.OutputTokens, 0), maxCount)
	fit(&r.Priority, maxShort)
	r.FinishedAt = micro(r.FinishedAt)
	r.SubmittedAt, r.AssignedAt, r.StartedAt = microOrNone(r.SubmittedAt), microOrNone(r.AssignedAt), microOrNone(r.StartedAt)
	return nil
}

// checkKey refuses an identity that the tables cannot hold: it may not be cut,
// because it would be another task's.
func checkKey(tenant, id string) error {
	for _, f := range [...]struct{ name, s string }{{"tenant", tenant}, {"task id", id}} {
		if len(f.s) <= task.MaxIDLength && task.Plain(f.s) {
			continue
		}
		if !utf8.ValidString(f.s) || strings.IndexByte(f.s, 0) >= 0 {
			return fmt.Errorf("the %s is no text that Postgres can hold", f.name)
		}
		if len(f.s) > task.MaxIDLength && utf8.RuneCountInString(f.s) > task.MaxIDLength {
			return fmt.Errorf("the %s is longer than %d characters", f.name, task.MaxIDLength)
		}
	}
	if tenant == "" && id != "" {
		return errors.New("the task has no tenant")
	}
	return nil
}

func checkTime(name string, t time.Time) error {
	if t.Before(earliest) || t.After(latest) {
		return fmt.Errorf("%s %s is out of range", name, t.UTC().Format(time.RFC3339))
	}
	return nil
}

// micro is the time as Postgres will give it back. What we write has no more.
func micro(t time.Time) time.Time {
	if t = t.UTC(); t.Nanosecond()%1000 == 0 {
		return t.Round(0)
	}
	return t.Truncate(time.Microsecond)
}

func microOrNone(t time.Time) time.Time {
	if t.Before(earliest) || t.After(latest) {
		return time.Time{}
	}
	return micro(t)
}

// fit is cut, for a text that most likely needs none.
func fit[T ~string](s *T, n int) {
	if v := string(*s); len(v) > n || !task.Plain(v) {
		*s = T(cut(v, n))
	}
}

// cut makes s text that Postgres can hold, of at most n characters.
func cut(s string, n int) string {
	if len(s) <= n && utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 {
		return s
	}
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	count := 0
	for i := range s {
		if count == n {
			return s[:i]
		}
		count++
	}
	return s
}
