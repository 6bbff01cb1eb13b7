// Package copyrows reads rows from Postgres in the binary form of COPY, and decodes only the fields that are asked for: a
// verification hashes the bytes of a row, and looks at few of its fields.
package copyrows

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// blockBytes is the size of the blocks in which rows are read, and blocks how many of them
	// wait: reading continues while rows are hashed.
	blockBytes = 256 << 10
	blocks     = 4
	// MaxRow bounds a row, in bytes; a recorder writes none of a tenth of it.
	MaxRow = 64 << 20
	// MaxWidth bounds the fields of a row.
	MaxWidth = 36
	// header is the beginning of a binary COPY.
	header = "PGCOPY\n\xff\r\n\x00"
)

// Row is a row as COPY returns it. It is valid until the next one.
type Row struct {
	b  []byte            // all fields, each after its length
	at [MaxWidth + 1]int // offsets of the lengths, and the end of the last field
}

// Null reports whether a field is NULL.
func (r *Row) Null(i int) bool { return r.b[r.at[i]] == 0xff } // a length of -1; no other is negative

// Field returns the bytes of a field; nil for NULL.
func (r *Row) Field(i int) []byte {
	if r.Null(i) {
		return nil
	}
	return r.b[r.at[i]+4 : r.at[i+1]]
}

// Fields returns the fields from one up to another, each after its length.
func (r *Row) Fields(from, to int) []byte { return r.b[r.at[from]:r.at[to]] }

// Int8 returns a bigint, or a timestamptz as Postgres counts; 0 for anything else.
func (r *Row) Int8(i int) int64 {
	if f := r.Field(i); len(f) == 8 {
		return int64(binary.BigEndian.Uint64(f)) //nolint:gosec // two's complement
	}
	return 0
}

// Int4 returns an integer; 0 for anything else.
func (r *Row) Int4(i int) int32 {
	if f := r.Field(i); len(f) == 4 {
		return int32(binary.BigEndian.Uint32(f)) //nolint:gosec // two's complement
	}
	return 0
}

// Parse parses a row with so many fields at the beginning of b, and returns its length; 0 if b ends before the row
// does, -1 after the last row.
func (r *Row) Parse(b []byte, width int) (int, error) {
	if len(b) < 2 {
		return 0, nil
	}
	switch n := int(int16(binary.BigEndian.Uint16(b))); n { //nolint:gosec // two's complement
	case -1:
		return -1, nil
	case width:
	default:
		return 0, fmt.Errorf("the database sent a row of %d columns instead of %d", n, width)
	}
	b = b[2:]
	r.b = b
	at := 0
	for i := range width {
		r.at[i] = at
		if len(b)-at < 4 {
			return 0, nil
		}
		n := int(int32(binary.BigEndian.Uint32(b[at:]))) //nolint:gosec // two's complement
		at += 4
		switch {
		case n == -1:
		case n < 0 || n > MaxRow:
			return 0, fmt.Errorf("the database sent a field of %d bytes", n)
		case n > len(b)-at:
			return 0, nil
		default:
			at += n
		}
	}
	r.at[width] = at
	return 2 + at, nil
}

// Each parses rows that are whole, as Handler.Block got them.
func Each(rows []byte, width int, fn func(*Row) error) error {
	var r Row
	for len(rows) > 0 {
		n, err := r.Parse(rows, width)
		if err == nil && n <= 0 {
			err = errors.New("a row has no end")
		}
		if err == nil {
			err = fn(&r)
		}
		if err != nil {
			return err
		}
		rows = rows[n:]
	}
	return nil
}

// Handler takes the rows of a COPY, in one goroutine.
type Handler struct {
	Row   func(*Row) error   // called for each row
	Block func([]byte) error // if not nil, then called with the same rows again, as they were sent
}

// reader parses rows from blocks of a COPY.
type reader struct {
	width   int
	started bool
	ended   bool
	left    []byte // an incomplete row at the end of the last block
	row     Row
}

// feed handles the rows that the next block completes.
func (p *reader) feed(block []byte, h Handler) error {
	b := block
	if len(p.left) > 0 {
		p.left = append(p.left, block...)
		b = p.left
	}
	if !p.started {
		const fixed = len(header) + 8 // flags, and the length of the extension
		if len(b) < fixed {
			p.left = append(p.left[:0], b...)
			return nil
		}
		if !bytes.HasPrefix(b, []byte(header)) || binary.BigEndian.Uint32(b[fixed-4:]) != 0 {
			return errors.New("the database did not send a binary COPY")
		}
		b, p.started = b[fixed:], true
	}
	rows := b
	for {
		n, err := p.row.Parse(b, p.width)
		if err != nil {
			return err
		}
		if n <= 0 {
			p.ended = n < 0
			break
		}
		if err := h.Row(&p.row); err != nil {
			return err
		}
		b = b[n:]
	}
	if whole := rows[:len(rows)-len(b)]; h.Block != nil && len(whole) > 0 {
		if err := h.Block(whole); err != nil {
			return err
		}
	}
	if len(b) > MaxRow {
		return fmt.Errorf("the database sent a row of more than %d bytes", MaxRow)
	}
	p.left = append(p.left[:0:cap(p.left)], b...)
	return nil
}

// blockWriter collects what COPY sends into blocks.
type blockWriter struct {
	full chan<- []byte
	free <-chan []byte
	stop <-chan struct{} // the receiver gave up
	b    []byte
}

var errStopped = errors.New("stopped")

// Write is called by the connection.
func (w *blockWriter) Write(p []byte) (int, error) {
	if len(w.b)+len(p) > blockBytes && len(w.b) > 0 {
		if err := w.flush(); err != nil {
			return 0, err
		}
	}
	w.b = append(w.b, p...)
	return len(p), nil
}

func (w *blockWriter) flush() error {
	select {
	case w.full <- w.b:
	case <-w.stop:
		return errStopped
	}
	select {
	case b := <-w.free:
		w.b = b[:0]
	case <-w.stop:
		return errStopped
	}
	return nil
}

var _ io.Writer = (*blockWriter)(nil)

// Read runs COPY (query) TO STDOUT. The query has so many columns, at most [MaxWidth].
func Read(ctx context.Context, conn *pgconn.PgConn, query string, width int, h Handler) error {
	full, free, stop := make(chan []byte, blocks), make(chan []byte, blocks+1), make(chan struct{})
	for range blocks {
		free <- make([]byte, 0, blockBytes)
	}
	looked := make(chan error, 1)
	go func() {
		r := reader{width: width}
		var err error
		for b := range full {
			if err == nil {
				if err = r.feed(b, h); err != nil {
					close(stop)
				}
			}
			free <- b // never blocks: there is room for all blocks
		}
		if err == nil && !r.ended {
			err = errors.New("the rows ended before the end of the COPY")
		}
		looked <- err
	}()
	w := &blockWriter{full: full, free: free, stop: stop, b: make([]byte, 0, blockBytes)}
	_, err := conn.CopyTo(ctx, w, "COPY ("+query+") TO STDOUT (FORMAT binary)")
	if err == nil {
		err = w.flush()
	}
	close(full)
	if lerr := <-looked; lerr != nil && (err == nil || errors.Is(err, errStopped)) {
		err = lerr
	}
	return err
}
