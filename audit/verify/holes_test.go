package verify

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/audittest/rig"
)

// A result may have been in a hole of the log, as the event of it was not. Then it is unproven; a row that is not as
// its digest says is a finding all the same.
func TestWhatMayHaveBeenInAHoleIsUnproven(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	r := rig.New(t, pool)
	events, results := r.Own("events", 0), r.Own("results", 0)
	kept, lost, other := audittest.NewStory("kept"), audittest.NewStory("lost"), audittest.NewStory("other")
	es, end := kept.Life()
	r.Record(events.Events(t, es...), results.Result(t, end))
	es, _ = lost.Life()
	r.Record(events.Events(t, es...))
	es, _ = other.Life()
	again, second := ranAgain(other)
	second.Generation = 1
	r.Record(events.Events(t, append(es, again...)...), results.Result(t, second))

	settled := Options{Settled: true}
	about := func(rep *Report, r Reason) (ids []string) {
		for _, f := range rep.Findings {
			if f.Reason == r {
				for _, id := range []string{"kept", "lost", "other"} {
					if strings.Contains(f.Detail, "acme/"+id) {
						ids = append(ids, id)
					}
				}
			}
		}
		return slices.Compact(slices.Sorted(slices.Values(ids)))
	}
	rep := verify(t, pool, settled)
	require.Equal(t, []string{"lost"}, about(rep, Missing), "%+v", rep.Findings)
	require.True(t, verify(t, pool, Options{}).OK(), "they are in flight")

	hole := audit.Break{Kind: audit.RecordsMissed, Topic: "tasks.normal", First: 3, Last: 9, Why: "records were deleted"}
	e := other.Event(task.RecordsMissed, 0, "")
	e.TaskID, e.JobID, e.Detail = "", "", hole.Detail()
	r.Record(events.Events(t, e))
	rep = verify(t, pool, settled)
	require.Empty(t, about(rep, Missing), "%+v", rep.Findings)
	require.Empty(t, about(rep, Changed), "%+v", rep.Findings)
	require.True(t, slices.ContainsFunc(rep.Findings, func(f Finding) bool { return f.Reason == Unrecorded }), "%+v", rep.Findings)
	require.True(t, slices.ContainsFunc(rep.Gaps, func(g Gap) bool {
		return g.Kind == GapResults && strings.HasSuffix(g.Detail, "which may be in a hole of the log, such as acme/lost")
	}), "%+v", rep.Gaps)

	audittest.Execute(t, pool, "UPDATE results SET output_tokens = 99 WHERE task_id = 'kept'")
	audittest.Execute(t, pool, "UPDATE tasks SET generation = 2 WHERE task_id = 'other'")
	rep = verify(t, pool, settled)
	require.Equal(t, []string{"kept"}, about(rep, Changed), "%+v", rep.Findings)
	require.Equal(t, []string{"other"}, about(rep, Missing), "%+v", rep.Findings)
	audittest.Execute(t, pool, "DELETE FROM results WHERE task_id = 'kept'")
	require.Equal(t, []string{"kept", "other"}, about(verify(t, pool, settled), Missing))
}

// After a failover that lost rows, the table may say less of the deliveries of a callback than the log has: events are
// recorded again, attempts are not. Without one it is a finding.
func TestAFailoverExplainsLostAttempts(t *testing.T) {
	t.Parallel()
	w := newScene(t)
	for _, fellBack := range []bool{false, true} {
		pool, dir := w.copyTo(t)
		if fellBack {
			again := audittest.NewStory("").Event(task.RecordedAgain, 0, "")
			again.TaskID, again.JobID = "", ""
			r := rig.New(t, pool)
			r.Record(r.Own("events", 0).Events(t, again))
		}
		audittest.Execute(t, pool, "UPDATE callbacks SET state = 'DUE', attempts = 0 WHERE task_id = 't2'")
		rep := w.verify(pool, dir)
		require.Equal(t, fellBack, rep.OK(), "%+v", rep.Findings)
		require.Equal(t, fellBack, slices.ContainsFunc(rep.Gaps, func(g Gap) bool {
			return g.Kind == GapResults && strings.Contains(g.Detail, "callbacks were delivered, or are being delivered")
		}), "%+v", rep.Gaps)
	}
}
