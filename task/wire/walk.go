package wire

import (
	"encoding/json"
	"reflect"
	"strings"

	"github.com/batchyard/batchyard/internal/strictjson"
	"github.com/batchyard/batchyard/task"
)

// checkShape counts the values of a JSON record, and rejects names that are there twice,
// names that differ from a field's only in case, halves of surrogate pairs outside of opaque
// values and, if strict, unknown names. Invalid JSON may pass: the parser rejects it. The
// nesting was checked before.
func checkShape(b []byte, s *shape, unknown strictness) error {
	w := jsonWalk{b: b, left: maxValues, rest: maxRest, unknown: unknown}
	w.value(s)
	return w.err
}

type jsonWalk struct {
	b          []byte
	at         int
	left, rest int
	depth      int
	unknown    strictness
	path       path
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
		return w.list(s)
	case 0, '}', ']', ',', ':':
		return false
	}
	begin := w.at
	w.skip()
	return w.take(w.at-begin) && w.paired(begin)
}

// paired refuses a string from a position on that has half of a surrogate pair.
func (w *jsonWalk) paired(begin int) bool {
	if v := w.b[begin:w.at]; v[0] == '"' && !strictjson.WholePairs(v) && json.Valid(v) {
		w.err = task.NewFieldError(w.path.at(""), "send whole characters: two escapes such as \\ud83d\\ude00, or UTF-8", "%s", strictjson.ErrHalfPair)
	}
	return w.err == nil
}

func (w *jsonWalk) list(s *shape) bool {
	var of *shape
	if s != nil && s.kind == list {
		of = s.of
	}
	w.at++
	for {
		switch w.next() {
		case ']':
			w.at++
			return true
		case ',':
			w.at++
		default:
			if !w.one() || !w.value(of) {
				return false
			}
		}
	}
}

func (w *jsonWalk) object(s *shape) bool {
	w.at++
	var seen members
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
		if !w.paired(begin) || w.next() != ':' || !w.one() || !w.take(len(key)) {
			return false
		}
		w.at++
		if !w.member(s, name(key), &seen) {
			return false
		}
	}
}

// member skips the value of a member.
func (w *jsonWalk) member(s *shape, name []byte, seen *members) bool {
	if s == nil {
		return w.value(nil)
	}
	field, of := -1, s.of
	switch s.kind {
	case anything:
		of = s
	case object:
		if field = s.field(name); field < 0 {
			if err := s.strange(name, w.unknown); err != nil {
				err.Field = w.path.at(err.Field)
				w.err = err
				return false
			}
			return w.value(nil)
		}
		of = s.fields[field].of
	}
	if seen.twice(field, name) {
		w.err = w.path.duplicate(name)
		return false
	}
	if of != nil && of.kind == opaque {
		w.next()
		w.skip()
		return true
	}
	w.path.enter(name)
	defer w.path.leave()
	return w.value(of)
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

// Unmarshal is json.Unmarshal, but rejects names that the struct does not have or that are
// there twice, and very many values. (json.Decoder can do the former, but copies the text into a buffer several
// times as long.) The text must have passed [task.CheckJSON].
func Unmarshal(b []byte, into any) error {
	w := jsonWalk{b: b, left: 4 * maxValues, rest: len(b), unknown: strict}
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
