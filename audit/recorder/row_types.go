package recorder

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/batchyard/batchyard/audit/recorder/states"
)

// resultRowType is the composite type of the schema whose arrays carry results.
const resultRowType = "batchyard_result_row"

// rowTypes are the OIDs of the composite types in a database.
type rowTypes struct{ result, task uint32 }

// rowTypesOf returns the types that a connection knows, and looks them up if it knows none.
func rowTypesOf(ctx context.Context, conn *pgx.Conn) (rowTypes, error) {
	result, ok := conn.TypeMap().TypeForName(resultRowType)
	ofTask, ok2 := conn.TypeMap().TypeForName(states.RowType)
	if ok && ok2 {
		return rowTypes{result.OID, ofTask.OID}, nil
	}
	return lookUpRowTypes(ctx, conn)
}

// lookUpRowTypes looks the types up and registers them, so that the connection sends arrays of them
// as they are encoded.
func lookUpRowTypes(ctx context.Context, conn *pgx.Conn) (t rowTypes, err error) {
	m := conn.TypeMap()
	for _, of := range []struct {
		name string
		oid  *uint32
	}{{resultRowType, &t.result}, {states.RowType, &t.task}} {
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
