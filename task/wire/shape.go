package wire

import (
	"encoding/json"
	"reflect"
	"strings"

	"github.com/batchyard/batchyard/task"
)

// Limits of a record without the input of its task or the output of its result, so that
// reading it takes about as much memory as it is long: otherwise two bytes of "{}" could
// become an attempt of a hundred bytes. A task with every field at its limit stays below
// both.
const (
	maxValues = 2048      // members and elements
	maxRest   = 512 << 10 // bytes
)

// shape describes what a JSON object may contain: the fields of a struct. A nil shape
// allows any names.
type shape struct{ fields []shapeField }

type shapeField struct {
	name   string
	of     *shape
	opaque bool // an input: its content is not inspected and not counted
}

var taskShape, resultShape = shapeOf(reflect.TypeFor[task.Task]()), shapeOf(reflect.TypeFor[task.Result]())

func shapeOf(t reflect.Type) *shape {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()) {
		return nil
	}
	s := &shape{}
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		opaque := f.Type == reflect.TypeFor[task.Input]() || f.Type == reflect.TypeFor[json.RawMessage]()
		s.fields = append(s.fields, shapeField{name: name, of: shapeOf(f.Type), opaque: opaque})
	}
	return s
}

// field finds a field as encoding/json does: an exact match, else ignoring case.
func (s *shape) field(key []byte) *shapeField {
	if s == nil {
		return nil
	}
	for i := range s.fields {
		if s.fields[i].name == string(key) {
			return &s.fields[i]
		}
	}
	for i := range s.fields {
		if strings.EqualFold(s.fields[i].name, string(key)) {
			return &s.fields[i]
		}
	}
	return nil
}

// checkShape counts the values of a JSON record and, if strict, rejects unknown names. It
// does not allocate. Invalid JSON may pass: the parser rejects it. The nesting was checked
// before.
func checkShape(b []byte, s *shape, unknown strictness) error {
	w := jsonWalk{b: b, left: maxValues, rest: maxRest, strict: bool(unknown)}
	w.value(s)
	return w.err
}

type jsonWalk struct {
	b          []byte
	at         int
	left, rest int
	depth      int
	strict     bool
	err        error
}

// next returns the next byte that is not white space; 0 at the end.
func (w *jsonWalk) next() byte {
	for ; w.at < len(w.b); w.at++ {
		switch c := w.b[w.at]; c {
		case ' ', '\t', '\r', '\n':
		default:
			return c
		}
	}
	return 0
}

// value skips a value of the shape; false means stop.
func (w *jsonWalk) value(s *shape) bool {
	if w.depth++; w.depth > task.MaxInputDepth+1 { // the parser rejects it
		return false
	}
	defer func() { w.depth-- }()
	switch w.next() {
	case '{':
		return w.object(s)
	case '[':
		w.at++
		for {
			switch w.next() {
			case ']':
				w.at++
				return true
			case ',':
				w.at++
			default:
				if !w.one() || !w.value(s) {
					return false
				}
			}
		}
	case 0, '}', ']', ',', ':':
		return false
	}
	begin := w.at
	w.skip()
	return w.take(w.at - begin)
}

func (w *jsonWalk) object(s *shape) bool {
	w.at++
	for {
		switch w.next() {
		case '}':
			w.at++
			return true
		case ',':
			w.at++
			continue
		case '"':
		default:
			return false
		}
		begin := w.at
		w.skip()
		key := w.b[begin:w.at]
		if w.next() != ':' || !w.one() || !w.take(len(key)) {
			return false
		}
		w.at++
		f := s.field(name(key))
		if f == nil && s != nil && w.strict {
			w.err = task.NewFieldError(task.Word(string(name(key))), "remove it; put your own data into labels or input", "unknown field")
			return false
		}
		switch {
		case f == nil:
			if !w.value(nil) {
				return false
			}
		case f.opaque:
			w.next()
			w.skip()
		case !w.value(f.of):
			return false
		}
	}
}

