package verify

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/audittest/rig"
)

// What was announced of a job is proven even if someone changed its row while it was open, so that a recorder has
// recorded the digest of what they made of it.
func TestAnOpenJobIsAsItWasAnnounced(t *testing.T) {
	t.Parallel()
	for column, value := range map[string]string{"": "", "fingerprint": "sha256('x')", "tasks": "3", "lines": "6", "bad_lines": "0", "bytes": "NULL", "file": "'other'", "format": "NULL", "submitted_by": "'mallory'"} {
		t.Run(column, func(t *testing.T) {
			t.Parallel()
			pool := audittest.NewPool(t)
			r := rig.New(t, pool)
			events := r.Own("events", 0)
			again := jobSubmitted()
			again.ActorID, again.Detail = "bob", []byte(strings.Replace(string(again.Detail), "n.jsonl", "copy.jsonl", 1))
			r.Record(events.Events(t, jobSubmitted(), again))
			if column != "" {
				audittest.Execute(t, pool, "UPDATE jobs SET "+column+" = "+value)
			}
			cancel := jobSubmitted()
			cancel.Action, cancel.Detail = task.JobCancelRequested, nil
			r.Record(events.Events(t, cancel))
			require.Equal(t, int64(3), audittest.One[int64](t, pool, "SELECT version FROM jobs"), "it was written again")
			rep := verify(t, pool, Options{})
			require.Equal(t, column == "", rep.OK(), "%+v", rep.Findings)
			require.Equal(t, column != "", slices.ContainsFunc(rep.Findings, func(f Finding) bool {
				return f.Reason == Changed && strings.Contains(f.Detail, "job acme/job-1 what no announcement in the log says")
			}), "%+v", rep.Findings)
			require.True(t, slices.ContainsFunc(rep.Notes, func(n string) bool { return strings.HasPrefix(n, "not proven: callbacks (next_at, holder)") }))
		})
	}
}
