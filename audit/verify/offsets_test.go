package verify

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/audittest/rig"
)

// Someone who sets an offset forward has recorders leave records out: of results, which have no rows of their own, as
// well as of events. That is a finding before a recorder continues there, and for good once it has.
func TestRecordsThatWereSkippedAreFound(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		sql        string
		now, later string // what is found at once, and once a recorder has continued
	}{
		"results forward":    {"UPDATE stream_offsets SET next_offset = next_offset + 7 WHERE topic = 'results'", "recorders would skip what is between", "records 1 to 7 of results/0 were skipped"},
		"events forward":     {"UPDATE stream_offsets SET next_offset = next_offset + 7 WHERE topic = 'events'", "recorders would skip what is between", "records 2 to 8 of events/0 were skipped"},
		"results back":       {"UPDATE stream_offsets SET next_offset = 0 WHERE topic = 'results'", "recorders would record again what is between", "records were recorded twice"},
		"to the beginning":   {"UPDATE stream_offsets SET next_offset = -1 WHERE topic = 'results'", "recorders would record again what is between", "after it had come to 1"},
		"the row is deleted": {"DELETE FROM stream_offsets WHERE topic = 'results'", "stream_offsets has no row of a partition", "after it had come to 1"},
		"a row of no one":    {"INSERT INTO stream_offsets (topic, partition, next_offset) VALUES ('events', 9, 5)", "records 0 to 4 of events/9 were skipped", "records 0 to 4 of events/9 were skipped"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := audittest.NewPool(t)
			x := &interrupted{t: t, pool: pool}
			record := func(id string) {
				r := rig.New(t, pool)
				e, res := r.Own("events", 0), r.Own("results", 0)
				s := audittest.NewStory(id)
				r.Record(e.Events(t, s.Accepted()))
				r.Record(e.Events(t, s.Event(task.TaskQueued, 0, "")), res.Result(t, s.Result(task.Success, "d1")))
			}
			ask := func() *Report { return verify(t, pool, Options{Settled: true, LogOnly: true}) }
			record("a")
			require.True(t, ask().OK(), "%+v", ask().Findings)
			audittest.Execute(t, pool, c.sql)
			rep := ask()
			x.requireFinding(rep, rep.Findings[0].Reason, c.now)
			record("b")
			rep = ask()
			x.requireFinding(rep, rep.Findings[0].Reason, c.later)
		})
	}
}
