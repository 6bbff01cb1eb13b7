package task

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
)

// Content types of records at the edges, as the content-type header names them.
const (
	ContentJSON    = "application/json"
	ContentMsgpack = "application/msgpack"
)

// HeaderContentType is the record header that names the format.
const HeaderContentType = "content-type"

// DecodeTask reads a task of either format. contentType may be empty: the first
// byte tells then (JSON starts with '{' or white space, MessagePack with a map).
// Errors are *FieldError: which field, what is wrong, what to do. The task is
// neither normalized nor validated.
func DecodeTask(b []byte, contentType string) (*Task, error) {
	var t Task
	switch format, err := formatOf(b, contentType); {
	case err != nil:
		return nil, err
	case format == ContentJSON:
		if err := decodeJSON(b, &t, taskShape, strict); err != nil {
			return nil, err
		}
	default:
		var e edgeTask
		input, err := decodeMsgpack(b, &e, "input", strict)
		if err != nil {
			return nil, err
		}
		e.Input = input
		return e.task(), nil
	}
	return &t, nil
}

// EncodeTask writes a task in the given format.
func EncodeTask(t *Task, contentType string) ([]byte, error) {
	if contentType == ContentMsgpack {
		return encodeMsgpack(toEdge(t))
	}
	return json.Marshal(t)
}

// DecodeResult reads a result of either format; see [DecodeTask]. It vouches for
// the output, which passes [CheckJSON]: JSON is checked while it is read, and what
// came as MessagePack here. So [Result.ValidateDecoded] need not look again. The
// texts of a result are parts of one that is as long as the record without its
// output: whoever keeps one for long keeps a copy of it.
func DecodeResult(b []byte, contentType string) (*Result, error) {
	format, err := formatOf(b, contentType)
	if err != nil {
		return nil, err
	}
	if format == ContentJSON {
		if r := quickResult(b); r != nil {
			return r, nil
		}
		return slowResult(b)
	}
	var r Result
	if r.Output, err = decodeMsgpack(b, &r, "output", lenient); err != nil {
		return nil, err
	}
	if err := r.checkOutput(); err != nil {
		return nil, err
	}
	return &r, nil
}

// slowResult reads whatever is a result in JSON, and says what is wrong with the rest.
func slowResult(b []byte) (*Result, error) {
	var r Result
	if err := decodeJSON(b, &r, resultShape, lenient); err != nil {
		return nil, err
	}
	return &r, nil
}

// EncodeResult writes a result in the given format. The output stays byte for
// byte as it is: the library would write < as six characters, so that a large
// answer would not fit into its topic any more, and no digest would match.
func EncodeResult(r *Result, contentType string) ([]byte, error) {
	if contentType == ContentMsgpack {
		return encodeMsgpack(r)
	}
	if len(r.Output) == 0 {
		return json.Marshal(r)
	}
	if !json.Valid(r.Output) {
		return nil, fieldErr("output", "", "it is not valid JSON")
	}
	rest := *r
	rest.Output = nil
	b, err := json.Marshal(&rest)
	if err != nil {
		return nil, err
	}
	const member = `,"output":`
	out := make([]byte, 0, len(b)+len(member)+len(r.Output))
	out = append(out, b[:len(b)-1]...) // it has members, and ends with a brace
	out = append(out, member...)
	out = append(out, r.Output...)
	return append(out, '}'), nil
}

func formatOf(b []byte, contentType string) (string, error) {
	if len(b) == 0 {
		return "", fieldErr("", "send one JSON object or MessagePack map a record", "the record is empty")
	}
	ct, _, _ := strings.Cut(strings.ToLower(strings.TrimSpace(contentType)), ";")
	switch strings.TrimSpace(ct) {
	case ContentJSON, "text/json":
		return ContentJSON, nil
	case ContentMsgpack, "application/x-msgpack", "application/vnd.msgpack":
		return ContentMsgpack, nil
	case "":
	default:
		return "", fieldErr("content-type", "use application/json or application/msgpack, or leave the header out",
			"it is neither JSON nor MessagePack")
	}
	switch c := b[0]; {
	case c == '{' || c == ' ' || c == '\t' || c == '\r' || c == '\n':
		return ContentJSON, nil
	case c&0xf0 == 0x80 || c == 0xde || c == 0xdf: // fixmap, map16, map32
		return ContentMsgpack, nil
	}
	return "", fieldErr("", "send one JSON object or MessagePack map a record", "the record is neither JSON nor MessagePack (first byte 0x%02x)", b[0])
}

