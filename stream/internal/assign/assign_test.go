package assign

import (
	"maps"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// Partitions are spread evenly, each to one member, and keep their owner where possible.
func TestAssignSticky(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 40).Draw(t, "partitions")
		members := rapid.IntRange(1, 12).Draw(t, "members")
		had := map[string][]int{}
		for i := range members {
			had["m"+strconv.Itoa(i)] = rapid.SliceOfN(rapid.IntRange(-1, n+2), 0, 20).Draw(t, "had")
		}
		out := Sticky(n, had)
		owner := map[int]string{}
		for m, parts := range out {
			require.GreaterOrEqual(t, len(parts), n/members)
			require.LessOrEqual(t, len(parts), (n+members-1)/members)
			for _, p := range parts {
				require.NotContains(t, owner, p)
				owner[p] = m
			}
		}
		require.Len(t, owner, n)
		require.Len(t, out, members)
		require.Equal(t, out, Sticky(n, out), "a second assignment moves nothing")
	})
	before := Sticky(12, map[string][]int{"a": nil, "b": nil})
	with := maps.Clone(before)
	with["c"] = nil
	after := Sticky(12, with)
	for _, m := range []string{"a", "b"} {
		require.Subset(t, before[m], after[m], "a new member takes some; the others swap none")
	}
}
