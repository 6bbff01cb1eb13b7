package audit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Composite types of the schema; arrays of them carry results and states.
const (
	resultRowType = "batchyard_result_row"
	taskRowType   = "batchyard_task_row"
)

// rowBuffer encodes rows of results or tasks in Postgres' binary formats: as an
// array of a composite type, which is one parameter, or as COPY takes them. For each
// row call begin, then the method of the type for each of its fields, in their order.
//
// Against an array for each column the array of rows takes Postgres half the time to
// unpack. COPY can't pass over rows that are there already.
type rowBuffer struct {
	fields  fieldBuffer
	width   int // fields of a row
	rows    int
	at      int  // where the present row of an array begins
	copied  bool // for COPY: fields have no types, and rows no length
	literal bool // the connection takes no binary parameters: arrays go as text
}

// rowsParam is an array of rows on its way to Postgres. It is no []byte, which
// would go as the text of one where the type is not known, and Postgres would
// refuse every row for its content; as it is, that is an error of ours.
type rowsParam struct{ b []byte }

// BytesValue makes it binary.
func (p rowsParam) BytesValue() ([]byte, error) { return p.b, nil }

const rowArrayHeader = 20 // dimensions, nulls, element type, length, lower bound

// array makes it empty, for an array of rows of as many fields.
func (a *rowBuffer) array(width int) {
	a.width, a.rows, a.at, a.copied = width, 0, 0, false
	a.fields.reset(rowArrayHeader)
}

// copy makes it empty, for COPY of rows of as many fields.
func (a *rowBuffer) copy(width int) {
	a.width, a.rows, a.copied = width, 0, true
	a.fields.resetCopy()
}

func (a *rowBuffer) begin() {
	a.rows++
	if a.copied {
		a.fields.b = binary.BigEndian.AppendUint16(a.fields.b, uint16(a.width)) //nolint:gosec // a table has so many columns
		return
	}
	a.close()
	a.at = len(a.fields.b)
	a.fields.length(0)
	a.fields.length(a.width)
}

// close writes the length of the present row.
func (a *rowBuffer) close() {
	if a.at > 0 {
		binary.BigEndian.PutUint32(a.fields.b[a.at:], uint32(len(a.fields.b)-a.at-4)) //nolint:gosec // a chunk is bounded
	}
}

// end is the array as a parameter; element is the type of the rows, of which there is one at least.
func (a *rowBuffer) end(element uint32) any {
	a.close()
	if a.literal {
		return rowsLiteral(a.fields.b[rowArrayHeader:])
	}
	header := a.fields.b[:rowArrayHeader]
	binary.BigEndian.PutUint32(header, 1)
	binary.BigEndian.PutUint32(header[4:], 0)
	binary.BigEndian.PutUint32(header[8:], element)
	binary.BigEndian.PutUint32(header[12:], uint32(a.rows)) //nolint:gosec // a chunk is bounded
	binary.BigEndian.PutUint32(header[16:], 1)
	return rowsParam{a.fields.b}
}

// oid is the type of the next field.
func (a *rowBuffer) oid(oid uint32) {
	if !a.copied {
		a.fields.b = binary.BigEndian.AppendUint32(a.fields.b, oid)
	}
}

func (a *rowBuffer) text(s string)   { a.oid(pgtype.TextOID); a.fields.text(s) }
func (a *rowBuffer) textOr(s string) { a.oid(pgtype.TextOID); a.fields.textOr(s) }
func (a *rowBuffer) jsonOr(b []byte) { a.oid(pgtype.JSONOID); a.fields.bytesOr(b) }
func (a *rowBuffer) int2(n int16)    { a.oid(pgtype.Int2OID); a.fields.int2(n) }
func (a *rowBuffer) int4(n int32)    { a.oid(pgtype.Int4OID); a.fields.int4(n) }
func (a *rowBuffer) int8(n int64)    { a.oid(pgtype.Int8OID); a.fields.int8(n) }

