package pg

import (
	"encoding/binary"
	"encoding/hex"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Encoding is the form in which rows of one table go to Postgres.
type Encoding int

// The encodings. An array of rows takes Postgres half the time to unpack that an array for each
// column takes. COPY is faster still, but cannot skip rows that exist already.
const (
	Copy        Encoding = iota // COPY … FROM STDIN (FORMAT binary)
	BinaryArray                 // one parameter: an array of a composite type, in binary
	TextArray                   // the same array as text, for connections without binary parameters
)

// ArrayEncoding returns the encoding of arrays for connections of the pool: [TextArray] if they
// are configured not to ask the server for the types of parameters (default_query_exec_mode), as
// is necessary behind some poolers.
func ArrayEncoding(pool *pgxpool.Pool) Encoding {
	switch pool.Config().ConnConfig.DefaultQueryExecMode {
	case pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol:
		return TextArray
	default:
		return BinaryArray
	}
}

// Rows encodes rows of one type. Call [Rows.Reset] first; then for each row [Rows.Next] and the
// method for the type of each of its fields, in their order; at last [Rows.EndCopy] or
// [Rows.EndArray]. It may be used again.
type Rows struct {
	fields   Fields
	encoding Encoding
	width    int // fields of a row
	n        int // rows
	at       int // where the current row begins: its length in an array, its first field in a COPY
}

const arrayHeader = 20 // dimensions, nulls, element type, length, lower bound

// Reset empties the buffer, for rows with width fields.
func (r *Rows) Reset(e Encoding, width int) {
	r.encoding, r.width, r.n, r.at = e, width, 0, 0
	if e == Copy {
		r.fields.ResetCopy()
		return
	}
	r.fields.Reset(arrayHeader)
}

// Next begins a row.
func (r *Rows) Next() {
	r.n++
	if r.encoding == Copy {
		r.fields.Row(r.width)
		r.at = len(r.fields.B)
		return
	}
	r.endRow()
	r.at = len(r.fields.B)
	r.fields.length(0) // endRow sets it
	r.fields.length(r.width)
}

// endRow sets the length of the current row of an array.
func (r *Rows) endRow() {
	if r.at > 0 {
		binary.BigEndian.PutUint32(r.fields.B[r.at:], uint32(len(r.fields.B)-r.at-4)) //nolint:gosec // a chunk is bounded
	}
}

// Fields appends the fields of the current row to an empty buffer, as COPY writes them: for each its length in
// four bytes, -1 for NULL, then the value.
func (r *Rows) Fields(buffer []byte) []byte {
	if r.encoding == Copy {
		return append(buffer[:0], r.fields.B[r.at:]...)
	}
	return withoutTypes(buffer[:0], r.fields.B[r.at+8:])
}

// FieldsOfRecord does the same for a row as record_send returns it.
func FieldsOfRecord(buffer, record []byte) []byte {
	return withoutTypes(buffer[:0], record[min(4, len(record)):])
}

// withoutTypes appends fields to a buffer, without the type that is before each.
func withoutTypes(to, fields []byte) []byte {
	for len(fields) >= 8 {
		n := int(int32(binary.BigEndian.Uint32(fields[4:]))) //nolint:gosec // two's complement
		end := min(8+max(n, 0), len(fields))
		to = append(to, fields[4:end]...)
		fields = fields[end:]
	}
	return to
}

// EndCopy returns the whole COPY. The bytes are valid until the next Reset.
func (r *Rows) EndCopy() []byte { return r.fields.EndCopy() }

// EndArray returns the array as a parameter of a query. element is the OID of the row type. There
// must be at least one row.
func (r *Rows) EndArray(element uint32) any {
	r.endRow()
	if r.encoding == TextArray {
		return rowsAsText(r.fields.B[arrayHeader:])
	}
	header := r.fields.B[:arrayHeader]
	binary.BigEndian.PutUint32(header, 1)
	binary.BigEndian.PutUint32(header[4:], 0)
	binary.BigEndian.PutUint32(header[8:], element)
	binary.BigEndian.PutUint32(header[12:], uint32(r.n)) //nolint:gosec // a chunk is bounded
	binary.BigEndian.PutUint32(header[16:], 1)
	return arrayParameter{r.fields.B}
}

// arrayParameter is an encoded array. It is not a []byte: for a type that pgx does not know, it
// would send a []byte as text, and Postgres would refuse each row for its content. As it is,
// pgx refuses to encode it, which cannot be mistaken for a fault of the rows.
type arrayParameter struct{ b []byte }

// BytesValue is called by pgx.
func (p arrayParameter) BytesValue() ([]byte, error) { return p.b, nil }

// oid writes the type of the next field. COPY has none.
func (r *Rows) oid(oid uint32) {
	if r.encoding != Copy {
		r.fields.B = binary.BigEndian.AppendUint32(r.fields.B, oid)
	}
}

// Text writes a string, even if it is empty.
func (r *Rows) Text(s string) { r.oid(pgtype.TextOID); r.fields.Text(s) }

// TextOrNull writes a string, or NULL if it is empty.
func (r *Rows) TextOrNull(s string) { r.oid(pgtype.TextOID); r.fields.TextOrNull(s) }

// JSONOrNull writes JSON, or NULL if it is empty.
func (r *Rows) JSONOrNull(b []byte) { r.oid(pgtype.JSONOID); r.fields.BytesOrNull(b) }

// BytesOrNull writes a bytea, or NULL if it is empty.
func (r *Rows) BytesOrNull(b []byte) { r.oid(pgtype.ByteaOID); r.fields.BytesOrNull(b) }

// Int2 writes a smallint.
func (r *Rows) Int2(n int16) { r.oid(pgtype.Int2OID); r.fields.Int2(n) }

// Int4 writes an integer.
func (r *Rows) Int4(n int32) { r.oid(pgtype.Int4OID); r.fields.Int4(n) }

// Int4OrNull writes an integer, or NULL for 0.
func (r *Rows) Int4OrNull(n int32) { r.oid(pgtype.Int4OID); r.fields.Int4OrNull(n) }

// Int8 writes a bigint.
func (r *Rows) Int8(n int64) { r.oid(pgtype.Int8OID); r.fields.Int8(n) }

// TimeOrNull writes a timestamptz, or NULL for the zero time.
func (r *Rows) TimeOrNull(t time.Time) { r.oid(pgtype.TimestamptzOID); r.fields.TimeOrNull(t) }

// rowsAsText converts the rows of a binary array to the text of an array.
func rowsAsText(b []byte) string {
	out := make([]byte, 0, len(b)+len(b)/4)
	for sep := byte('{'); len(b) > 0; sep = ',' {
		n := 4 + binary.BigEndian.Uint32(b)
		row := b[8:n]
		b = b[n:]
		out = append(out, sep, '"')
		for sep := byte('('); len(row) > 0; sep = ',' {
			oid, n := binary.BigEndian.Uint32(row), int32(binary.BigEndian.Uint32(row[4:])) //nolint:gosec // two's complement
			out, row = append(out, sep), row[8:]
			if n >= 0 {
				out, row = appendField(out, oid, row[:n]), row[n:]
			}
		}
		out = append(out, ")\""...)
	}
	return string(append(out, '}'))
}

// appendField writes a field of a row of an array as text. A string is quoted twice, for the row
// and for the array.
func appendField(out []byte, oid uint32, v []byte) []byte {
	switch oid {
	case pgtype.Int2OID:
		return strconv.AppendInt(out, int64(int16(binary.BigEndian.Uint16(v))), 10) //nolint:gosec // two's complement
	case pgtype.Int4OID:
		return strconv.AppendInt(out, int64(int32(binary.BigEndian.Uint32(v))), 10) //nolint:gosec // two's complement
	case pgtype.Int8OID:
		return strconv.AppendInt(out, int64(binary.BigEndian.Uint64(v)), 10) //nolint:gosec // two's complement
	case pgtype.TimestamptzOID:
		at := time.UnixMicro(int64(binary.BigEndian.Uint64(v)) + Epoch) //nolint:gosec // two's complement
		return at.UTC().AppendFormat(out, time.RFC3339Nano)
	case pgtype.ByteaOID:
		v = hex.AppendEncode([]byte(`\x`), v)
	}
	out = append(out, `\"`...)
	for _, c := range v {
		if c == '"' || c == '\\' {
			out = append(out, `\\\`...)
		}
		out = append(out, c)
	}
	return append(out, `\"`...)
}
