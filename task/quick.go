package task

import (
	"encoding/binary"
	"math/bits"
	"unicode/utf8"
)

// A fast JSON reader that reads, in a single pass, what is read thousands of times a
// second: tasks, results, inputs, outputs, details. encoding/json reads the same text
// several times and uses reflection. Whatever the fast reader does not recognise makes it
// give up, and then encoding/json reads the text from the start. So the fast reader only
// affects speed, and never produces an error. Fuzzing compares the two.

// soundJSON reports whether b passes [CheckJSON] with the given limit of nesting.
func soundJSON(b []byte, most int) bool {
	if !utf8.Valid(b) {
		return false
	}
	at := passValue(b, passSpace(b, 0), most)
	return at >= 0 && passSpace(b, at) == len(b)
}

// passSpace returns the position of the first byte that is not white space.
func passSpace(b []byte, at int) int {
	for at < len(b) && (b[at] == ' ' || b[at] == '\n' || b[at] == '\t' || b[at] == '\r') {
		at++
	}
	return at
}

// The pass… functions return the position after what they skip, or -1 if it is not there.
// That the text is UTF-8 was checked before.

// passValue skips one value with at most room nested arrays and objects.
func passValue(b []byte, at, room int) int {
	if at >= len(b) {
		return -1
	}
	switch c := b[at]; {
	case c == '"':
		return passString(b, at)
	case c == '{':
		return passObject(b, at+1, room-1)
	case c == '[':
		return passArray(b, at+1, room-1)
	case c == '-' || c >= '0' && c <= '9':
		return passNumber(b, at)
	case c == 't':
		return passWord(b, at, "true")
	case c == 'f':
		return passWord(b, at, "false")
	case c == 'n':
		return passWord(b, at, "null")
	}
	return -1
}

func passObject(b []byte, at, room int) int {
	if room < 0 {
		return -1
	}
	if at = passSpace(b, at); at < len(b) && b[at] == '}' {
		return at + 1
	}
	for {
		if at = passString(b, passSpace(b, at)); at < 0 {
			return -1
		}
		if at = passSpace(b, at); at >= len(b) || b[at] != ':' {
			return -1
		}
		if at = passValue(b, passSpace(b, at+1), room); at < 0 {
			return -1
		}
		if at = passSpace(b, at); at >= len(b) || b[at] != ',' {
			return passByte(b, at, '}')
		}
		at++
	}
}

func passArray(b []byte, at, room int) int {
	if room < 0 {
		return -1
	}
	if at = passSpace(b, at); at < len(b) && b[at] == ']' {
		return at + 1
	}
	for {
		if at = passValue(b, passSpace(b, at), room); at < 0 {
			return -1
		}
		if at = passSpace(b, at); at >= len(b) || b[at] != ',' {
			return passByte(b, at, ']')
		}
		at++
	}
}

func passByte(b []byte, at int, c byte) int {
	if at < len(b) && b[at] == c {
		return at + 1
	}
	return -1
}

func passWord(b []byte, at int, word string) int {
	if len(b)-at >= len(word) && string(b[at:at+len(word)]) == word {
		return at + len(word)
	}
	return -1
}

func passString(b []byte, at int) int {
	if at >= len(b) || b[at] != '"' {
		return -1
	}
	at++
	for {
		if at = passPlain(b, at); at >= len(b) {
			return -1
		}
		switch b[at] {
		case '"':
			return at + 1
		case '\\':
			if at = passEscape(b, at+1); at < 0 {
				return -1
			}
		default: // a control character
			return -1
		}
	}
}

// passPlain returns the position of the first byte with a special meaning in a string: a
// quote, a backslash or a control character. It checks eight bytes at a time: x-n borrows
// into the highest bit of each byte below n. A borrow may spread into higher bytes, but
// the lowest hit is right.
func passPlain(b []byte, at int) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	for ; at+8 <= len(b); at += 8 {
		x := binary.LittleEndian.Uint64(b[at:])
		quote, slash := x^ones*'"', x^ones*'\\'
		found := ((x - ones*' ') &^ x) | ((quote - ones) &^ quote) | ((slash - ones) &^ slash)
		if found &= highs; found != 0 {
			return at + bits.TrailingZeros64(found)/8
		}
	}
	for ; at < len(b); at++ {
		if c := b[at]; c == '"' || c == '\\' || c < ' ' {
			break
		}
	}
	return at
}

// passEscape skips what follows a backslash.
func passEscape(b []byte, at int) int {
	if at >= len(b) {
		return -1
	}
	switch b[at] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return at + 1
	case 'u':
		if _, ok := hex4(b, at+1); ok {
			return at + 5
		}
	}
	return -1
}

