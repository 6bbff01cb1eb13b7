package task

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"sync"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/batchyard/batchyard/internal/strictjson"
)

// Fingerprint identifies what a task asks: two tasks with the same fingerprint ask for the same answer.
// The zero value means that the fingerprint is not known.
type Fingerprint [sha256.Size]byte

// String returns the fingerprint in hex.
func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }

// ParseFingerprint reads a fingerprint in hex; an empty text is one that is not known.
func ParseFingerprint(s string) (f Fingerprint, err error) {
	if s == "" {
		return f, nil
	}
	if len(s) != hex.EncodedLen(len(f)) {
		return f, fmt.Errorf("a fingerprint has %d hexadecimal digits, not %d", hex.EncodedLen(len(f)), len(s))
	}
	if _, err := hex.Decode(f[:], []byte(s)); err != nil {
		return Fingerprint{}, fmt.Errorf("a fingerprint is written in hexadecimal digits: %w", err)
	}
	return f, nil
}

// IsZero reports whether the fingerprint is not known.
func (f Fingerprint) IsZero() bool { return f == Fingerprint{} }

// Bytes returns a copy of the fingerprint; nil if it is not known.
func (f Fingerprint) Bytes() []byte {
	if f.IsZero() {
		return nil
	}
	return slices.Clone(f[:])
}

// Differs reports whether f and g are known and not the same.
func (f Fingerprint) Differs(g Fingerprint) bool { return f != g && !f.IsZero() && !g.IsZero() }

// fingerprintVersion is hashed first. Change it with the canonical form: stored fingerprints then differ
// from new ones, so a change needs a migration.
const fingerprintVersion = "batchyard request 1\n"

// Fingerprint returns the SHA-256 of everything that can change the task's answer, in a canonical form:
// endpoint, model (the one asked for, even after a degrade), whether a smaller model may answer, needs in
// any order, and the input. Each text is preceded by its length. In the input,
//
//   - white space does not count, nor does the order of an object's members;
//   - strings count by their value, however they are escaped;
//   - numbers count by their text: 1 and 1.0 differ, because devices may treat them differently;
//   - model, stream and stream_options of the outermost object do not count, because Batchyard sets or
//     removes them.
//
// Everything else (priority, times, callback, labels, job, session …) says when and for whom the task
// runs, not what it asks. The task must be valid and normalized.
func (t *Task) Fingerprint() Fingerprint {
	c := canonPool.Get().(*canon)
	defer c.free()
	c.out = append(c.out[:0], fingerprintVersion...)
	model := t.Model
	if t.Progress != nil && t.Progress.RequestedModel != "" {
		model = t.Progress.RequestedModel
	}
	c.text(t.Endpoint)
	c.text(model)
	if t.Degrade {
		c.text("degrade")
	} else {
		c.text("")
	}
	needs := slices.Compact(slices.Sorted(slices.Values(t.Needs)))
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(len(needs))) //nolint:gosec // at most MaxNeeds
	for _, n := range needs {
		c.text(n)
	}
	from := len(c.out)
	c.in = t.Input
	if c.value(strictjson.SkipSpace(c.in, 0), 0) < 0 { // not reached for a valid task
		c.out = append(c.out[:from], t.Input...)
	}
	return sha256.Sum256(c.out)
}

// canon writes the canonical form of JSON. Its buffers are reused.
type canon struct {
	in, out, moved []byte
	members        []member // of the objects that are open
}

// member is where a member of an object is in the output.
type member struct{ from, key, to int }

// maxCanonKept bounds the memory that a pooled canon keeps.
const maxCanonKept = 64 << 10

var canonPool = sync.Pool{New: func() any { return new(canon) }}

func (c *canon) free() {
	if cap(c.out)+cap(c.moved) > maxCanonKept {
		c.out, c.moved = nil, nil
	}
	c.in, c.members = nil, c.members[:0]
	canonPool.Put(c)
}

func (c *canon) text(s string) {
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(len(s))) //nolint:gosec // bounded by Validate
	c.out = append(c.out, s...)
}

// value copies the value at a position and returns the position after it, or -1 if there is no value.
// Its nesting was checked before: this recursion is no deeper than [MaxInputDepth].
func (c *canon) value(at, depth int) int {
	switch {
	case at >= len(c.in) || depth > MaxInputDepth:
		return -1
	case c.in[at] == '{':
		return c.object(at, depth)
	case c.in[at] == '[':
		return c.array(at, depth)
	case c.in[at] == '"':
		return c.str(at)
	}
	end := strictjson.SkipValue(c.in, at, 0)
	if end >= 0 {
		c.out = append(c.out, c.in[at:end]...)
	}
	return end
}

func (c *canon) array(at, depth int) int {
	c.out = append(c.out, '[')
	at = strictjson.SkipSpace(c.in, at+1)
	for at < len(c.in) && c.in[at] != ']' {
		if at = c.value(at, depth+1); at < 0 {
			return -1
		}
		c.out = append(c.out, ',')
		at = c.separator(at)
	}
	if at >= len(c.in) {
		return -1
	}
	c.out = append(c.out, ']')
	return at + 1
}

