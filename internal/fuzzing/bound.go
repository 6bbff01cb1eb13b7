// Package fuzzing holds what fuzz targets share: the bound on the memory that
// reading outside bytes may take.
package fuzzing

import (
	"runtime"
	"runtime/metrics"
	"testing"
)

// Slack is what a decoder may allocate whatever the size of its input.
const Slack = 1 << 20

// Factor is how many bytes a decoder may allocate for each byte of its input.
const Factor = 4

// tries is how often a decoder is measured before it is blamed: what runs beside
// it allocates, too.
const tries = 5

// Bound runs decode, which reads input bytes that anybody may have sent, and
// fails the test when it allocates more than Factor times as much, and Slack. It
// may be run several times and must do the same each time.
func Bound(t testing.TB, input int, decode func()) {
	t.Helper()
	limit := uint64(Factor*input + Slack) //nolint:gosec // a length
	// Cheap, and some kilobytes off; a hundred times as fast as stopping the world.
	before := roughly()
	decode()
	if roughly()-before < limit/2 {
		return
	}
	least := ^uint64(0)
	for range tries {
		before := exactly()
		decode()
		if least = min(least, exactly()-before); least <= limit {
			return
		}
	}
	t.Fatalf("reading %d bytes allocated %d, and %d are allowed", input, least, limit)
}

func roughly() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

func exactly() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}
