package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/batchyard/batchyard/internal/text"
)

// Table prints rows in aligned columns. It holds rows until Flush, so a long table
// should flush every [FlushEvery] rows.
type Table struct{ w *tabwriter.Writer }

// NewTable returns a table with these column headers, or without a header line.
func NewTable(w io.Writer, headers ...string) *Table {
	t := &Table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	if len(headers) > 0 {
		t.Row(headers...)
	}
	return t
}

// Row adds a row. An empty cell becomes a dash, so that scripts can count columns.
func (t *Table) Row(cells ...string) {
	for i, cell := range cells {
		if cell == "" {
			cell = "-"
		}
		cells[i] = Plain(cell)
	}
	_, _ = fmt.Fprintln(t.w, strings.Join(cells, "\t")) // memory only, until Flush
}

// Flush writes the rows that were added since the last call.
func (t *Table) Flush() error {
	if err := t.w.Flush(); err != nil {
		return fmt.Errorf("writing the table: %w", err)
	}
	return nil
}

// Plain returns a text without control characters: much of what is shown comes from
// strangers, and must not steer the terminal.
func Plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' || unicode.Is(unicode.Bidi_Control, r) {
			return '·'
		}
		return r
	}, strings.ToValidUTF8(s, "·"))
}

// Short cuts a text to at most so many characters.
func Short(s string, most int) string {
	r := []rune(s)
	if len(r) <= most {
		return s
	}
	return string(r[:most-1]) + "…"
}

// Ago says how long ago something was: "3s ago". A time in the future is "in 3s".
func Ago(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	d := now.Sub(t)
	if d < 0 {
		return "in " + span(-d)
	}
	return span(d) + " ago"
}

// span prints a duration in its largest useful unit.
func span(d time.Duration) string {
	switch {
	case d < time.Second:
		return strconv.FormatInt(d.Milliseconds(), 10) + "ms"
	case d < 2*time.Minute:
		return strconv.FormatInt(int64(d/time.Second), 10) + "s"
	case d < 2*time.Hour:
		return strconv.FormatInt(int64(d/time.Minute), 10) + "m"
	case d < 48*time.Hour:
		return strconv.FormatInt(int64(d/time.Hour), 10) + "h"
	}
	return strconv.FormatInt(int64(d/(24*time.Hour)), 10) + "d"
}

// Counted prints a number and a noun: 1 row, 2 rows.
func Counted[N int | int64](n N, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// Size prints a number of bytes: 1.5 KiB.
func Size(n int64) string {
	const unit = 1024
	if n < unit {
		return strconv.FormatInt(n, 10) + " B"
	}
	v, i := float64(n)/unit, 0
	for v >= unit && i < 3 {
		v, i = v/unit, i+1
	}
	return strconv.FormatFloat(v, 'f', 1, 64) + " " + []string{"KiB", "MiB", "GiB", "TiB"}[i]
}

// Or joins the values that a flag accepts: a, b or c.
func Or(values []string) string {
	last := len(values) - 1
	if last < 1 {
		return strings.Join(values, "")
	}
	return strings.Join(values[:last], ", ") + " or " + values[last]
}

// PrintJSON writes one JSON value on one line of standard output.
func (c *Env) PrintJSON(v any) error {
	e := json.NewEncoder(text.JSONLines(c.Out))
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("writing JSON: %w", err)
	}
	return nil
}

// List returns a slice that is never nil: JSON has an empty array then, since jq
// cannot iterate over null.
func List[T any](of []T) []T {
	if of == nil {
		return []T{}
	}
	return of
}

// Printf writes to standard output, for people.
func (c *Env) Printf(format string, args ...any) {
	_, _ = fmt.Fprintf(c.Out, format, args...) // without standard output there is no one to tell
}

// IsText reports whether bytes are text that a terminal can show safely.
func IsText(b []byte) bool {
	if !utf8.Valid(b) {
		return false
	}
	for _, r := range string(b) {
		if r != '\n' && r != '\t' && r != '\r' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)) {
			return false
		}
	}
	return true
}

// FlushEvery is how many rows a long table collects before it is flushed.
const FlushEvery = 500