func (c *canon) object(at, depth int) int {
	c.out = append(c.out, '{')
	first := len(c.members)
	at = strictjson.SkipSpace(c.in, at+1)
	for at < len(c.in) && c.in[at] != '}' {
		m := member{from: len(c.out)}
		if at = c.str(at); at < 0 {
			return -1
		}
		m.key = len(c.out)
		if at = strictjson.SkipSpace(c.in, at); at >= len(c.in) || c.in[at] != ':' {
			return -1
		}
		if at = c.value(strictjson.SkipSpace(c.in, at+1), depth+1); at < 0 {
			return -1
		}
		c.out = append(c.out, ',')
		m.to = len(c.out)
		if depth == 0 && replaced(c.out[m.from:m.key]) {
			c.out = c.out[:m.from]
		} else {
			c.members = append(c.members, m)
		}
		at = c.separator(at)
	}
	if at >= len(c.in) {
		return -1
	}
	c.sort(c.members[first:])
	c.members = c.members[:first]
	c.out = append(c.out, '}')
	return at + 1
}

// replaced reports whether Batchyard sets or removes the member of an input with a quoted name.
func replaced(name []byte) bool {
	switch string(name) {
	case `"model"`, `"stream"`, `"stream_options"`:
		return true
	}
	return false
}

// separator skips a comma, or stays before the end of the object or array.
func (c *canon) separator(at int) int {
	if at = strictjson.SkipSpace(c.in, at); at < len(c.in) && c.in[at] == ',' {
		at = strictjson.SkipSpace(c.in, at+1)
	}
	return at
}

// sort puts the members that were written last into the order of their names. Members with the same name
// keep their order, because a device takes the first or the last of them.
func (c *canon) sort(ms []member) {
	byName := func(x, y member) int { return bytes.Compare(c.out[x.from:x.key], c.out[y.from:y.key]) }
	if len(ms) < 2 || slices.IsSortedFunc(ms, byName) {
		return
	}
	from := ms[0].from
	slices.SortStableFunc(ms, byName)
	c.moved = c.moved[:0]
	for _, m := range ms {
		c.moved = append(c.moved, c.out[m.from:m.to]...)
	}
	copy(c.out[from:], c.moved)
}

// str copies a string by its value: escaped only where JSON requires it.
func (c *canon) str(at int) int {
	end := strictjson.SkipString(c.in, at)
	if end < 0 {
		return -1
	}
	raw := c.in[at+1 : end-1]
	c.out = append(c.out, '"')
	for {
		i := bytes.IndexByte(raw, '\\')
		if i < 0 {
			c.out = append(append(c.out, raw...), '"')
			return end
		}
		c.out = append(c.out, raw[:i]...)
		raw = raw[i+c.escape(raw[i:]):]
	}
}

// shortEscapes are the control characters with an escape of two characters.
const shortEscapes = "bfnrt"

// escape copies the character that an escape stands for, and returns the length of the escape.
func (c *canon) escape(raw []byte) (n int) {
	switch b := raw[1]; b {
	case '"', '\\':
		c.out = append(c.out, '\\', b)
		return 2
	case '/':
		c.out = append(c.out, '/')
		return 2
	case 'u':
	default:
		c.out = append(c.out, '\\', b)
		return 2
	}
	r, _ := strictjson.Hex4(raw, 2)
	n = 6
	if utf16.IsSurrogate(r) {
		low := utf8.RuneError
		if len(raw) >= 12 && raw[6] == '\\' && raw[7] == 'u' {
			low, _ = strictjson.Hex4(raw, 8)
		}
		pair := utf16.DecodeRune(r, low)
		if pair == utf8.RuneError { // half of a pair stands for itself
			c.out = hex.AppendEncode(append(c.out, '\\', 'u'), []byte{byte(r >> 8), byte(r)})
			return n
		}
		r, n = pair, 12
	}
	switch {
	case r == '"' || r == '\\':
		c.out = append(c.out, '\\', byte(r))
	case r >= ' ':
		c.out = utf8.AppendRune(c.out, r)
	default:
		if i := bytes.IndexByte([]byte("\b\f\n\r\t"), byte(r)); i >= 0 {
			c.out = append(c.out, '\\', shortEscapes[i])
		} else {
			c.out = hex.AppendEncode(append(c.out, '\\', 'u', '0', '0'), []byte{byte(r)})
		}
	}
	return n
}

// Known is what is recorded about an id. A zero State means that nothing is.
type Known struct {
	Fingerprint Fingerprint
	Generation  int
	State       State
}

// IsOther reports whether the id belongs to a request other than the one with the fingerprint.
func (k Known) IsOther(f Fingerprint) bool { return k.State != "" && k.Fingerprint.Differs(f) }

// Answers reports whether the given generation of a task has ended.
func (k Known) Answers(generation int) bool {
	return k.Generation > generation || k.Generation == generation && k.State.Terminal()
}
