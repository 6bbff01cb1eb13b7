package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/batchyard/batchyard/internal/strictjson"
	"github.com/batchyard/batchyard/task"
)

// Content types of records, as the content-type header names them.
const (
	ContentJSON    = "application/json"
	ContentMsgpack = "application/msgpack"
)

// HeaderContentType is the record header with the content type.
const HeaderContentType = "content-type"

// DecodeTask reads a task that a client wrote, in either format. If contentType is empty or
// application/octet-stream, the first byte determines the format: JSON starts with '{' or
// white space, MessagePack with a map. A byte order mark and the schema prefix of Confluent's
// serializers are skipped.
//
// Names are exact, and each is there once. A task from a client has no progress: see
// [DecodeOwnTask]. Errors are *FieldError. The task is neither normalized nor validated.
func DecodeTask(b []byte, contentType string) (*task.Task, error) {
	return decodeTask(b, contentType, taskShape)
}

// DecodeOwnTask is [DecodeTask] for a task that Batchyard wrote: it may have progress.
func DecodeOwnTask(b []byte, contentType string) (*task.Task, error) {
	return decodeTask(b, contentType, ownTaskShape)
}

func decodeTask(b []byte, contentType string, of *shape) (*task.Task, error) {
	b, format, err := open(b, contentType)
	if err != nil {
		return nil, err
	}
	if format == ContentJSON {
		if t := fastTask(b); t != nil && (t.Progress == nil || of == ownTaskShape) {
			return t, nil
		}
		return slowTask(b, of)
	}
	var e namedTask
	if e.Input, err = decodeMsgpack(b, &e, packed{of, "input", strict}); err != nil {
		return nil, err
	}
	return e.task(), nil
}

// slowTask reads any JSON that is a task and explains what is wrong with everything else.
func slowTask(b []byte, of *shape) (*task.Task, error) {
	var t task.Task
	if err := decodeJSON(b, &t, of, strict); err != nil {
		return nil, err
	}
	return &t, nil
}

// EncodeTask encodes a task in the given format.
func EncodeTask(t *task.Task, contentType string) ([]byte, error) {
	if contentType == ContentMsgpack {
		return encodeMsgpack(newNamedTask(t))
	}
	return json.Marshal(t)
}

// DecodeResult reads a result in either format; see [DecodeTask]. It guarantees that the
// output passes [task.CheckJSON], so [task.Result.ValidateDecoded] need not check it
// again. The strings of a result share one allocation as long as the record without its
// output: copy a string before you keep it for long.
func DecodeResult(b []byte, contentType string) (*task.Result, error) {
	b, format, err := open(b, contentType)
	if err != nil {
		return nil, err
	}
	if format == ContentJSON {
		if r := fastResult(b); r != nil {
			return r, nil
		}
		return slowResult(b)
	}
	var r task.Result
	if r.Output, err = decodeMsgpack(b, &r, packed{resultShape, "output", lenient}); err != nil {
		return nil, err
	}
	if err := r.CheckOutput(); err != nil {
		return nil, err
	}
	return &r, nil
}

// slowResult reads any JSON that is a result and explains what is wrong with everything
// else.
func slowResult(b []byte) (*task.Result, error) {
	var r task.Result
	if err := decodeJSON(b, &r, resultShape, lenient); err != nil {
		return nil, err
	}
	return &r, nil
}

// EncodeResult encodes a result in the given format. The output is kept byte for byte:
// encoding/json would write < as six characters, so that a large answer might exceed the
// topic's limit, and no digest would match.
func EncodeResult(r *task.Result, contentType string) ([]byte, error) {
	if contentType == ContentMsgpack {
		return encodeMsgpack(r)
	}
	if len(r.Output) == 0 {
		return json.Marshal(r)
	}
	if !json.Valid(r.Output) {
		return nil, task.NewFieldError("output", "", "it is not valid JSON")
	}
	rest := *r
	rest.Output = nil
	b, err := json.Marshal(&rest)
	if err != nil {
		return nil, err
	}
	const member = `,"output":`
	out := make([]byte, 0, len(b)+len(member)+len(r.Output))
	out = append(out, b[:len(b)-1]...) // it has members and ends with a brace
	out = append(out, member...)
	out = append(out, r.Output...)
	return append(out, '}'), nil
}

// strictness is what happens to unknown fields. In a task they are an error, because they
// are most likely a mistake; in a result they are ignored, because a newer worker may have
// written them.
type strictness bool

const (
	strict  strictness = true
	lenient strictness = false
)

