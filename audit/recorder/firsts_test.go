package recorder

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
)

// What is written to the topic first wins, also when all of it arrives in one transaction.
func TestTheFirstOfSeveralResultsInAChunkWins(t *testing.T) {
	t.Parallel()
	of := func(id string, s task.State, offset int64) offered {
		return offered{&entry{offset: offset}, &task.Result{Tenant: "t", TaskID: id, State: s}}
	}
	first, rest := firsts([]offered{of("b", task.Failed, 1), of("a", task.Success, 2), of("b", task.Success, 3), of("b", task.Expired, 4), of("a", task.Cancelled, 5)})
	require.Len(t, first, 2)
	require.Equal(t, int64(2), first[0].entry.offset, "of a, in the order of the keys")
	require.Equal(t, int64(1), first[1].entry.offset)
	require.Len(t, rest, 3)
	for i, o := range rest {
		require.Equal(t, int64(i+3), o.entry.offset)
	}
}
