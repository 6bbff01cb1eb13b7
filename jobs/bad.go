package jobs

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"unicode/utf8"

	"github.com/batchyard/batchyard/task"
)

// BadLines collects the invalid lines of a file in another file, which is created with the first of
// them. A line of it is a JSON object with the line's number, what is wrong, and its text.
type BadLines struct {
	Path string // empty: they are only skipped

	f *os.File
	w *bufio.Writer
}

// badLine is a line of the file of invalid lines.
type badLine struct {
	Line    int    `json:"line"`
	Field   string `json:"field,omitempty"`
	Problem string `json:"problem"`
	Remedy  string `json:"remedy,omitempty"`
	Text    string `json:"text,omitempty"` // missing if it is too long, or not UTF-8
}

func (b *BadLines) add(l lineAt, err error) error {
	if b.Path == "" {
		return nil // they are only skipped
	}
	if b.f == nil {
		f, err := os.Create(b.Path)
		if err != nil {
			return fmt.Errorf("writing the invalid lines: %w", err)
		}
		b.f, b.w = f, bufio.NewWriter(f)
	}
	var fe *task.FieldError
	if !errors.As(err, &fe) {
		fe = &task.FieldError{Problem: err.Error()}
	}
	out := badLine{Line: l.number, Field: fe.Field, Problem: fe.Problem, Remedy: fe.Remedy}
	if utf8.Valid(l.text) {
		out.Text = string(l.text)
	}
	e := json.NewEncoder(b.w)
	e.SetEscapeHTML(false)
	if err := e.Encode(out); err != nil {
		return fmt.Errorf("writing the invalid lines to %s: %w", b.Path, err)
	}
	return nil
}

func (b *BadLines) close() error {
	if b.f == nil {
		return nil
	}
	if err := errors.Join(b.w.Flush(), b.f.Close()); err != nil {
		return fmt.Errorf("writing the invalid lines to %s: %w", b.Path, err)
	}
	b.f = nil
	return nil
}
