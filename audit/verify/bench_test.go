package verify

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/audittest/rig"
)

// BenchmarkVerify verifies a million rows of eight chains, as the recorder wrote them.
func BenchmarkVerify(b *testing.B) {
	r := rig.New(b, audittest.NewPool(b))
	const parts, records, events = 8, 25, 100
	at := make([]*rig.Partition, parts)
	for p := range at {
		at[p] = r.Own("events", p)
	}
	rows := 0
	for rows < 1_000_000 {
		var c []*stream.Record
		for range records {
			for _, t := range at {
				s := audittest.NewStory("b" + task.NewID())
				es := make([]task.Event, events)
				for i := range es {
					es[i] = s.Event(task.TaskAssigned, 1, "d1")
					es[i].Detail = []byte(`{"policy":"expected-finish","score_ms":12.5,"candidates":8}`)
				}
				c = append(c, t.Events(b, es...))
				rows += events
			}
		}
		r.Record(c...)
	}
	postgres, own := audittest.CPU(b, r.Pool), audittest.OwnCPU(b)
	for b.Loop() {
		rep, err := Run(b.Context(), r.Pool, Options{}, nil)
		require.NoError(b, err)
		require.True(b, rep.OK(), "%+v", rep.Findings)
		require.EqualValues(b, rows, rep.Rows)
	}
	b.ReportMetric(float64(b.N*rows)/b.Elapsed().Seconds(), "rows/s")
	// With nothing else running, the larger of the two is about what it takes.
	b.ReportMetric((audittest.CPU(b, r.Pool)-postgres)/float64(b.N)/1e6, "postgres-cpu-s/op")
	b.ReportMetric((audittest.OwnCPU(b)-own)/float64(b.N)/1e6, "own-cpu-s/op")
}
