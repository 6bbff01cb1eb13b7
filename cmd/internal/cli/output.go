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
)

// Table is rows in aligned columns. Rows are written when it is flushed, so
// whoever has many flushes now and then.
type Table struct{ w *tabwriter.Writer }

func NewTable(w io.Writer, headers ...string) *Table {
	t := &Table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	if len(headers) > 0 {
		t.Row(headers...)
	}
	return t
}

// Row adds a row. An empty cell becomes a dash, so that columns can be counted.
func (t *Table) Row(cells ...string) {
	for i, cell := range cells {
		if cell == "" {
			cell = "-"
		}
		cells[i] = Plain(cell)
	}
	_, _ = fmt.Fprintln(t.w, strings.Join(cells, "\t")) // it is kept in memory until flush
}

func (t *Table) Flush() error {
	if err := t.w.Flush(); err != nil {
		return fmt.Errorf("writing the table: %w", err)
	}
	return nil
}

// Plain is a text that cannot steer the terminal: what is shown was written by
// strangers.
func Plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' || unicode.Is(unicode.Bidi_Control, r) {
			return '·'
		}
		return r
	}, strings.ToValidUTF8(s, "·"))
}

// Short cuts a text that is to stand in a table.
func Short(s string, most int) string {
	r := []rune(s)
	if len(r) <= most {
		return s
	}
	return string(r[:most-1]) + "…"
}

// Ago says how long ago something was, as people say it.
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

// span is a duration with the precision that people want.
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

// Counted is how many of something there are: 1 row, 2 rows.
func Counted[N int | int64](n N, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// Size is a number of bytes for people.
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

// PrintJSON writes one object on one line.
func (c *Env) PrintJSON(v any) error {
	e := json.NewEncoder(c.Out)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("writing JSON: %w", err)
	}
	return nil
}

// List is a slice that JSON has as an array, also when it is empty: jq cannot
// iterate over null.
func List[T any](of []T) []T {
	if of == nil {
		return []T{}
	}
	return of
}

// Printf writes for people.
func (c *Env) Printf(format string, args ...any) {
	_, _ = fmt.Fprintf(c.Out, format, args...) // standard output is gone: nobody is there to be told
}

// IsText reports whether bytes can be shown as they are.
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

// FlushEvery is after how many rows a table that may be long is written.
const FlushEvery = 500
