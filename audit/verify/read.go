package verify

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/internal/pg"
)

const (
	// blockBytes is the size of the blocks in which rows are read, and blocks how many of them
	// wait: reading continues while rows are hashed.
	blockBytes = 256 << 10
	blocks     = 8
	// maxRowBytes bounds a row; a recorder writes none of a hundredth of it.
	maxRowBytes = 64 << 20
	// copyHeader is the beginning of a binary COPY.
	copyHeader = "PGCOPY\n\xff\r\n\x00"
)

// rawRow is a row as COPY returns it. It is valid until the next one.
type rawRow struct {
	b   []byte                  // all fields, each after its length
	at  [audit.RowWidth + 1]int // offsets of the lengths, and the end of the last field
	nul [audit.RowWidth]bool
}

// field returns the bytes of a column; nil for NULL.
func (r *rawRow) field(i int) []byte {
	if r.nul[i] {
		return nil
	}
	return r.b[r.at[i]+4 : r.at[i+1]]
}

// covered returns what the row's hash covers, besides prev_hash.
func (r *rawRow) covered() []byte { return r.b[:r.at[audit.ColPrev]] }

func (r *rawRow) int8(i int) int64 {
	if f := r.field(i); len(f) == 8 {
		return int64(binary.BigEndian.Uint64(f))
	}
	return 0
}

func (r *rawRow) int4(i int) int32 {
	if f := r.field(i); len(f) == 4 {
		return int32(binary.BigEndian.Uint32(f))
	}
	return 0
}

// hash returns the hash in a column.
func (r *rawRow) hash(i int) (h audit.Hash, ok bool) {
	f := r.field(i)
	if len(f) != len(h) {
		return h, false
	}
	return audit.Hash(f), true
}

func (r *rawRow) position() audit.Position {
	return audit.Position{Offset: r.int8(audit.ColOffset), Index: r.int4(audit.ColIndex)}
}

// time returns the time in a column; zero if no recorder writes such a time, as infinity.
func (r *rawRow) time(i int) time.Time {
	const most = 253402300800000000 // the year 10000, which JSON has no form for
	if at := r.int8(i); at > -most && at < most-pg.Epoch {
		return time.UnixMicro(at + pg.Epoch).UTC()
	}
	return time.Time{}
}

// ref names the row.
func (r *rawRow) ref() *RowRef {
	at := audit.TopicPartition{Topic: string(r.field(audit.ColTopic)), Partition: r.int4(audit.ColPartition)}
	return &RowRef{
		Position: at.At(r.position()).String(), Seq: r.int8(audit.ColSeq), Time: r.time(audit.ColTime),
		Tenant: string(r.field(audit.ColTenant)), Action: string(r.field(audit.ColAction)), Task: string(r.field(audit.ColTask)),
	}
}

// parse parses a row at the beginning of b and returns its length; 0 if b ends before the row does,
// -1 after the last row.
func (r *rawRow) parse(b []byte) (int, error) {
	if len(b) < 2 {
		return 0, nil
	}
	switch n := int16(binary.BigEndian.Uint16(b)); n {
	case -1:
		return -1, nil
	case audit.RowWidth:
	default:
		return 0, fmt.Errorf("the database sent a row of %d columns instead of %d", n, audit.RowWidth)
	}
	r.b = b[2:]
	at := 0
	for i := range audit.RowWidth {
		r.at[i] = at
		if len(r.b)-at < 4 {
			return 0, nil
		}
		n := int(int32(binary.BigEndian.Uint32(r.b[at:])))
		at += 4
		r.nul[i] = n == -1
		switch {
		case n == -1:
		case n < 0 || n > maxRowBytes:
			return 0, fmt.Errorf("the database sent a field of %d bytes", n)
		case n > len(r.b)-at:
			return 0, nil
		default:
			at += n
		}
	}
	r.at[audit.RowWidth] = at
	return 2 + at, nil
}

// rowReader parses rows from blocks of a COPY.
type rowReader struct {
	started bool
	ended   bool
	left    []byte // an incomplete row at the end of the last block
	row     rawRow
}

// feed calls fn for each row that the next block completes.
func (p *rowReader) feed(block []byte, fn func(*rawRow) error) error {
	b := block
	if len(p.left) > 0 {
		p.left = append(p.left, block...)
		b = p.left
	}
	if !p.started {
		const fixed = len(copyHeader) + 8 // flags, and the length of the extension
		if len(b) < fixed {
			p.left = append(p.left[:0], b...)
			return nil
		}
		if !bytes.HasPrefix(b, []byte(copyHeader)) || binary.BigEndian.Uint32(b[fixed-4:]) != 0 {
			return errors.New("the database did not send a binary COPY")
		}
		b, p.started = b[fixed:], true
	}
	for {
		n, err := p.row.parse(b)
		if err != nil {
			return err
		}
		if n <= 0 {
			p.ended = n < 0
			break
		}
		if err := fn(&p.row); err != nil {
			return err
		}
		b = b[n:]
	}
	if len(b) > maxRowBytes {
		return fmt.Errorf("the database sent a row of more than %d bytes", maxRowBytes)
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

// read reads the rows of a partition that match a condition.
func (v *verifier) read(ctx context.Context, p partitionTable, where string) error {
	sql := "COPY (SELECT " + audit.RowColumns + " FROM " + p.from(where) + ") TO STDOUT (FORMAT binary)"
	full, free, stop := make(chan []byte, blocks), make(chan []byte, blocks+1), make(chan struct{})
	for range blocks {
		free <- make([]byte, 0, blockBytes)
	}
	looked := make(chan error, 1)
	go func() {
		var r rowReader
		var err error
		for b := range full {
			if err == nil {
				if err = r.feed(b, v.take); err != nil {
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
	_, err := v.conn.PgConn().CopyTo(ctx, w, sql)
	if err == nil {
		err = w.flush()
	}
	close(full)
	if lerr := <-looked; lerr != nil && (err == nil || errors.Is(err, errStopped)) {
		err = lerr
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w", p.name, err)
	}
	v.progress(Progress{v.report.Rows, v.about})
	return nil
}
