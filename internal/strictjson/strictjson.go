// Package strictjson checks JSON, in a single pass, more strictly than encoding/json: it must
// be UTF-8, and its nesting is limited, because deep nesting can exhaust the stack of a
// parser. [Check] accepts all other JSON. [CheckUnambiguous] also refuses what two readers
// may take for different things: a name that an object has twice, and half of a surrogate
// pair.
//
// The Skip functions take a position in valid UTF-8 and return the position after what they
// skip, or -1 if it is not there.
package strictjson

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"unicode/utf8"
)

// Valid reports whether b passes [Check].
func Valid(b []byte, most int) bool {
	return utf8.Valid(b) && isJSON(b, most)
}

// SkipSpace returns the position of the first byte that is not white space.
func SkipSpace(b []byte, at int) int {
	for at < len(b) && (b[at] == ' ' || b[at] == '\n' || b[at] == '\t' || b[at] == '\r') {
		at++
	}
	return at
}

// SkipValue skips one value with at most room nested arrays and objects.
func SkipValue(b []byte, at, room int) int { return skipValue(b, at, room, nil) }

// skipValue is SkipValue that also refuses what u finds ambiguous, unless u is nil.
func skipValue(b []byte, at, room int, u *unambiguous) int {
	if at >= len(b) {
		return -1
	}
	switch c := b[at]; {
	case c == '"':
		return skipString(b, at, u)
	case c == '{':
		if u != nil {
			return u.skipObject(b, at+1, room-1)
		}
		return skipObject(b, at+1, room-1)
	case c == '[':
		return skipArray(b, at+1, room-1, u)
	case c == '-' || c >= '0' && c <= '9':
		return skipNumber(b, at)
	case c == 't':
		return SkipWord(b, at, "true")
	case c == 'f':
		return SkipWord(b, at, "false")
	case c == 'n':
		return SkipWord(b, at, "null")
	}
	return -1
}

func skipObject(b []byte, at, room int) int {
	if room < 0 {
		return -1
	}
	if at = SkipSpace(b, at); at < len(b) && b[at] == '}' {
		return at + 1
	}
	for {
		if at = SkipString(b, SkipSpace(b, at)); at < 0 {
			return -1
		}
		if at = SkipSpace(b, at); at >= len(b) || b[at] != ':' {
			return -1
		}
		if at = SkipValue(b, SkipSpace(b, at+1), room); at < 0 {
			return -1
		}
		if at = SkipSpace(b, at); at >= len(b) || b[at] != ',' {
			return skipByte(b, at, '}')
		}
		at++
	}
}

func skipArray(b []byte, at, room int, u *unambiguous) int {
	if room < 0 {
		return -1
	}
	if at = SkipSpace(b, at); at < len(b) && b[at] == ']' {
		return at + 1
	}
	for {
		if at = skipValue(b, SkipSpace(b, at), room, u); at < 0 {
			return -1
		}
		if at = SkipSpace(b, at); at >= len(b) || b[at] != ',' {
			return skipByte(b, at, ']')
		}
		at++
	}
}

func skipByte(b []byte, at int, c byte) int {
	if at < len(b) && b[at] == c {
		return at + 1
	}
	return -1
}

// SkipWord skips a word, such as true.
func SkipWord(b []byte, at int, word string) int {
	if len(b)-at >= len(word) && string(b[at:at+len(word)]) == word {
		return at + len(word)
	}
	return -1
}

// SkipString skips a string with its quotes.
func SkipString(b []byte, at int) int { return skipString(b, at, nil) }

func skipString(b []byte, at int, u *unambiguous) int {
	if at >= len(b) || b[at] != '"' {
		return -1
	}
	at++
	for {
		if at = SkipPlain(b, at); at >= len(b) {
			return -1
		}
		switch b[at] {
		case '"':
			return at + 1
		case '\\':
			if u != nil && !u.wholePair(b, at) {
				return -1
			}
			if at = skipEscape(b, at+1); at < 0 {
				return -1
			}
		default: // a control character
			return -1
		}
	}
}

// SkipPlain returns the position of the first byte with a special meaning in a string: a
// quote, a backslash or a control character. It checks eight bytes at a time: x-n borrows
// into the highest bit of each byte below n. A borrow may spread into higher bytes, but
// the lowest hit is right.
func SkipPlain(b []byte, at int) int {
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

// skipEscape skips what follows a backslash.
func skipEscape(b []byte, at int) int {
	if at >= len(b) {
		return -1
	}
	switch b[at] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return at + 1
	case 'u':
		if _, ok := Hex4(b, at+1); ok {
			return at + 5
		}
	}
	return -1
}

// Hex4 reads four hex digits.
func Hex4(b []byte, at int) (r rune, ok bool) {
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

// SkipDigits returns the position of the first byte that is not a digit.
func SkipDigits(b []byte, at int) int {
	for at < len(b) && b[at] >= '0' && b[at] <= '9' {
		at++
	}
	return at
}

func skipNumber(b []byte, at int) int {
	if b[at] == '-' {
		at++
	}
	from := at
	if at = SkipDigits(b, at); at == from || b[from] == '0' && at > from+1 {
		return -1
	}
	if at < len(b) && b[at] == '.' {
		from = at + 1
		if at = SkipDigits(b, from); at == from {
			return -1
		}
	}
	if at < len(b) && b[at]|0x20 == 'e' {
		if at++; at < len(b) && (b[at] == '+' || b[at] == '-') {
			at++
		}
		from = at
		if at = SkipDigits(b, from); at == from {
			return -1
		}
	}
	return at
}

// Check returns why b is not valid UTF-8, not valid JSON, or nested deeper than most.
func Check(b []byte, most int) error {
	if Valid(b, most) {
		return nil
	}
	return CheckSlowly(b, most)
}

// CheckSlowly is Check without the fast path; it explains what is wrong.
func CheckSlowly(b []byte, most int) error {
	if err := CheckDepth(b, most); err != nil {
		return err
	}
	if !json.Valid(b) {
		return errors.New("it is not valid JSON")
	}
	return nil
}

// CheckDepth is Check for callers that parse the text anyway: it accepts invalid
// JSON.
func CheckDepth(b []byte, most int) error {
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
