package audit

import (
	"context"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
)

// Token counts are what a device says. Added up they must fit into the rollups:
// a chunk that Postgres refuses as a whole, and no part of, would be tried for ever.
func TestADeviceThatCountsNonsenseStopsNobody(t *testing.T) {
	t.Parallel()
	r := newRig(t, newPool(t))
	events, results := r.own("events", 0), r.own("results", 0)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, id := range []string{"t1", "t2", "t3"} {
		s := newStory(id)
		e := s.event(task.AttemptSucceeded, 1, "d1")
		e.TokensIn, e.TokensOut = math.MaxInt64, math.MinInt64
		accepted := s.accepted()
		accepted.InputSize = math.MaxInt64
		res := s.result(task.Success, "d1")
		res.Usage = task.Usage{InputTokens: math.MaxInt64, OutputTokens: -1}
		require.NoError(t, r.w.record(ctx, chunk{events.events(t, accepted, e), results.result(t, res)}))
	}
	require.Equal(t, 3, one[int](t, r.pool, "SELECT count(*) FROM results WHERE input_tokens > 1000000 AND output_tokens = 0"))
	require.Equal(t, 3, one[int](t, r.pool, "SELECT sum(tasks)::int FROM rollup_usage"))
	require.Positive(t, one[int64](t, r.pool, "SELECT min(input_tokens) FROM rollup_usage"))
	require.Empty(t, r.sent)
}

// Whoever writes to the topics of tasks says when they were submitted.
func TestTasksThatSayTheyAreOldStopNobody(t *testing.T) {
	t.Parallel()
	r := newRig(t, newPool(t))
	results := r.own("results", 0)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	const chunks, each = 3, 700 // together more than 2⁶³ µs, and each of them less
	for i := range chunks {
		var c chunk
		for j := range each {
			s := newStory(fmt.Sprintf("t%d-%d", i, j))
			s.task.SubmittedAt = earliest.Add(day)
			res := s.result(task.Success)
			res.FinishedAt = latest.Add(-day)
			c = append(c, results.result(t, res))
		}
		require.NoError(t, r.w.record(ctx, c))
	}
	require.Equal(t, chunks*each, one[int](t, r.pool, "SELECT sum(n)::int FROM rollup_latency WHERE stage = 'total'"))
	require.Equal(t, int64(math.MaxInt64), one[int64](t, r.pool, "SELECT max(us) FROM rollup_latency"))

	// Nor is adding the shards together.
	for shard := range 3 {
		execute(t, r.pool, "INSERT INTO rollup_latency VALUES (now()::date - 1, 1, $1, 'total', 'm', 3, 1, 9223372036854775807)", shard)
		require.NoError(t, compactRollups(t.Context(), r.pool, 30*day))
	}
	require.Equal(t, "3 9223372036854775807", one[string](t, r.pool, "SELECT n || ' ' || us FROM rollup_latency WHERE hour = -1"))
}
