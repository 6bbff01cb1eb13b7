package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/batchyard/batchyard/task"
)

// table is rows in aligned columns. Rows are written when it is flushed, so
// whoever has many flushes now and then.
type table struct{ w *tabwriter.Writer }

func newTable(w io.Writer, headers ...string) *table {
	t := &table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	if len(headers) > 0 {
		t.row(headers...)
	}
	return t
}

// row adds a row. An empty cell becomes a dash, so that columns can be counted.
func (t *table) row(cells ...string) {
	for i, cell := range cells {
		if cell == "" {
			cell = "-"
		}
		cells[i] = plain(cell)
	}
	_, _ = fmt.Fprintln(t.w, strings.Join(cells, "\t")) // it is kept in memory until flush
}

func (t *table) flush() error {
	if err := t.w.Flush(); err != nil {
		return fmt.Errorf("writing the table: %w", err)
	}
	return nil
}

// plain is a text that cannot steer the terminal: what is shown was written by
// strangers.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' || unicode.Is(unicode.Bidi_Control, r) {
			return '·'
		}
		return r
	}, strings.ToValidUTF8(s, "·"))
}

// short cuts a text that is to stand in a table.
func short(s string, most int) string {
	r := []rune(s)
	if len(r) <= most {
		return s
	}
	return string(r[:most-1]) + "…"
}

// ago says how long ago something was, as people say it.
func ago(t, now time.Time) string {
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

// counted is how many of something there are: 1 row, 2 rows.
func counted[N int | int64](n N, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// size is a number of bytes for people.
func size(n int64) string {
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

// printJSON writes one object on one line.
func (c *cli) printJSON(v any) error {
	e := json.NewEncoder(c.out)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("writing JSON: %w", err)
	}
	return nil
}

// list is a slice that JSON has as an array, also when it is empty: jq cannot
// iterate over null.
func list[T any](of []T) []T {
	if of == nil {
		return []T{}
	}
	return of
}

// printf writes for people.
func (c *cli) printf(format string, args ...any) {
	_, _ = fmt.Fprintf(c.out, format, args...) // standard output is gone: nobody is there to be told
}

// summary is how a job went.
type summary struct {
	Job      string             `json:"job_id"`
	Total    int                `json:"tasks"`
	ByState  map[task.State]int `json:"by_state"`
	ByDevice map[string]int     `json:"by_device,omitempty"`
	Missing  int                `json:"missing,omitempty"` // tasks without a result
	Output   string             `json:"output,omitempty"`
	Elapsed  time.Duration      `json:"-"`
	Seconds  float64            `json:"seconds"`
	Rate     float64            `json:"tasks_per_second"`
}

// finish fills in what follows from the rest.
func (s *summary) finish() {
	s.Seconds = s.Elapsed.Seconds()
	ended := 0
	for _, n := range s.ByState {
		ended += n
	}
	if s.Seconds > 0 {
		s.Rate = float64(ended) / s.Seconds
	}
}

// print writes the summary for people.
func (s *summary) print(w io.Writer) error {
	s.finish()
	t := newTable(w)
	t.row("job", s.Job)
	t.row("tasks", strconv.Itoa(s.Total))
	for _, state := range task.States {
		if n := s.ByState[state]; n > 0 {
			t.row("  "+string(state), strconv.Itoa(n))
		}
	}
	if s.Missing > 0 {
		t.row("  without a result", strconv.Itoa(s.Missing))
	}
	if len(s.ByDevice) > 0 {
		t.row("devices", strconv.Itoa(len(s.ByDevice)))
		devices := make([]string, 0, len(s.ByDevice))
		for d := range s.ByDevice {
			devices = append(devices, d)
		}
		slices.Sort(devices)
		const most = 30
		for _, d := range devices[:min(len(devices), most)] {
			t.row("  "+d, strconv.Itoa(s.ByDevice[d]))
		}
		if n := len(devices) - most; n > 0 {
			t.row("  and more", strconv.Itoa(n))
		}
	}
	t.row("time", s.Elapsed.Round(time.Millisecond).String())
	t.row("rate", strconv.FormatFloat(s.Rate, 'f', 1, 64)+" tasks/s")
	if s.Output != "" {
		t.row("results", s.Output)
	}
	return t.flush()
}

// failed is an error unless every task succeeded.
func (s *summary) failed() error {
	if n := s.Total - s.ByState[task.Success]; n > 0 {
		return withCode(exitFailed, fmt.Errorf("%d of %s of job %s did not succeed", n, counted(s.Total, "task"), s.Job))
	}
	return nil
}
