package wire

import (
	"unicode/utf8"

	"github.com/batchyard/batchyard/internal/strictjson"
)

// A fast JSON reader that reads tasks and results, which arrive thousands of times a
// second, in a single pass. encoding/json reads the same text several times and uses
// reflection. Whatever the fast reader does not recognise makes it give up, and then
// encoding/json reads the text from the start. So the fast reader only affects speed, and
// never produces an error. Fuzzing compares the two.

// fastReader reads values of known types. Once it gave up it is at the end: every value is
// empty, and objects and lists have no more members.
type fastReader struct {
	b      []byte
	at     int
	text   string // a copy of the first part of b; the strings in it share this memory
	spare  int    // bytes that strings with their own memory may still take
	values int    // members and elements read so far
	gaveUp bool
}

func (q *fastReader) giveUp() { q.gaveUp, q.at = true, len(q.b) }

// peek returns the next byte that is not white space; 0 at the end.
func (q *fastReader) peek() byte {
	if q.at = strictjson.SkipSpace(q.b, q.at); q.at < len(q.b) {
		return q.b[q.at]
	}
	return 0
}

// open starts an object or a list and reports whether it is not empty.
func (q *fastReader) open(opening, closing byte) bool {
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
func (q *fastReader) more(closing byte) bool {
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
func (q *fastReader) once(seen *uint32, bit uint32) {
	if bit == 0 || *seen&bit != 0 {
		q.giveUp()
	}
	*seen |= bit
}

// name reads the name of a member; nil if it has escapes.
func (q *fastReader) name() []byte {
	if q.peek() != '"' {
		q.giveUp()
		return nil
	}
	begin := q.at + 1
	end := strictjson.SkipPlain(q.b, begin)
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
func (q *fastReader) str() string {
	if q.peek() != '"' {
		q.giveUp()
		return ""
	}
	begin := q.at + 1
	end := strictjson.SkipPlain(q.b, begin)
	if end < len(q.b) && q.b[end] == '"' {
		q.at = end + 1
		if end <= len(q.text) {
			return q.text[begin:end]
		}
		if q.spare -= end - begin; q.spare >= 0 {
			return string(q.b[begin:end])
		}
	} else if end = strictjson.SkipString(q.b, q.at); end >= 0 {
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
func (q *fastReader) unescape(b []byte) string {
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
				r, _ := strictjson.Hex4(b, i+1)
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
func (q *fastReader) number() int64 {
	c := q.peek()
	begin := q.at
	if c == '-' {
		begin++
	}
	end := strictjson.SkipDigits(q.b, begin)
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
func (q *fastReader) raw(room int) []byte {
	q.peek()
	begin := q.at
	end := strictjson.SkipValue(q.b, begin, room)
	if end < 0 {
		q.giveUp()
		return nil
	}
	q.at = end
	return q.b[begin:end]
}
