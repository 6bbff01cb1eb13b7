package task

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/vmihailenco/msgpack/v5"
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
// topics that users write, decodeMsgpack cuts the input out first.) The caller has checked
// the structure with [checkMsgpack], so the announced length is there.
func (in *Input) DecodeMsgpack(d *msgpack.Decoder) error {
	n, err := d.DecodeBytesLen()
	if err != nil {
		return fieldErr("input", "send it once, as JSON text or as a map", "%s", clip(err.Error()))
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
		return fieldErr("input", "send the request body as a JSON object", "it is missing")
	}
	if limit > 0 && len(in) > limit {
		return fieldErr("input", "send less, or raise task.max_input", "its %d bytes are more than %d", len(in), limit)
	}
	if first := bytes.TrimLeft(in, " \t\r\n"); len(first) == 0 || first[0] != '{' {
		return fieldErr("input", "send the request body as a JSON object", "it is not a JSON object")
	}
	if err := CheckJSON(in); err != nil {
		return fieldErr("input", "send the request body as a JSON object", "%s", err)
	}
	return nil
}

// CheckJSON returns why b cannot be stored as JSON: it is not valid JSON, not valid UTF-8,
// or nested deeper than [MaxInputDepth] (more could exhaust the stack of a parser,
// Postgres' included).
func CheckJSON(b []byte) error { return checkJSON(b, MaxInputDepth) }

func checkJSON(b []byte, most int) error {
	if soundJSON(b, most) {
		return nil
	}
	return slowJSON(b, most)
}

// slowJSON returns what is wrong.
func slowJSON(b []byte, most int) error {
	if err := checkNesting(b, most); err != nil {
		return err
	}
	if !json.Valid(b) {
		return errors.New("it is not valid JSON")
	}
	return nil
}

// checkNesting is checkJSON for callers that parse the text anyway: it accepts invalid
// JSON.
func checkNesting(b []byte, most int) error {
	if !utf8.Valid(b) {
		return errors.New("it is not valid UTF-8")
	}
	depth, inString, escaped := 0, false, false
	for _, c := range b {
		switch {
		case escaped:
			escaped = false
		case inString:
			switch c {
			case '\\':
				escaped = true
			case '"':
				inString = false
			}
		case c == '"':
			inString = true
		case c == '{' || c == '[':
			if depth++; depth > most {
				return fmt.Errorf("it is nested deeper than %d", most)
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}
