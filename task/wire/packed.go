package wire

import (
	"math"
	"unicode/utf8"

	"github.com/batchyard/batchyard/task"
)

// checkPacked checks a record in MessagePack without its large member, which is nil: as in
// JSON, each name is known, exact and there once, and each value has the type of its field.
// The library would take the last of two values, and its errors name no field. The bytes have
// passed [checkMsgpack].
func checkPacked(b []byte, is packed) error {
	w := packedWalk{walker: walker{b: b}, unknown: is.unknown}
	return w.check(is.of)
}

type packedWalk struct {
	walker
	unknown strictness
	path    path
}

func (w *packedWalk) check(s *shape) error {
	h, err := w.head()
	if err != nil {
		return err
	}
	if h.kind == kindNil {
		if w.path.depth == 0 {
			return w.unfit(s, h)
		}
		return nil // as if it were not there
	}
	if !fits(s.kind, h) {
		return w.unfit(s, h)
	}
	switch h.kind {
	case kindMap:
		return w.members(s, h.n)
	case kindArray:
		for range h.n {
			if err := w.check(s.of); err != nil {
				return err
			}
		}
	case kindStr, kindBin, kindExt:
		v := w.b[w.at : w.at+h.n]
		w.at += h.n
		if s.kind == text && !utf8.Valid(v) {
			return task.NewFieldError(w.path.at(""), "send UTF-8", "it is not valid UTF-8")
		}
	}
	return nil
}

// fits reports whether a value that is not nil may be one of the kind.
func fits(kind shapeKind, h head) bool {
	switch kind {
	case text, rawBytes:
		return h.kind == kindStr || h.kind == kindBin
	case whole:
		return h.kind == kindInt || h.kind == kindUint && h.num <= math.MaxInt64
	case boolean:
		return h.kind == kindTrue || h.kind == kindFalse
	case moment:
		return h.kind == kindStr || h.kind == kindInt || h.kind == kindUint || h.kind == kindExt
	case object, dict:
		return h.kind == kindMap
	case list:
		return h.kind == kindArray
	}
	return false // an opaque value was cut out
}

var remedies = map[shapeKind]string{
	text: "send a string", rawBytes: "send bytes", whole: "send an integer", boolean: "send true or false", object: "send a map", dict: "send a map", list: "send an array", opaque: "send it once",
	moment: "send times as RFC 3339, such as 2026-01-31T12:00:00Z, as Unix seconds, or as a MessagePack timestamp",
}

var packedNames = map[byte]string{
	kindNil: "nil", kindFalse: "false", kindTrue: "true", kindInt: "an integer", kindUint: "an integer", kindFloat32: "a float", kindFloat64: "a float",
	kindStr: "a string", kindBin: "binary data", kindExt: "an extension value", kindArray: "an array", kindMap: "a map",
}

func (w *packedWalk) unfit(s *shape, h head) error {
	if w.path.depth == 0 {
		return task.NewFieldError("", "send one MessagePack map per record", "it is %s", packedNames[h.kind])
	}
	if s.kind == whole && h.kind == kindUint {
		return task.NewFieldError(w.path.at(""), "send a smaller integer", "it is out of range")
	}
	return task.NewFieldError(w.path.at(""), remedies[s.kind], "%s does not fit", packedNames[h.kind])
}

// members checks the members of a map.
func (w *packedWalk) members(s *shape, n int) error {
	var seen members
	for range n {
		key, err := w.head()
		if err != nil {
			return err
		}
		if key.kind != kindStr || !utf8.Valid(w.b[w.at:w.at+key.n]) {
			return task.NewFieldError(w.path.at(""), "use text as keys", "a key is not text")
		}
		name := w.b[w.at : w.at+key.n]
		w.at += key.n
		if err := w.member(s, name, &seen); err != nil {
			return err
		}
	}
	return nil
}

func (w *packedWalk) member(s *shape, name []byte, seen *members) error {
	field, of := -1, s.of
	if s.kind == object {
		if field = s.field(name); field < 0 {
			if err := s.strange(name, w.unknown); err != nil {
				err.Field = w.path.at(err.Field)
				return err
			}
			return w.value(w.path.depth + 1)
		}
		of = s.fields[field].of
	}
	if seen.twice(field, name) {
		return w.path.duplicate(name)
	}
	w.path.enter(name)
	defer w.path.leave()
	return w.check(of)
}
