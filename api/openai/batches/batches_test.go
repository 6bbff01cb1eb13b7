package batches

import (
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/api/trail"
)

// Every operation says how it gets into the audit log.
func TestOperationsAreAudited(t *testing.T) {
	t.Parallel()
	var ids []string
	for _, r := range New(Deps{}).Routes() {
		ids = append(ids, r.Operation.OperationID)
	}
	require.ElementsMatch(t, slices.Collect(maps.Keys(trail.OpenAI)), ids)
	for id, op := range trail.OpenAI {
		require.NotEqual(t, op.Change != "", op.Reads, id)
		require.NotContains(t, trail.Operations, id)
	}
}