// hex4 reads four hex digits.
func hex4(b []byte, at int) (r rune, ok bool) {
	if len(b)-at < 4 {
		return 0, false
	}
	for _, c := range b[at : at+4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

func passDigits(b []byte, at int) int {
	for at < len(b) && b[at] >= '0' && b[at] <= '9' {
		at++
	}
	return at
}

func passNumber(b []byte, at int) int {
	if b[at] == '-' {
		at++
	}
	from := at
	if at = passDigits(b, at); at == from || b[from] == '0' && at > from+1 {
		return -1
	}
	if at < len(b) && b[at] == '.' {
		from = at + 1
		if at = passDigits(b, from); at == from {
			return -1
		}
	}
	if at < len(b) && b[at]|0x20 == 'e' {
		if at++; at < len(b) && (b[at] == '+' || b[at] == '-') {
			at++
		}
		from = at
		if at = passDigits(b, from); at == from {
			return -1
		}
	}
	return at
}

// quick reads values of known types. Once it gave up it is at the end: every value is
// empty, and objects and lists have no more members.
type quick struct {
	b      []byte
	at     int
	text   string // a copy of the first part of b; the strings in it share this memory
	spare  int    // bytes that strings with their own memory may still take
	values int    // members and elements read so far
	gaveUp bool
}

func (q *quick) giveUp() { q.gaveUp, q.at = true, len(q.b) }

// peek returns the next byte that is not white space; 0 at the end.
func (q *quick) peek() byte {
	if q.at = passSpace(q.b, q.at); q.at < len(q.b) {
		return q.b[q.at]
	}
	return 0
}

// open starts an object or a list and reports whether it is not empty.
func (q *quick) open(opening, closing byte) bool {
	if q.peek() != opening {
		q.giveUp()
		return false
	}
	q.at++
	if q.peek() == closing {
		q.at++
		return false
	}
	q.values++
	return true
}

// more moves to the next member or element, or behind the last one.
func (q *quick) more(closing byte) bool {
	switch q.peek() {
	case ',':
		q.at++
		q.values++
		return true
	case closing:
		q.at++
		return false
	}
	q.giveUp()
	return false
}

// once gives up if the member that was just read is unknown (bit 0) or was seen before in
// its object.
func (q *quick) once(seen *uint32, bit uint32) {
	if bit == 0 || *seen&bit != 0 {
		q.giveUp()
	}
	*seen |= bit
}

// name reads the name of a member; nil if it has escapes.
func (q *quick) name() []byte {
	if q.peek() != '"' {
		q.giveUp()
		return nil
	}
	begin := q.at + 1
	end := passPlain(q.b, begin)
	if end >= len(q.b) || q.b[end] != '"' {
		q.giveUp()
		return nil
	}
	if q.at = end + 1; q.peek() != ':' {
		q.giveUp()
		return nil
	}
	q.at++
	return q.b[begin:end]
}

// str reads a string.
func (q *quick) str() string {
	if q.peek() != '"' {
		q.giveUp()
		return ""
	}
	begin := q.at + 1
	end := passPlain(q.b, begin)
	if end < len(q.b) && q.b[end] == '"' {
		q.at = end + 1
		if end <= len(q.text) {
			return q.text[begin:end]
		}
		if q.spare -= end - begin; q.spare >= 0 {
			return string(q.b[begin:end])
		}
	} else if end = passString(q.b, q.at); end >= 0 {
		q.at = end
		if q.spare -= end - begin; q.spare >= 0 {
			return q.unescape(q.b[begin : end-1])
		}
	}
	q.giveUp()
	return ""
}

// unescape resolves escapes, which are known to be valid. It leaves surrogate pairs to
// encoding/json.
func (q *quick) unescape(b []byte) string {
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		c := b[i]
		if c == '\\' {
			i++
			switch c = b[i]; c {
			case 'b':
				c = '\b'
			case 'f':
				c = '\f'
			case 'n':
				c = '\n'
			case 'r':
				c = '\r'
			case 't':
				c = '\t'
			case 'u':
				r, _ := hex4(b, i+1)
				if r >= 0xd800 && r < 0xe000 {
					q.giveUp()
					return ""
				}
				out = utf8.AppendRune(out, r)
				i += 4
				continue
			}
		}
		out = append(out, c)
	}
	return string(out)
}

// number reads an integer.
func (q *quick) number() int64 {
	c := q.peek()
	begin := q.at
	if c == '-' {
		begin++
	}
	end := passDigits(q.b, begin)
	if end == begin || end-begin > 18 || q.b[begin] == '0' && end > begin+1 {
		q.giveUp()
		return 0
	}
	var n int64
	for _, d := range q.b[begin:end] {
		n = 10*n + int64(d-'0')
	}
	if c == '-' {
		n = -n
	}
	q.at = end // what follows must be a comma or the end of the object
	return n
}

// raw skips any value and returns its bytes.
func (q *quick) raw(room int) []byte {
	q.peek()
	begin := q.at
	end := passValue(q.b, begin, room)
	if end < 0 {
		q.giveUp()
		return nil
	}
	q.at = end
	return q.b[begin:end]
}
