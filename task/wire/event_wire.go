package wire

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"github.com/batchyard/batchyard/task"
)

// Events are the most frequent records, several for each task, so they are encoded and
// decoded without reflection, which is three times as fast. The format is that of the
// msgpack library for a struct as_array; a test compares the two.

// MaxFrameEvents is how many events one record may have.
const MaxFrameEvents = 2048

// Fields of an encoded event. Other versions may append more, which are skipped; the first
// ones are never omitted.
const (
	eventFields    = 34
	eventFieldsMin = 34
	// minEventBytes is less than any event takes: a frame that announces more events than
	// fit is rejected before any memory is allocated.
	minEventBytes = 96
)

// appendEvent encodes one event.
func appendEvent(b []byte, e *task.Event) []byte {
	b = append(b, 0xdc, 0, eventFields)
	b = appendTime(b, e.Time)
	b = appendStr(b, string(e.Action))
	b = appendStr(b, string(e.Outcome))
	b = appendStr(b, e.Tenant)
	b = appendStr(b, string(e.ActorType))
	for _, s := range [...]string{e.ActorID, e.SourceAddr, e.UserAgent, e.ResourceType, e.ResourceID, string(e.ErrorClass), e.TaskID, e.JobID, e.BatchID, e.DeviceID} {
		b = appendStr(b, s)
	}
	b = appendInt(b, int64(e.Attempt))
	b = appendStr(b, e.TraceID)
	b = appendInt(b, int64(e.Duration))
	b = appendStr(b, e.Model)
	b = appendInt(b, e.InputTokens)
	b = appendInt(b, e.OutputTokens)
	b = appendInt(b, e.InputSize)
	b = appendBin(b, e.InputSHA256)
	b = appendInt(b, e.OutputSize)
	b = appendBin(b, e.OutputSHA256)
	b = appendBin(b, e.Detail)
	b = appendStr(b, e.Endpoint)
	b = appendStr(b, string(e.Priority))
	b = appendStr(b, e.CustomID)
	b = appendTime(b, e.SubmittedAt)
	b = appendTime(b, e.Deadline)
	b = appendStr(b, e.CallbackURL)
	b = appendInt(b, int64(e.Generation))
	return appendBin(b, e.Fingerprint)
}

func appendStr(b []byte, s string) []byte {
	switch n := len(s); {
	case n < 32:
		b = append(b, 0xa0|byte(n))
	case n <= math.MaxUint8:
		b = append(b, 0xd9, byte(n))
	case n <= math.MaxUint16:
		b = binary.BigEndian.AppendUint16(append(b, 0xda), uint16(n))
	default:
		b = binary.BigEndian.AppendUint32(append(b, 0xdb), uint32(n)) //nolint:gosec // no record is that large
	}
	return append(b, s...)
}

func appendBin(b, v []byte) []byte {
	switch n := len(v); {
	case v == nil:
		return append(b, 0xc0)
	case n <= math.MaxUint8:
		b = append(b, 0xc4, byte(n))
	case n <= math.MaxUint16:
		b = binary.BigEndian.AppendUint16(append(b, 0xc5), uint16(n))
	default:
		b = binary.BigEndian.AppendUint32(append(b, 0xc6), uint32(n)) //nolint:gosec // no record is that large
	}
	return append(b, v...)
}

func appendInt(b []byte, v int64) []byte {
	if v >= 0 && v < 128 {
		return append(b, byte(v))
	}
	return binary.BigEndian.AppendUint64(append(b, 0xd3), uint64(v)) //nolint:gosec // two's complement is meant
}

// extTime is MessagePack's timestamp type.
const extTime = -1

func appendTime(b []byte, t time.Time) []byte {
	sec, ns := uint64(t.Unix()), uint64(t.Nanosecond()) //nolint:gosec // two's complement is meant
	if sec>>34 == 0 {
		return binary.BigEndian.AppendUint64(append(b, 0xd7, 0xff), ns<<34|sec)
	}
	b = binary.BigEndian.AppendUint32(append(b, 0xc7, 12, 0xff), uint32(ns)) //nolint:gosec // below 10⁹
	return binary.BigEndian.AppendUint64(b, sec)
}

// fieldReader reads fields of an untrusted record. Each length is checked against what is
// left; the first error is kept.
//
// Each kind of value is first tried in the form that Batchyard writes, which is much
// faster than head; head knows all forms.
type fieldReader struct {
	walker
	text string // a copy of b; the strings of all events share this memory
	err  error
}

func (r *fieldReader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("at byte %d: "+format, append([]any{r.at}, args...)...)
	}
	r.b = nil // nothing more can be read
}

