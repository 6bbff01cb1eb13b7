package recorder

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit/recorder/clean"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
)

// Names may be of any length, but an index entry has at most 2.7 kB, and a row that no index takes
// would not be recorded.
func TestLongNamesAreRecorded(t *testing.T) {
	t.Parallel()
	r := newRig(t, audittest.NewPool(t))
	wide := func(n int) string { // not compressible
		s := make([]rune, n)
		for i := range s {
			s[i] = 0x10000 + rune(rand.IntN(0xfffff))
		}
		return string(s)
	}
	s := audittest.NewStory("t1")
	s.Task.Tenant, s.Task.ID, s.Task.JobID = wide(task.MaxIDLength), wide(task.MaxIDLength), wide(task.MaxIDLength)
	s.Task.Model, s.Task.CustomID = wide(task.MaxNameLength), wide(512)
	e := task.Accepted(s.Task, task.Origin{Actor: wide(1000), Addr: wide(1000), UserAgent: wide(1000)}, s.Tick())
	failed := s.Event(task.AttemptFailed, 1, wide(clean.MaxName))
	failed.ErrorClass, failed.BatchID, failed.ResourceID = task.ErrorClass(wide(clean.MaxShort)), wide(clean.MaxName), wide(clean.MaxText)
	res := s.Result(task.Success, wide(task.MaxNameLength))
	r.record(r.own("events", 0).events(t, e, failed), r.own("results", 0).result(t, res))
	for _, l := range r.sent {
		t.Error(l.cause)
	}
	require.Equal(t, 2, audittest.One[int](t, r.pool, "SELECT count(*) FROM audit_log"))
	require.Equal(t, 1, audittest.One[int](t, r.pool, "SELECT count(*) FROM results"))
	require.Equal(t, 1, audittest.One[int](t, r.pool, "SELECT sum(tasks)::int FROM submissions"))
	before := audittest.One[string](t, r.pool, "SELECT actor_id || source || user_agent FROM rollup_submissions")
	audittest.Execute(t, r.pool, "SELECT batchyard_rebuild_rollups('-infinity')")
	require.Equal(t, before, audittest.One[string](t, r.pool, "SELECT actor_id || source || user_agent FROM rollup_submissions"))
}
