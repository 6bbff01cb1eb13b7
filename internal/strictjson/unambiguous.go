package strictjson

import (
	"bytes"
	"errors"
	"hash/maphash"
	"unicode/utf16"
	"unicode/utf8"
)

// ErrHalfPair reports an escape such as \ud800 that is half of a surrogate pair and stands
// for no character. Readers replace it, so two different texts become the same.
var ErrHalfPair = errors.New("it contains half of a surrogate pair, such as \\ud800")

// ErrManyNames reports more members than [MaxNames].
var ErrManyNames = errors.New("its open objects have more than 65536 members")

// MaxNames is how many members the objects that are open at a place may have before it.
const MaxNames = 1 << 16

// DuplicateError reports an object that has a name twice. Some readers take the first
// value, others the last.
type DuplicateError struct{ Name string }

func (*DuplicateError) Error() string { return "an object in it has two members of the same name" }

// CheckUnambiguous is [Check] that also refuses names that an object has twice (a
// *[DuplicateError]) and halves of surrogate pairs ([ErrHalfPair]).
func CheckUnambiguous(b []byte, most int) error {
	if !utf8.Valid(b) {
		return CheckSlowly(b, most)
	}
	var u unambiguous
	at := skipValue(b, SkipSpace(b, 0), most, &u)
	switch {
	case u.err != nil && isJSON(b, most):
		return u.err
	case at < 0 || SkipSpace(b, at) != len(b):
		return CheckSlowly(b, most)
	}
	return nil
}

// isJSON reports whether b, which is valid UTF-8, is JSON at all: what is wrong with its
// syntax is reported first.
func isJSON(b []byte, most int) bool {
	at := SkipValue(b, SkipSpace(b, 0), most)
	return at >= 0 && SkipSpace(b, at) == len(b)
}

// WholePairs reports whether a string with its quotes, which is valid JSON, has no half of
// a surrogate pair.
func WholePairs(quoted []byte) bool {
	var u unambiguous
	return bytes.IndexByte(quoted, '\\') < 0 || skipString(quoted, 0, &u) == len(quoted)
}

// unambiguous finds what makes JSON ambiguous while it is skipped.
type unambiguous struct {
	names []uint32 // positions of the names of all open objects, the innermost object's last
	table []uint32 // of one large object
	text  [2][]byte
	seed  maphash.Seed
	err   error // what it found

	second int // position of the second half of the last surrogate pair, 0 without one
}

// few is how many names are compared with each other one by one.
const few = 32

// skipObject is skipObject that compares the names.
func (u *unambiguous) skipObject(b []byte, at, room int) int {
	if room < 0 {
		return -1
	}
	if at = SkipSpace(b, at); at < len(b) && b[at] == '}' {
		return at + 1
	}
	base, seen := len(u.names), uint64(0)
	for {
		begin := SkipSpace(b, at)
		if at = skipString(b, begin, u); at < 0 || !u.add(b, begin, at, base, &seen) {
			return -1
		}
		if at = SkipSpace(b, at); at >= len(b) || b[at] != ':' {
			return -1
		}
		if at = skipValue(b, SkipSpace(b, at+1), room, u); at < 0 {
			return -1
		}
		if at = SkipSpace(b, at); at >= len(b) || b[at] != ',' {
			if len(u.names)-base > few && !u.differ(b, u.names[base:]) {
				return -1
			}
			u.names = u.names[:base]
			return skipByte(b, at, '}')
		}
		at++
	}
}

// add adds a name to those of the innermost object, which begin at base. seen has a bit for
// each of them. It returns false if the object has the name already; in objects with more
// than a few members, differ finds that.
func (u *unambiguous) add(b []byte, begin, end, base int, seen *uint64) bool {
	n := len(u.names) - base
	bit := uint64(1) << ((int(b[begin+1])*5 + int(b[end-2])*9 + end - begin) & 63)
	escaped := SkipPlain(b, begin+1) != end-1
	if n < few && (*seen&bit != 0 || escaped) {
		for _, at := range u.names[base:] {
			if u.same(b, int(at), begin) {
				u.err = &DuplicateError{string(u.unquoted(b, begin, 0))}
				return false
			}
		}
	}
	if *seen |= bit; escaped {
		*seen = ^uint64(0) // each later name may be the same text
	}
	if len(u.names) == MaxNames {
		u.err = ErrManyNames
		return false
	}
	if len(u.names) == cap(u.names) { // append would grow in smaller steps, and allocate more in sum
		u.names = append(make([]uint32, 0, max(few, 2*cap(u.names))), u.names...)
	}
	u.names = append(u.names, uint32(begin)) //nolint:gosec // no record is that large
	return true
}

