package task

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"unicode/utf8"
)

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