// name returns a key without its quotes.
func name(key []byte) []byte {
	for _, c := range key {
		if c == '\\' {
			var s string
			if json.Unmarshal(key, &s) == nil {
				return []byte(s)
			}
		}
	}
	return key[1:max(1, len(key)-1)]
}

// one counts a member or element.
func (w *jsonWalk) one() bool {
	if w.left--; w.left < 0 && w.err == nil {
		w.err = task.NewFieldError("", "put your own data into the input, or send less", "it has more than %d values besides its input or output", maxValues)
	}
	return w.err == nil
}

// take counts bytes.
func (w *jsonWalk) take(n int) bool {
	if w.rest -= n; w.rest < 0 && w.err == nil {
		w.err = task.NewFieldError("", "put your own data into the input, or send less", "it has more than %d bytes besides its input or output", maxRest)
	}
	return w.err == nil
}

// skip skips one value of any kind.
func (w *jsonWalk) skip() {
	depth := 0
	for w.at < len(w.b) {
		switch c := w.b[w.at]; c {
		case '"':
			for w.at++; w.at < len(w.b) && w.b[w.at] != '"'; w.at++ {
				if w.b[w.at] == '\\' {
					w.at++
				}
			}
			w.at = min(w.at+1, len(w.b))
		case '{', '[':
			depth++
			w.at++
		case '}', ']':
			if depth == 0 { // the end of what the value is in
				return
			}
			depth--
			w.at++
		case ',', ':', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return
			}
			w.at++
			continue
		default:
			for w.at < len(w.b) && !strings.ContainsRune("{}[],:\" \t\r\n", rune(w.b[w.at])) {
				w.at++
			}
		}
		if depth == 0 {
			return
		}
	}
}

// Unmarshal is json.Unmarshal, but rejects fields that the struct does not have, and very
// many values. (json.Decoder can do the former, but copies the text into a buffer several
// times as long.) The text must have passed [task.CheckJSON].
func Unmarshal(b []byte, into any) error {
	w := jsonWalk{b: b, left: 4 * maxValues, rest: len(b), strict: true}
	w.value(shapeOf(reflect.TypeOf(into)))
	if w.err != nil {
		return w.err
	}
	return json.Unmarshal(b, into)
}

// Members calls each with the members of a JSON object in order, duplicates included,
// until it returns false. The values alias b. It reports whether b is one object; it does
// not validate the values.
func Members(b []byte, each func(key string, value []byte) bool) bool {
	return items(b, '{', '}', func(w *jsonWalk) (more, ok bool) {
		if w.next() != '"' {
			return false, false
		}
		begin := w.at
		w.skip()
		key := w.b[begin:w.at]
		if w.next() != ':' || len(key) < 2 {
			return false, false
		}
		w.at++
		w.next()
		begin = w.at
		w.skip()
		return each(string(name(key)), w.b[begin:w.at]), w.at > begin
	})
}

// Elements is Members for the elements of an array.
func Elements(b []byte, each func(value []byte) bool) bool {
	return items(b, '[', ']', func(w *jsonWalk) (more, ok bool) {
		w.next()
		begin := w.at
		w.skip()
		return w.at > begin && each(w.b[begin:w.at]), w.at > begin
	})
}

func items(b []byte, opening, closing byte, one func(*jsonWalk) (more, ok bool)) bool {
	w := &jsonWalk{b: b}
	if w.next() != opening {
		return false
	}
	w.at++
	if w.next() == closing {
		w.at++
		return w.next() == 0 && w.at == len(b)
	}
	for {
		more, ok := one(w)
		if !ok {
			return false
		}
		if !more {
			return true
		}
		switch w.next() {
		case ',':
			w.at++
		case closing:
			w.at++
			return w.next() == 0 && w.at == len(b)
		default:
			return false
		}
	}
}
