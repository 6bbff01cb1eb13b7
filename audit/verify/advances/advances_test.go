package advances

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/internal/pg"
)

// Whatever the order of rows, advances without a gap are fine, and the one that is taken out is found.
func TestAGapIsFoundInAnyOrder(t *testing.T) {
	t.Parallel()
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 14))
		at := audit.TopicPartition{Topic: "results", Partition: 3}
		key := audit.KeyOfPartition(at)
		var all []audit.Advance
		next := int64(-1)
		for epoch := range int64(1 + r.IntN(4)) {
			for range 2 + r.IntN(30) {
				to := max(next, 0) + 1 + r.Int64N(5)
				all = append(all, audit.Advance{Key: key, Epoch: epoch, From: next, To: to})
				next = to
			}
		}
		judge := func(left []audit.Advance, edge time.Time, replaced ...*audit.Break) []Found {
			l := &Log{}
			for _, i := range r.Perm(len(left)) {
				l.Take(left[i].Append(nil), left[i].To) // a microsecond for each record
			}
			return l.Judge([]Partition{{at, next, replaced}}, edge)
		}
		require.Empty(t, judge(all, time.Time{}))
		i := r.IntN(len(all))
		left := slices.Delete(slices.Clone(all), i, i+1)
		found := judge(left, time.Time{})
		require.Len(t, found, 1)
		if i < len(all)-1 {
			require.Equal(t, fmt.Sprint(max(all[i].From, 0), all[i].To-1, true), fmt.Sprint(found[0].First, found[0].Last, found[0].Gone))
			edge := func(us int64) time.Time { return time.UnixMicro(us + pg.Epoch) }
			require.Empty(t, judge(left, edge(all[i+1].To+1)), "it was dropped")
			if found := judge(left, edge(all[i].To)); i > 0 && all[i].To-1 > all[i].From {
				require.Len(t, found, 1)
				require.True(t, found[0].Unproven, "it may have been dropped")
			}
		}
		if i > 0 && all[i].From == all[i-1].To && i < len(all)-1 {
			b := &audit.Break{Kind: audit.TopicReplaced, First: all[i+1].From, Last: all[i+1].From + 5}
			require.Empty(t, judge(left, time.Time{}, b), "the topic was replaced, and is shorter")
		}
	}
}
