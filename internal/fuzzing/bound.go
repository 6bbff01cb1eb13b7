// Package fuzzing limits, for fuzz targets, how much memory a decoder of untrusted
// bytes may allocate.
package fuzzing

import (
	"runtime"
	"runtime/metrics"
	"testing"
)

// Slack is how many bytes a decoder may allocate regardless of the input's size.
const Slack = 1 << 20

// Factor is how many bytes a decoder may allocate per byte of input.
const Factor = 4

// tries is how many measurements must exceed the limit before the test fails. One
// is not enough, because concurrent code allocates as well.
const tries = 5

// Bound runs decode, which decodes untrusted input of the given size in bytes. It
// fails the test if decode allocates more than Factor*input + Slack bytes. decode
// may be called several times and must do the same each time.
func Bound(t testing.TB, input int, decode func()) {
	t.Helper()
	limit := uint64(Factor*input + Slack) //nolint:gosec // a length
	// The runtime metric is off by some kilobytes but a hundred times faster than
	// ReadMemStats, which stops the world.
	before := allocatedRoughly()
	decode()
	if allocatedRoughly()-before < limit/2 {
		return
	}
	least := ^uint64(0)
	for range tries {
		before := allocated()
		decode()
		if least = min(least, allocated()-before); least <= limit {
			return
		}
	}
	t.Fatalf("decoding %d bytes allocated %d bytes: the limit is %d", input, least, limit)
}

func allocatedRoughly() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}
