package learn

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
)

func TestADeviceIsLetGoForWhatItRefuses(t *testing.T) {
	t.Parallel()
	l, now := NewDeclines(), time.Unix(1000, 0)
	d := device.Decline{Endpoint: "e", Model: "m", Status: 404, Why: "no_endpoint"}
	for range 4 {
		require.False(t, l.Refused(now, d, 5))
	}
	require.False(t, l.Answered("e", "m", 0), "the count starts again")
	for range 4 {
		require.False(t, l.Refused(now, d, 5))
	}
	require.False(t, l.Declining("e", "m", 0, now))
	require.True(t, l.Refused(now, d, 5))
	require.False(t, l.Refused(now, d, 5), "once")
	require.True(t, l.Declining("e", "m", 1<<20, now))
	require.False(t, l.Declining("e", "other", 0, now))
	require.False(t, l.Declining("other", "m", 0, now))

	// Each further time is twice as long, up to a limit, and takes one refusal.
	for _, seconds := range []int{30, 60, 120, 240, 480, 600, 600} {
		pause := time.Duration(seconds) * time.Second
		require.True(t, l.Declining("e", "m", 0, now.Add(pause-1)))
		now = now.Add(pause)
		require.False(t, l.Declining("e", "m", 0, now))
		require.True(t, l.Refused(now, d, 5))
	}
	require.Len(t, l.List(now), 1)
	require.Equal(t, 404, l.List(now)[0].Status)
	require.False(t, l.Proven("e", "other"))
	require.True(t, l.Answered("e", "m", 0))
	require.True(t, l.Proven("e", "m"))
	require.Empty(t, l.List(now))

	// The next owner of the device knows.
	next := NewDeclines()
	require.True(t, l.Refused(now, d, 1))
	next.Seed(l.List(now), now)
	require.True(t, next.Declining("e", "m", 0, now))
	require.False(t, next.Proven("e", "m"))
	for i := range 10 * device.MaxDeclines {
		d.Model = string(rune('a' + i))
		l.Refused(now, d, 1)
	}
	require.LessOrEqual(t, len(l.List(now)), device.MaxDeclines)
}

// Prompts that are too long for a device say nothing about shorter ones, and what it answers is not too long.
func TestADeviceIsLetGoForLongPrompts(t *testing.T) {
	t.Parallel()
	l, now := NewDeclines(), time.Unix(1000, 0)
	long := device.Decline{Endpoint: "e", Model: "m", Status: 400, Why: "too_long", MinSize: 8 << 10}
	for range 5 {
		l.Refused(now, long, 5)
		l.Answered("e", "m", 4<<10)
	}
	require.True(t, l.Declining("e", "m", 8<<10, now))
	require.True(t, l.Declining("e", "m", 64<<10, now))
	require.False(t, l.Declining("e", "m", 4<<10, now))
	require.False(t, l.Declining("e", "m", 0, now))
	require.True(t, l.Answered("e", "m", 16<<10), "a larger one")
	require.False(t, l.Declining("e", "m", 8<<10, now))

	h := device.Health{Declines: []device.Decline{{Endpoint: "e", Model: "m", MinSize: 8 << 10, Until: now.Add(1)}}}
	for size, want := range map[int]bool{0: false, 1023: false, 8191: false, 8192: true, 1 << 20: true} {
		require.Equal(t, want, h.Declining("e", "m", device.SizeClass(size), now), size)
	}
	require.Equal(t, []int{0, 1024, 1024, 2048}, []int{device.SizeClass(1023), device.SizeClass(1024), device.SizeClass(2047), device.SizeClass(2048)})
}

func TestTheLargestBatchedRequestThatWorkedIsKnown(t *testing.T) {
	t.Parallel()
	b := NewBatchSizes()
	b.Worked("m", 100)
	require.Zero(t, b.Most("m"), "no limit is known")
	b.Refused("m", 128)
	require.Equal(t, 100, b.Most("m"))
	b.Refused("m", 90) // it takes fewer than before
	require.Equal(t, 45, b.Most("m"))
	b.Worked("m", 32)
	require.Equal(t, 45, b.Most("m"))
	b.Refused("m", 45)
	require.Equal(t, 32, b.Most("m"))
	b.Worked("m", 64) // more than it refused: no limit is known
	require.Zero(t, b.Most("m"))
	b.Refused("m", 1)
	require.Equal(t, 1, b.Most("m"))
	require.Zero(t, b.Most("other"))
	require.Equal(t, map[string]int{"m": 1}, b.Known())
	next := NewBatchSizes()
	next.Seed(map[string]int{"m": 32, "bad": -1})
	require.Equal(t, map[string]int{"m": 32}, next.Known())
	for i := range 2 * device.MaxBatches {
		b.Refused(string(rune('a'+i)), 10)
		b.Worked(string(rune('A'+i)), 10)
	}
	require.LessOrEqual(t, len(b.Known()), device.MaxBatches)
}
