package pg

import (
	"testing"

	"github.com/jackc/pgx/v5/pgtype"
	"github.com/stretchr/testify/require"
)

// A row type may be unknown to a connection. Then the rows must not be sent as something else.
func TestAnArrayOfAnUnknownTypeIsNotSent(t *testing.T) {
	t.Parallel()
	_, err := pgtype.NewMap().Encode(1<<20, pgtype.TextFormatCode, arrayParameter{[]byte("x")}, nil)
	require.Error(t, err)
}
