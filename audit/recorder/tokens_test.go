package recorder

import (
	"context"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder/rollup"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
)

// Token counts are reported by devices. Their sums must fit into the rollups: a chunk that Postgres
// refuses as a whole, but no part of it, would be tried indefinitely.
func TestAbsurdTokenCountsDoNotBlock(t *testing.T) {
	t.Parallel()
	r := newRig(t, audittest.NewPool(t))
	events, results := r.own("events", 0), r.own("results", 0)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, id := range []string{"t1", "t2", "t3"} {
		s := audittest.NewStory(id)
		e := s.Event(task.AttemptSucceeded, 1, "d1")
		e.InputTokens, e.OutputTokens = math.MaxInt64, math.MinInt64
		accepted := s.Accepted()
		accepted.InputSize = math.MaxInt64
		res := s.Result(task.Success, "d1")
		res.Usage = task.Usage{InputTokens: math.MaxInt64, OutputTokens: -1}
		require.NoError(t, r.w.record(ctx, chunk{events.events(t, accepted, e), results.result(t, res)}))
	}
	require.Equal(t, 3, audittest.One[int](t, r.pool, "SELECT count(*) FROM results WHERE input_tokens > 1000000 AND output_tokens = 0"))
	require.Equal(t, 3, audittest.One[int](t, r.pool, "SELECT sum(tasks)::int FROM rollup_usage"))
	require.Positive(t, audittest.One[int64](t, r.pool, "SELECT min(input_tokens) FROM rollup_usage"))
	require.Empty(t, r.sent)
}

// Anyone who writes to the topics of tasks decides when they were submitted.
func TestAbsurdSubmissionTimesDoNotBlock(t *testing.T) {
	t.Parallel()
	r := newRig(t, audittest.NewPool(t))
	results := r.own("results", 0)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	const chunks, each = 3, 700 // together more than 2⁶³ µs, but less for each chunk
	for i := range chunks {
		var c chunk
		for j := range each {
			s := audittest.NewStory(fmt.Sprintf("t%d-%d", i, j))
			s.Task.SubmittedAt = pg.MinTime.Add(audit.Day)
			res := s.Result(task.Success)
			res.FinishedAt = pg.MaxTime.Add(-audit.Day)
			c = append(c, results.result(t, res))
		}
		require.NoError(t, r.w.record(ctx, c))
	}
	require.Equal(t, chunks*each, audittest.One[int](t, r.pool, "SELECT sum(n)::int FROM rollup_latency WHERE stage = 'total'"))
	require.Equal(t, int64(math.MaxInt64), audittest.One[int64](t, r.pool, "SELECT max(us) FROM rollup_latency"))

	// Nor does compacting.
	for shard := range 3 {
		audittest.Execute(t, r.pool, "INSERT INTO rollup_latency VALUES (now()::date - 1, 1, $1, 'total', 'm', 3, 1, 9223372036854775807)", shard)
		require.NoError(t, rollup.Compact(t.Context(), r.pool, 30*audit.Day))
	}
	require.Equal(t, "3 9223372036854775807", audittest.One[string](t, r.pool, "SELECT n || ' ' || us FROM rollup_latency WHERE hour = -1"))
}
