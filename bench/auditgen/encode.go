package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// rows encodes rows of a table in the binary COPY format. It avoids an interface
// value per field, because there are fourteen million rows.
type rows struct {
	table, columns string
	width          int
	b              []byte
	n              int64
	at             int // where the fields of the row begin
}

var postgresEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()

func newRows(table string, width int, columns string) *rows {
	r := &rows{table: table, columns: columns, width: width}
	r.reset()
	return r
}

func (r *rows) reset() {
	r.b = append(r.b[:0], "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"...)
	r.n = 0
}

func (r *rows) begin() {
	r.b = binary.BigEndian.AppendUint16(r.b, uint16(r.width))
	r.n++
	r.at = len(r.b)
}

// fields returns the fields of the row so far.
func (r *rows) fields() []byte { return r.b[r.at:] }

func (r *rows) text(s ...string) {
	for _, s := range s {
		if s == "" {
			r.b = append(r.b, 0xff, 0xff, 0xff, 0xff)
			continue
		}
		r.b = append(binary.BigEndian.AppendUint32(r.b, uint32(len(s))), s...)
	}
}

func (r *rows) int2(n int16) {
	r.b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint32(r.b, 2), uint16(n))
}

func (r *rows) int4(n int) {
	r.b = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(r.b, 4), uint32(n))
}

func (r *rows) int8(n int64) {
	r.b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(r.b, 8), uint64(n))
}

func (r *rows) times(ts ...time.Time) {
	for _, t := range ts {
		if t.IsZero() {
			r.b = append(r.b, 0xff, 0xff, 0xff, 0xff)
			continue
		}
		r.int8(t.UnixMicro() - postgresEpoch)
	}
}

// flush writes the buffered rows if they are larger than the given number of bytes.
func (r *rows) flush(ctx context.Context, conn *pgx.Conn, above int) error {
	if r.n == 0 || len(r.b) <= above {
		return nil
	}
	r.b = append(r.b, 0xff, 0xff)
	sql := fmt.Sprintf("COPY %s (%s) FROM STDIN (FORMAT binary)", r.table, r.columns)
	if _, err := conn.PgConn().CopyFrom(ctx, bytes.NewReader(r.b), sql); err != nil {
		return fmt.Errorf("writing %d rows to %s: %w", r.n, r.table, err)
	}
	r.reset()
	return nil
}
