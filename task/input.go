package task

import (
	"bytes"
	"errors"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/batchyard/batchyard/internal/strictjson"
)

// MaxInputDepth limits the nesting of a task's input and of a device's answer.
const MaxInputDepth = 128

// Input is the body of the request to the device: a JSON object as opaque bytes. Only the
// engine in the workers looks inside.
//
// In JSON it is the object itself. In MessagePack it is a bin or str that contains JSON,
// or a map, which is converted to JSON when it is read.
type Input []byte

// MarshalJSON returns the bytes unchanged.
func (in Input) MarshalJSON() ([]byte, error) {
	if len(in) == 0 {
		return []byte("null"), nil
	}
	return in, nil
}

// UnmarshalJSON stores a copy of the bytes.
func (in *Input) UnmarshalJSON(b []byte) error {
	if bytes.Equal(b, []byte("null")) {
		*in = nil
		return nil
	}
	*in = append((*in)[:0:0], b...)
	return nil
}

// EncodeMsgpack writes the JSON as bin.
func (in Input) EncodeMsgpack(e *msgpack.Encoder) error { return e.EncodeBytes(in) }

// DecodeMsgpack reads bin or str, the forms inside frames, which Batchyard writes. (In the
// topics that users write, package wire cuts the input out first.) The caller has checked
// the structure, so the announced length is there.
func (in *Input) DecodeMsgpack(d *msgpack.Decoder) error {
	n, err := d.DecodeBytesLen()
	if err != nil {
		return NewFieldError("input", "send it once, as JSON text or as a map", "%s", Clip(err.Error()))
	}
	if n < 0 {
		*in = nil
		return nil
	}
	*in = make(Input, n)
	return d.ReadFull(*in)
}

func (in Input) validate(limit int) error {
	if len(in) == 0 {
		return NewFieldError("input", "send the request body as a JSON object", "it is missing")
	}
	if limit > 0 && len(in) > limit {
		return NewFieldError("input", "send less, or raise task.max_input", "its %d bytes are more than %d", len(in), limit)
	}
	if first := bytes.TrimLeft(in, " \t\r\n"); len(first) == 0 || first[0] != '{' {
		return NewFieldError("input", "send the request body as a JSON object", "it is not a JSON object")
	}
	if err := CheckUnambiguous(in); err != nil {
		return NewFieldError("input", err.Remedy, "%s", err.Problem)
	}
	return nil
}

// CheckUnambiguous is [CheckJSON] for what clients send: it also refuses what two readers may
// understand differently, a name that an object has twice and half of a surrogate pair. The
// error has no field.
func CheckUnambiguous(b []byte) *FieldError {
	err := strictjson.CheckUnambiguous(b, MaxInputDepth)
	var twice *strictjson.DuplicateError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &twice):
		return NewFieldError("", "send each member once", "an object in it has the member %s twice", Word(twice.Name))
	case errors.Is(err, strictjson.ErrHalfPair):
		return NewFieldError("", "send whole characters: two escapes such as \\ud83d\\ude00, or UTF-8", "%s", err)
	}
	return NewFieldError("", "send one JSON object", "%s", err)
}

// CheckJSON returns why b cannot be stored as JSON: it is not valid JSON, not valid UTF-8,
// or nested deeper than [MaxInputDepth] (more could exhaust the stack of a parser,
// Postgres' included).
func CheckJSON(b []byte) error { return strictjson.Check(b, MaxInputDepth) }
