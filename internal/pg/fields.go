package pg

import (
	"encoding/binary"
	"math"
	"time"
)

// maxKept is the capacity up to which a buffer is kept for the next use.
const maxKept = 16 << 20

// Fields encodes fields in the binary formats of Postgres: a length in four bytes, -1 for NULL,
// then the value. The zero value is ready for [Fields.ResetCopy] or [Fields.Reset].
type Fields struct{ B []byte }

// ResetCopy empties the buffer and begins a COPY … FROM STDIN (FORMAT binary).
func (f *Fields) ResetCopy() {
	const header = "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	f.Reset(len(header))
	copy(f.B, header)
}

// Reset makes the buffer n bytes long; their content is undefined.
func (f *Fields) Reset(n int) {
	if cap(f.B) < n || cap(f.B) > maxKept {
		f.B = make([]byte, n, 64<<10)
	}
	f.B = f.B[:n]
}

// EndCopy ends the COPY and returns all of it. The bytes are valid until the next reset.
func (f *Fields) EndCopy() []byte {
	f.B = append(f.B, 0xff, 0xff)
	return f.B
}

// Row begins a row of a COPY with n fields.
func (f *Fields) Row(n int) {
	f.B = binary.BigEndian.AppendUint16(f.B, uint16(n)) //nolint:gosec // a table has at most 1600 columns
}

func (f *Fields) length(n int) { f.B = binary.BigEndian.AppendUint32(f.B, uint32(int32(n))) }

// Null writes NULL.
func (f *Fields) Null() { f.length(-1) }

// Text writes a string, even if it is empty.
func (f *Fields) Text(s string) {
	f.length(len(s))
	f.B = append(f.B, s...)
}

// TextOrNull writes a string, or NULL if it is empty.
func (f *Fields) TextOrNull(s string) {
	if s == "" {
		f.Null()
		return
	}
	f.Text(s)
}

// BytesOrNull writes bytes, or NULL if there are none.
func (f *Fields) BytesOrNull(b []byte) {
	if len(b) == 0 {
		f.Null()
		return
	}
	f.length(len(b))
	f.B = append(f.B, b...)
}

// Int2 writes a smallint.
func (f *Fields) Int2(n int16) {
	f.length(2)
	f.B = binary.BigEndian.AppendUint16(f.B, uint16(n)) //nolint:gosec // two's complement
}

// Int4 writes an integer.
func (f *Fields) Int4(n int32) {
	f.length(4)
	f.B = binary.BigEndian.AppendUint32(f.B, uint32(n))
}

// Int4OrNull writes an integer, or NULL for 0.
func (f *Fields) Int4OrNull(n int32) {
	if n == 0 {
		f.Null()
		return
	}
	f.Int4(n)
}

// Int8 writes a bigint.
func (f *Fields) Int8(n int64) {
	f.length(8)
	f.B = binary.BigEndian.AppendUint64(f.B, uint64(n))
}

// Int8OrNull writes a bigint, or NULL for 0.
func (f *Fields) Int8OrNull(n int64) {
	if n == 0 {
		f.Null()
		return
	}
	f.Int8(n)
}

// Float8 writes a double precision.
func (f *Fields) Float8(v float64) {
	f.length(8)
	f.B = binary.BigEndian.AppendUint64(f.B, math.Float64bits(v))
}

// Time writes a timestamptz. Postgres keeps microseconds.
func (f *Fields) Time(t time.Time) { f.Int8(t.UnixMicro() - Epoch) }

// TimeOrNull writes a timestamptz, or NULL for the zero time.
func (f *Fields) TimeOrNull(t time.Time) {
	if t.IsZero() {
		f.Null()
		return
	}
	f.Time(t)
}