func decodeJSON(b []byte, into any, of *shape, unknown strictness) error {
	const deepest = task.MaxInputDepth + 1 // an input or output is one level deeper than by itself
	if unknown == lenient || !strictjson.Valid(b, deepest) {
		if err := strictjson.CheckDepth(b, deepest); err != nil {
			return task.NewFieldError("", "send one JSON object per record", "%s", err)
		}
		if unknown == strict && !json.Valid(b) { // else the error might name a field of what is not even JSON
			return task.NewFieldError("", "send one JSON object per record", "it is not valid JSON")
		}
	}
	if err := checkShape(b, of, unknown); err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		if name := badTime(b, into); name != "" {
			return task.NewFieldError(name, "send times as RFC 3339, such as 2026-01-31T12:00:00Z", "it is not a time")
		}
		return jsonError(err)
	}
	return nil
}

// badTime returns the name of the field whose JSON is not a valid time, which
// encoding/json does not report; "" if all are valid.
func badTime(b []byte, into any) string {
	var all map[string]json.RawMessage
	if json.Unmarshal(b, &all) != nil {
		return ""
	}
	t := reflect.TypeOf(into).Elem()
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if raw, ok := all[name]; ok && t.Field(i).Type == reflect.TypeFor[time.Time]() && json.Unmarshal(raw, new(time.Time)) != nil {
			return name
		}
	}
	return ""
}

// jsonError converts encoding/json's errors into a FieldError.
func jsonError(err error) error {
	var typeErr *json.UnmarshalTypeError
	if errors.As(err, &typeErr) {
		return task.NewFieldError(typeErr.Field, "send a "+jsonName(typeErr.Type.Kind().String()), "a JSON %s does not fit", task.Clip(typeErr.Value))
	}
	var parse *time.ParseError
	if errors.As(err, &parse) {
		return task.NewFieldError("", "send times as RFC 3339, such as 2026-01-31T12:00:00Z", "a text is not a time")
	}
	return task.NewFieldError("", "send one JSON object per record", "%s", task.Clip(err.Error()))
}

func jsonName(kind string) string {
	switch kind {
	case "struct", "map", "ptr":
		return "JSON object"
	case "slice", "array":
		return "JSON array"
	case "bool":
		return "boolean"
	case "string":
		return "string"
	}
	return "number"
}

// packed says what a record in MessagePack is. Its one member that may be large belongs to
// the user: the input of a task or the output of a result.
type packed struct {
	of      *shape
	large   string // name of the large member
	unknown strictness
}

// decodeMsgpack decodes everything but the large member, which it returns as JSON.
func decodeMsgpack(b []byte, into any, is packed) (task.Input, error) {
	if err := checkMsgpack(b); err != nil {
		return nil, err
	}
	rest, raw, err := cutMember(b, is.large)
	if err != nil {
		return nil, err
	}
	if err := checkPacked(rest, is); err != nil {
		return nil, err
	}
	d := msgpack.GetDecoder()
	defer msgpack.PutDecoder(d)
	d.Reset(bytes.NewReader(rest))
	if err := safely(func() error { return d.Decode(into) }); err != nil {
		var fe *task.FieldError
		if errors.As(err, &fe) {
			if fe.Field == "" {
				fe.Field = badAnyTime(rest, into)
			}
			return nil, fe
		}
		return nil, task.NewFieldError("", "send a MessagePack map with the fields of a task", "reading MessagePack: %s", task.Clip(err.Error()))
	}
	if raw == nil {
		return nil, nil
	}
	return msgpackToJSON(raw)
}

// badAnyTime is badTime for MessagePack.
func badAnyTime(b []byte, into any) (name string) {
	var all map[string]msgpack.RawMessage
	if safely(func() error { return msgpack.Unmarshal(b, &all) }) != nil {
		return ""
	}
	t := reflect.TypeOf(into).Elem()
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("msgpack"), ",")
		if raw, ok := all[name]; ok && t.Field(i).Type == reflect.TypeFor[anyTime]() &&
			safely(func() error { return msgpack.Unmarshal(raw, new(anyTime)) }) != nil {
			return name
		}
	}
	return ""
}

// safely turns a panic of the decoder into an error.
func safely(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("decoding: %v", p)
		}
	}()
	return f()
}

// encoders are reused: making one costs several times as much as encoding.
var encoders = sync.Pool{New: func() any { return &frameEncoder{} }}

type frameEncoder struct {
	buf bytes.Buffer
	enc *msgpack.Encoder
}

func getEncoder() *frameEncoder {
	e := encoders.Get().(*frameEncoder)
	e.buf.Reset()
	if e.enc == nil {
		e.enc = msgpack.NewEncoder(&e.buf)
	}
	e.enc.Reset(&e.buf)
	e.enc.UseCompactInts(true)
	return e
}

func (e *frameEncoder) put() {
	if e.buf.Cap() <= 1<<20 { // do not keep memory that one giant record needed
		encoders.Put(e)
	}
}

func encodeMsgpack(v any) ([]byte, error) {
	e := getEncoder()
	defer e.put()
	if err := e.enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encoding %T: %w", v, err)
	}
	return bytes.Clone(e.buf.Bytes()), nil
}
