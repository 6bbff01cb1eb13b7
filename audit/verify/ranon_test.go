package verify

import (
	"crypto/sha256"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/audittest/rig"
)

// ranAgain makes another run of a task that has ended.
func ranAgain(s *audittest.Story) (es []task.Event, r *task.Result) {
	es = []task.Event{s.Event(task.AttemptStarted, 1, "sim-gpu-4"), s.Event(task.AttemptSucceeded, 1, "sim-gpu-4"), s.Event(task.TaskSucceeded, 1, "sim-gpu-4")}
	r = s.Result(task.Success, "sim-gpu-4")
	r.FinishedAt = es[2].Time
	sum := sha256.Sum256(r.Output)
	es[1].OutputSize, es[1].OutputSHA256 = int64(len(r.Output)), sum[:]
	return es, r
}

// A worker that is killed may have written that a task ended, and not its result. The task runs again. That is
// no finding, but it must not excuse a result that was taken away.
func TestAnEndWithoutAResultIsNoFindingIfTheTaskRanOn(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	r := rig.New(t, pool)
	events, results := r.Own("events", 0), r.Own("results", 0)
	for _, id := range []string{"ended", "runs", "retried"} {
		s := audittest.NewStory(id)
		es, first := s.Life()
		again, second := ranAgain(s)
		switch id {
		case "ended":
			r.Record(events.Events(t, append(es, again...)...), results.Result(t, second))
		case "runs":
			r.Record(events.Events(t, append(es, again[:1]...)...))
		case "retried":
			second.Generation = 1
			r.Record(events.Events(t, es...), results.Result(t, first))
			r.Record(events.Events(t, append([]task.Event{s.Event(task.TaskRetried, 0, "")}, again...)...), results.Result(t, second))
		}
	}
	settled := Options{Settled: true}
	rep := verify(t, pool, settled)
	require.True(t, rep.OK(), "%+v", rep.Findings)
	require.True(t, slices.ContainsFunc(rep.Gaps, func(g Gap) bool {
		return strings.HasPrefix(g.Detail, "2 times, a task ended and ran again")
	}), "%+v", rep.Gaps)

	for _, taken := range []string{"task_id = 'ended'", "task_id = 'retried' AND generation = 0", "task_id = 'retried' AND generation = 1"} {
		audittest.Execute(t, pool, "CREATE TABLE kept AS SELECT * FROM results WHERE "+taken)
		audittest.Execute(t, pool, "DELETE FROM results WHERE "+taken)
		rep := verify(t, pool, settled)
		require.True(t, slices.ContainsFunc(rep.Findings, func(f Finding) bool {
			return strings.HasPrefix(f.Detail, "the table results has no") || strings.HasPrefix(f.Detail, "the table results has another")
		}), "%s: %+v", taken, rep.Findings)
		audittest.Execute(t, pool, "INSERT INTO results SELECT * FROM kept")
		audittest.Execute(t, pool, "DROP TABLE kept")
		require.True(t, verify(t, pool, settled).OK(), taken)
	}
}
