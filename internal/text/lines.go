package text

import (
	"bytes"
	"io"
)

// breaks are the characters outside of ASCII at which programs end a line, such as Python's
// splitlines and Node's readline: next line, line separator and paragraph separator. Those of
// ASCII are control characters, which JSON escapes anyway.
var breaks = [...]struct{ char, escaped string }{
	{"\u0085", `\u0085`}, {"\u2028", `\u2028`}, {"\u2029", `\u2029`},
}

// JSONLine returns JSON with these characters escaped, so that every program takes it for one
// line. It means the same: outside of strings JSON has no such characters.
func JSONLine(b []byte) []byte {
	for _, c := range breaks {
		if bytes.Contains(b, []byte(c.char)) {
			b = bytes.ReplaceAll(b, []byte(c.char), []byte(c.escaped))
		}
	}
	return b
}

// JSONLines returns a writer that applies [JSONLine] to what is written to w. A call of Write
// must end with a whole character, as those of a [json.Encoder] do.
func JSONLines(w io.Writer) io.Writer { return lines{w} }

type lines struct{ w io.Writer }

func (l lines) Write(b []byte) (int, error) {
	out := JSONLine(b)
	n, err := l.w.Write(out)
	if err == nil && n == len(out) {
		return len(b), nil
	}
	return min(n, len(b)), err
}