// strictness says what becomes of a field that is not known: a task's sender is
// told, because it is most likely a slip; a result's is left out, because a newer
// worker may have written it.
type strictness bool

const (
	strict  strictness = true
	lenient strictness = false
)

func decodeJSON(b []byte, into any, of *shape, unknown strictness) error {
	const deepest = MaxInputDepth + 1 // an input or output lies one deeper than by itself
	if unknown == lenient || !soundJSON(b, deepest) {
		if err := checkNesting(b, deepest); err != nil {
			return fieldErr("", "send one JSON object a record", "%s", err)
		}
		if unknown == strict && !json.Valid(b) { // else it may be about a name that is not even one
			return fieldErr("", "send one JSON object a record", "it is not valid JSON")
		}
	}
	if err := checkShape(b, of, unknown); err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		if name := badTime(b, into); name != "" {
			return fieldErr(name, "send times as RFC 3339, such as 2026-01-31T12:00:00Z", "it is not a time")
		}
		return jsonError(err)
	}
	return nil
}

// badTime names the field of a struct whose JSON is not a time; the library does not.
// "" when it is none of them.
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

// jsonError turns the library's errors into ours, which name the field.
func jsonError(err error) error {
	var typeErr *json.UnmarshalTypeError
	if errors.As(err, &typeErr) {
		return fieldErr(typeErr.Field, "send a "+jsonName(typeErr.Type.Kind().String()), "a JSON %s does not fit", clip(typeErr.Value))
	}
	var parse *time.ParseError
	if errors.As(err, &parse) {
		return fieldErr("", "send times as RFC 3339, such as 2026-01-31T12:00:00Z", "a text is not a time")
	}
	return fieldErr("", "send one JSON object a record", "%s", clip(err.Error()))
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

// decodeMsgpack reads everything but the one member that may be large and is the
// user's own, the input of a task or the output of a result; it returns that as JSON.
func decodeMsgpack(b []byte, into any, member string, unknown strictness) (Input, error) {
	if err := checkMsgpack(b); err != nil {
		return nil, err
	}
	rest, raw, err := cutMember(b, member)
	if err != nil {
		return nil, err
	}
	d := msgpack.GetDecoder()
	defer msgpack.PutDecoder(d)
	d.Reset(bytes.NewReader(rest))
	d.DisallowUnknownFields(unknown == strict)
	if err := safely(func() error { return d.Decode(into) }); err != nil {
		var fe *FieldError
		if errors.As(err, &fe) {
			if fe.Field == "" {
				fe.Field = badEdgeTime(rest, into)
			}
			return nil, fe
		}
		if _, name, ok := strings.Cut(err.Error(), "unknown field "); ok {
			return nil, fieldErr(word(strings.Trim(name, `"`)), "remove it; what is yours to keep goes into labels or input", "there is no such field")
		}
		return nil, fieldErr("", "send a MessagePack map with the fields of a task", "reading MessagePack: %s", clip(err.Error()))
	}
	if raw == nil {
		return nil, nil
	}
	return msgpackToJSON(raw)
}

// badEdgeTime is badTime for MessagePack.
func badEdgeTime(b []byte, into any) (name string) {
	var all map[string]msgpack.RawMessage
	if safely(func() error { return msgpack.Unmarshal(b, &all) }) != nil {
		return ""
	}
	t := reflect.TypeOf(into).Elem()
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("msgpack"), ",")
		if raw, ok := all[name]; ok && t.Field(i).Type == reflect.TypeFor[edgeTime]() &&
			safely(func() error { return msgpack.Unmarshal(raw, new(edgeTime)) }) != nil {
			return name
		}
	}
	return ""
}

// safely turns a panic of the decoder on hostile bytes into an error.
func safely(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("decoding: %v", p)
		}
	}()
	return f()
}

// encoders are reused: a fresh one costs several times the encoding.
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
	if e.buf.Cap() <= 1<<20 { // do not keep what one giant record needed
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
