package fleet

import "encoding/json"

// The functions in this file walk JSON that json.Valid has accepted. On anything
// else they may stop early but stay inside the slice. Whatever the nesting, they
// don't recurse, and they only allocate for keys with escapes.

// eachField calls f for each key (unquoted) and value of the object at the start
// of v, until f returns false.
func eachField(v []byte, f func(key, value []byte) bool) {
	i := space(v, 1)
	for i < len(v) && v[i] == '"' {
		end := skip(v, i)
		key := unquote(v[i:end])
		i = space(v, end)
		i = space(v, i+1) // past the colon
		if i >= len(v) {
			return
		}
		end = skip(v, i)
		if !f(key, v[i:end]) {
			return
		}
		i = space(v, end)
		if i < len(v) && v[i] == ',' {
			i = space(v, i+1)
		}
	}
}

// eachElement calls f for each element of the array at the start of v, until f
// returns false.
func eachElement(v []byte, f func(element []byte) bool) {
	i := space(v, 1)
	for i < len(v) && v[i] != ']' {
		end := skip(v, i)
		if end == i || !f(v[i:end]) {
			return
		}
		i = space(v, end)
		if i < len(v) && v[i] == ',' {
			i = space(v, i+1)
		}
	}
}

// skip returns the end of the value that starts at i.
func skip(v []byte, i int) int {
	switch v[i] {
	case '"':
		return skipString(v, i)
	case '{', '[':
		depth := 0
		for i < len(v) {
			switch v[i] {
			case '"':
				i = skipString(v, i)
				continue
			case '{', '[':
				depth++
			case '}', ']':
				depth--
				if depth == 0 {
					return i + 1
				}
			}
			i++
		}
		return i
	}
	for i < len(v) {
		switch v[i] {
		case ',', '}', ']', ':', ' ', '\t', '\n', '\r':
			return i
		}
		i++
	}
	return i
}

func skipString(v []byte, i int) int {
	for i++; i < len(v); i++ {
		switch v[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(v)
}

func space(v []byte, i int) int {
	for i < len(v) && (v[i] == ' ' || v[i] == '\t' || v[i] == '\n' || v[i] == '\r') {
		i++
	}
	return i
}

// unquote returns the text of a JSON string. It only copies if there are escapes.
func unquote(v []byte) []byte {
	for i := range v {
		if v[i] == '\\' {
			var text string
			if json.Unmarshal(v, &text) != nil {
				return nil
			}
			return []byte(text)
		}
	}
	if len(v) < 2 {
		return nil
	}
	return v[1 : len(v)-1]
}