// next returns the head of the next value; kindNil after an error.
func (r *fieldReader) next() head {
	if r.err != nil {
		return head{}
	}
	h, err := r.head()
	if err != nil {
		r.fail("%w", err)
		return head{}
	}
	return h
}

func (r *fieldReader) str() string {
	if at := r.at; at < len(r.b) {
		c := r.b[at]
		if n := int(c & 0x1f); c&0xe0 == 0xa0 && n < len(r.b)-at {
			r.at = at + 1 + n
			return r.text[at+1 : at+1+n]
		}
		if c == 0xd9 && len(r.b)-at >= 2 {
			if n := int(r.b[at+1]); n <= len(r.b)-at-2 {
				r.at = at + 2 + n
				return r.text[at+2 : at+2+n]
			}
		}
	}
	return r.anyStr()
}

func (r *fieldReader) anyStr() string {
	h := r.next()
	switch h.kind {
	case kindNil:
		return ""
	case kindStr, kindBin:
		r.at += h.n
		return r.text[r.at-h.n : r.at]
	}
	r.fail("expected a string")
	return ""
}

// bin returns bytes that alias the record.
func (r *fieldReader) bin() []byte {
	if at := r.at; at < len(r.b) {
		if r.b[at] == 0xc0 {
			r.at++
			return nil
		}
		if r.b[at] == 0xc4 && len(r.b)-at >= 2 {
			if n := int(r.b[at+1]); n <= len(r.b)-at-2 {
				r.at = at + 2 + n
				return r.b[at+2 : r.at : r.at]
			}
		}
	}
	return r.anyBin()
}

func (r *fieldReader) anyBin() []byte {
	h := r.next()
	switch h.kind {
	case kindNil:
		return nil
	case kindStr, kindBin:
		r.at += h.n
		return r.b[r.at-h.n : r.at : r.at]
	}
	r.fail("expected bytes")
	return nil
}

func (r *fieldReader) int() int64 {
	if at := r.at; at < len(r.b) {
		if c := r.b[at]; c <= 0x7f {
			r.at++
			return int64(c)
		}
		if r.b[at] == 0xd3 && len(r.b)-at >= 9 {
			r.at += 9
			return int64(binary.BigEndian.Uint64(r.b[at+1:])) //nolint:gosec // two's complement is meant
		}
	}
	return r.anyInt()
}

func (r *fieldReader) anyInt() int64 {
	h := r.next()
	switch h.kind {
	case kindNil:
		return 0
	case kindInt, kindUint:
		if h.kind == kindUint && h.num > math.MaxInt64 {
			break
		}
		return int64(h.num) //nolint:gosec // checked, or two's complement
	}
	r.fail("expected a 64-bit integer")
	return 0
}

func (r *fieldReader) time() time.Time {
	const short, long = 10, 15 // bytes; most events omit two times, and the zero time takes the long form
	if at := r.at; len(r.b)-at >= long && r.b[at] == 0xc7 && r.b[at+1] == 12 && r.b[at+2] == 0xff {
		if ns := binary.BigEndian.Uint32(r.b[at+3:]); ns < 1e9 {
			r.at += long
			return time.Unix(int64(binary.BigEndian.Uint64(r.b[at+7:])), int64(ns)).UTC() //nolint:gosec // two's complement is meant
		}
	} else if len(r.b)-at >= short && r.b[at] == 0xd7 && r.b[at+1] == 0xff {
		both := binary.BigEndian.Uint64(r.b[at+2:])
		if ns := both >> 34; ns < 1e9 {
			r.at += short
			return time.Unix(int64(both&(1<<34-1)), int64(ns)).UTC() //nolint:gosec // 34 and 30 bits
		}
	}
	return r.anyTime()
}

func (r *fieldReader) anyTime() time.Time {
	h := r.next()
	if h.kind == kindNil {
		return time.Time{}
	}
	if h.kind != kindExt || h.ext != extTime {
		r.fail("expected a time")
		return time.Time{}
	}
	v := r.b[r.at : r.at+h.n]
	r.at += h.n
	var sec int64
	var ns uint32
	switch len(v) {
	case 4:
		sec = int64(binary.BigEndian.Uint32(v))
	case 8:
		both := binary.BigEndian.Uint64(v)
		sec, ns = int64(both&(1<<34-1)), uint32(both>>34) //nolint:gosec // 34 and 30 bits
	case 12:
		ns, sec = binary.BigEndian.Uint32(v), int64(binary.BigEndian.Uint64(v[4:])) //nolint:gosec // two's complement is meant
	default:
		r.fail("a time cannot have %d bytes", len(v))
		return time.Time{}
	}
	if ns >= 1e9 {
		r.fail("a time has %d nanoseconds", ns)
		return time.Time{}
	}
	return time.Unix(sec, int64(ns)).UTC()
}

