package partitions

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestOldDaysAreDropped(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	audittest.Execute(t, pool, "SELECT batchyard_make_audit_partition('2020-01-31'), batchyard_make_audit_partition(current_date)")
	var gone []string
	require.NoError(t, DropDays(t.Context(), pool, time.Now().Add(-90*audit.Day), func(context.Context, pgx.Tx, string) error { return nil }, func(d DroppedDay) { gone = append(gone, d.Day) }))
	require.Equal(t, []string{"2020-01-31"}, gone)
}
