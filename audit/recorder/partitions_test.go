package recorder

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/test/audittest"
)

func TestOldDaysAreDropped(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	audittest.Execute(t, pool, "SELECT batchyard_make_audit_partition('2020-01-31'), batchyard_make_audit_partition(current_date)")
	var gone []string
	require.NoError(t, dropDays(t.Context(), pool, time.Now().Add(-90*audit.Day), func(d droppedDay) { gone = append(gone, d.day) }))
	require.Equal(t, []string{"2020-01-31"}, gone)
}