// int4If writes NULL for 0.
func (a *rowBuffer) int4If(n int32) {
	a.oid(pgtype.Int4OID)
	if n == 0 {
		a.fields.null()
		return
	}
	a.fields.int4(n)
}

// timeOr writes NULL for the zero time.
func (a *rowBuffer) timeOr(t time.Time) {
	a.oid(pgtype.TimestamptzOID)
	if t.IsZero() {
		a.fields.null()
		return
	}
	a.fields.time(t)
}

// rowTypes are what Postgres calls our composite types in this database.
type rowTypes struct{ result, task uint32 }

// rowTypesOf looks the types up, once a connection or anew, and has the connection
// send arrays of them as they are.
func rowTypesOf(ctx context.Context, conn *pgx.Conn, anew bool) (t rowTypes, err error) {
	m := conn.TypeMap()
	for _, of := range []struct {
		name string
		oid  *uint32
	}{{resultRowType, &t.result}, {taskRowType, &t.task}} {
		if known, ok := m.TypeForName(of.name); ok && !anew {
			*of.oid = known.OID
			continue
		}
		var array uint32
		err := conn.QueryRow(ctx, "SELECT oid, typarray FROM pg_type WHERE oid = to_regtype($1)", of.name).Scan(of.oid, &array)
		if errors.Is(err, pgx.ErrNoRows) {
			return t, fmt.Errorf("the database has no type %s: run `batchyard migrate up`", of.name)
		}
		if err != nil {
			return t, fmt.Errorf("looking up the type %s: %w", of.name, err)
		}
		m.RegisterType(&pgtype.Type{Name: of.name + "[]", OID: array, Codec: pgtype.ByteaCodec{}})
		m.RegisterType(&pgtype.Type{Name: of.name, OID: *of.oid, Codec: pgtype.ByteaCodec{}})
	}
	return t, nil
}

// takesLiterals reports whether connections of the pool are told to ask the server
// for no types of parameters, as in front of some poolers (default_query_exec_mode).
func takesLiterals(pool *pgxpool.Pool) bool {
	mode := pool.Config().ConnConfig.DefaultQueryExecMode
	return mode == pgx.QueryExecModeExec || mode == pgx.QueryExecModeSimpleProtocol
}

// rowsLiteral writes rows, as [rowBuffer] has encoded them, as the text of an array.
func rowsLiteral(b []byte) string {
	out := make([]byte, 0, len(b)+len(b)/4)
	for sep := byte('{'); len(b) > 0; sep = ',' {
		n := 4 + binary.BigEndian.Uint32(b)
		row := b[8:n]
		b = b[n:]
		out = append(out, sep, '"')
		for sep := byte('('); len(row) > 0; sep = ',' {
			oid, n := binary.BigEndian.Uint32(row), int32(binary.BigEndian.Uint32(row[4:])) //nolint:gosec // two's complement is meant
			out, row = append(out, sep), row[8:]
			if n >= 0 {
				out, row = appendLiteral(out, oid, row[:n]), row[n:]
			}
		}
		out = append(out, ")\""...)
	}
	return string(append(out, '}'))
}

// appendLiteral writes a field of a row of an array: each of the two has its quotes.
func appendLiteral(out []byte, oid uint32, v []byte) []byte {
	switch oid {
	case pgtype.Int2OID:
		return strconv.AppendInt(out, int64(int16(binary.BigEndian.Uint16(v))), 10) //nolint:gosec // two's complement is meant
	case pgtype.Int4OID:
		return strconv.AppendInt(out, int64(int32(binary.BigEndian.Uint32(v))), 10) //nolint:gosec // two's complement is meant
	case pgtype.Int8OID:
		return strconv.AppendInt(out, int64(binary.BigEndian.Uint64(v)), 10) //nolint:gosec // two's complement is meant
	case pgtype.TimestamptzOID:
		at := time.UnixMicro(int64(binary.BigEndian.Uint64(v)) + postgresEpoch) //nolint:gosec // two's complement is meant
		return at.UTC().AppendFormat(out, time.RFC3339Nano)
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