// DecodeEvents decodes a frame of events as [DecodeFrame] does, but into places of the
// caller's: place returns the one for event i of n, which must be a zero Event. After an
// error the content of the places is undefined.
func DecodeEvents(b []byte, place func(i, n int) *task.Event) error {
	if err := decodeEvents(b, place); err != nil {
		return fmt.Errorf("reading a frame of %s: %w", FrameEvents, err)
	}
	return nil
}

// decodeEvents decodes a frame of events. They alias b, which must not be changed.
func decodeEvents(b []byte, place func(i, n int) *task.Event) error {
	r := fieldReader{walker: walker{b: b}, text: string(b)}
	n := r.events()
	if r.err != nil {
		return r.err
	}
	for i := range n {
		if r.event(place(i, n)); r.err != nil {
			return fmt.Errorf("event %d: %w", i, r.err)
		}
	}
	if r.at != len(b) {
		return fmt.Errorf("%d bytes follow the frame", len(b)-r.at)
	}
	return nil
}

// CountEvents returns how many events a frame announces, at most [MaxFrameEvents], or 0 if
// [DecodeEvents] would reject its header. It does not read the events.
func CountEvents(b []byte) int {
	r := fieldReader{walker: walker{b: b}}
	n := r.events()
	if r.err != nil {
		return 0
	}
	return n
}

// events reads the header of a frame of events and returns how many follow. It does not
// use text.
func (r *fieldReader) events() int {
	size := len(r.b)
	if n := r.array(); r.err == nil && n != 3 {
		r.fail("it is not a frame (%d parts)", n)
	}
	if v := r.int(); r.err == nil && v != frameVersion {
		r.fail("its version is %d, this program reads version %d: update the older program", v, frameVersion)
	}
	if k := r.anyBin(); r.err == nil && string(k) != FrameEvents {
		r.fail("it is a frame of another kind than %s", FrameEvents)
	}
	n := r.array()
	if r.err == nil && (n > MaxFrameEvents || n > size/minEventBytes) {
		r.fail("%d events are more than %d, or more than fit into %d bytes", n, MaxFrameEvents, size)
	}
	return n
}

func (r *fieldReader) array() int {
	h := r.next()
	if r.err == nil && h.kind != kindArray {
		r.fail("expected an array")
		return 0
	}
	return h.n
}

func (r *fieldReader) event(e *task.Event) {
	n := r.array()
	if r.err == nil && n < eventFieldsMin {
		r.fail("it has %d fields, events have %d: update the program that wrote it", n, eventFieldsMin)
	}
	e.Time = r.time()
	e.Action, e.Outcome, e.Tenant, e.ActorType = task.Action(r.str()), task.Outcome(r.str()), r.str(), task.ActorType(r.str())
	e.ActorID, e.SourceAddr, e.UserAgent = r.str(), r.str(), r.str()
	e.ResourceType, e.ResourceID, e.ErrorClass = r.str(), r.str(), task.ErrorClass(r.str())
	e.TaskID, e.JobID, e.BatchID, e.DeviceID = r.str(), r.str(), r.str(), r.str()
	e.Attempt, e.TraceID, e.Duration, e.Model = int(r.int()), r.str(), time.Duration(r.int()), r.str()
	e.InputTokens, e.OutputTokens = r.int(), r.int()
	e.InputSize, e.InputSHA256, e.OutputSize, e.OutputSHA256, e.Detail = r.int(), r.bin(), r.int(), r.bin(), r.bin()
	e.Endpoint, e.Priority, e.CustomID = r.str(), task.Priority(r.str()), r.str()
	e.SubmittedAt, e.Deadline, e.CallbackURL = r.time(), r.time(), r.str()
	e.Generation, e.Fingerprint = int(r.int()), r.bin()
	for range n - eventFields {
		if r.err != nil {
			return
		}
		if err := r.value(2); err != nil {
			r.fail("%w", err)
		}
	}
}

// encodeEvents encodes a frame of events.
func encodeEvents(events []task.Event) ([]byte, error) {
	if len(events) > MaxFrameEvents {
		return nil, fmt.Errorf("encoding a frame of %s: %d entries are more than %d", FrameEvents, len(events), MaxFrameEvents)
	}
	b := make([]byte, 0, 64+320*len(events))
	b = appendStr(append(b, 0x93, frameVersion), FrameEvents)
	b = binary.BigEndian.AppendUint16(append(b, 0xdc), uint16(len(events))) //nolint:gosec // bounded above
	for i := range events {
		b = appendEvent(b, &events[i])
	}
	return b, nil
}
