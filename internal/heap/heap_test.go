package heap

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"

	"github.com/stretchr/testify/require"
)

// goal is at which size the heap is collected next.
func goal() int64 {
	s := []metrics.Sample{{Name: "/gc/heap/goal:bytes"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64()) //nolint:gosec // bytes of this process
}

// settle collects until what follows a collection has been done, too.
func settle(done func() bool) bool {
	for range 1000 {
		runtime.GC()
		if done() {
			return true
		}
		runtime.Gosched()
	}
	return false
}

func TestRoom(t *testing.T) {
	t.Setenv("GOGC", "")
	const headroom = 64 << 20
	stop := Room(headroom)
	t.Cleanup(stop)
	require.True(t, settle(func() bool { g := goal(); return g >= headroom && g < headroom+32<<20 }), "little lives: the headroom, no less, %d", goal())

	// Much lives: as much again, as ever.
	held := make([]byte, 200<<20)
	require.True(t, settle(func() bool { g := goal(); return g > 380<<20 && g < 460<<20 }), "%d", goal())
	runtime.KeepAlive(held)

	// And back.
	held = nil
	require.True(t, settle(func() bool { g := goal(); return g >= headroom && g < headroom+32<<20 }), "%d", goal())
	stop()
	stop()
	was := debug.SetGCPercent(100)
	require.Equal(t, 100, was)
	require.True(t, settle(func() bool { return goal() < headroom }), "%d", goal())
}

func TestTheEnvironmentGoesFirst(t *testing.T) {
	t.Setenv("GOGC", "50")
	was := debug.SetGCPercent(50)
	defer debug.SetGCPercent(was)
	defer Room(64 << 20)()
	require.Equal(t, 50, debug.SetGCPercent(50))
}

func TestNone(t *testing.T) {
	t.Setenv("GOGC", "")
	defer Room(0)()
	require.Equal(t, 100, debug.SetGCPercent(100))
}