// same reports whether the names at two positions are the same text.
func (u *unambiguous) same(b []byte, i, j int) bool {
	return bytes.Equal(u.unquoted(b, i, 0), u.unquoted(b, j, 1))
}

// differ reports whether all names of a large object differ. It puts them into a hash table.
func (u *unambiguous) differ(b []byte, names []uint32) bool {
	size := 2 * few
	for size < 2*len(names) {
		size *= 2
	}
	if cap(u.table) < size {
		u.table, u.seed = make([]uint32, size), maphash.MakeSeed()
	}
	table := u.table[:size]
	clear(table)
	for i, at := range names {
		slot := int(maphash.Bytes(u.seed, u.unquoted(b, int(at), 0))) & (size - 1) //nolint:gosec // any bits do
		for ; table[slot] != 0; slot = (slot + 1) & (size - 1) {
			if u.same(b, int(names[table[slot]-1]), int(at)) {
				u.err = &DuplicateError{string(u.unquoted(b, int(at), 0))}
				return false
			}
		}
		table[slot] = uint32(i) + 1 //nolint:gosec // at most MaxNames
	}
	return true
}

// unquoted returns the text of the string at a position. It is valid until the next call
// with the same buffer.
func (u *unambiguous) unquoted(b []byte, at, buffer int) []byte {
	begin := at + 1
	end := SkipPlain(b, begin)
	if b[end] == '"' {
		return b[begin:end]
	}
	if n := SkipString(b, at) - at; cap(u.text[buffer]) < n { // append would allocate more in sum
		u.text[buffer] = make([]byte, 0, max(n, 2*cap(u.text[buffer])))
	}
	out := append(u.text[buffer][:0], b[begin:end]...)
	for at = end; b[at] != '"'; {
		if b[at] == '\\' {
			out, at = appendEscaped(out, b, at+1)
			continue
		}
		end = SkipPlain(b, at)
		out, at = append(out, b[at:end]...), end
	}
	u.text[buffer] = out
	return out
}

// appendEscaped appends the character of a valid escape, whose backslash was skipped, and
// returns the position after it. The second half of a surrogate pair is a part of the
// escape.
func appendEscaped(out, b []byte, at int) (_ []byte, after int) {
	switch c := b[at]; c {
	case 'b':
		return append(out, '\b'), at + 1
	case 'f':
		return append(out, '\f'), at + 1
	case 'n':
		return append(out, '\n'), at + 1
	case 'r':
		return append(out, '\r'), at + 1
	case 't':
		return append(out, '\t'), at + 1
	case 'u':
		r, _ := Hex4(b, at+1)
		if !utf16.IsSurrogate(r) {
			return utf8.AppendRune(out, r), at + 5
		}
		low, _ := Hex4(b, at+7)
		return utf8.AppendRune(out, utf16.DecodeRune(r, low)), at + 11
	default:
		return append(out, c), at + 1
	}
}

// wholePair reports whether the escape at a position is not half of a surrogate pair. The
// halves of a pair are asked for one after the other.
func (u *unambiguous) wholePair(b []byte, at int) bool {
	const pair = len(`\ud800`)
	r, ok := unit(b, at)
	switch {
	case !ok || !utf16.IsSurrogate(r):
		return true
	case r < 0xdc00: // the first half
		if low, ok := unit(b, at+pair); ok && low >= 0xdc00 && low < 0xe000 {
			u.second = at + pair
			return true
		}
	case at == u.second:
		return true
	}
	u.err = ErrHalfPair
	return false
}

// unit reads an escape such as \ud800.
func unit(b []byte, at int) (r rune, ok bool) {
	if len(b)-at < 2 || b[at] != '\\' || b[at+1] != 'u' {
		return 0, false
	}
	return Hex4(b, at+2)
}
