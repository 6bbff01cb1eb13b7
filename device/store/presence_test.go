package store

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/test/testenv"
)

// unservedOf returns the ids of the devices that are not served.
func unservedOf(t *testing.T, p *Presence, ids ...string) string {
	t.Helper()
	ds := make([]device.Device, len(ids))
	for i, id := range ids {
		ds[i] = device.Device{ID: id, Unserved: i%2 == 0}
	}
	require.NoError(t, p.Mark(t.Context(), ds))
	var out []string
	for _, d := range ds {
		if d.Unserved {
			out = append(out, d.ID)
		}
	}
	return strings.Join(out, " ")
}

// A device needs a reader of each topic, who was there within the timeout, by Redis' clock.
func TestPresence(t *testing.T) {
	t.Parallel()
	server := miniredis.RunT(t)
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) // far from this machine's time
	server.SetTime(now)
	partition := func(_, key string) int { return len(key) - 1 } // "" is not known yet
	p := NewPresence(testenv.RedisAt(t, server.Addr()), Config{ReaderTimeout: 10 * time.Second}, "t:", []string{"a", "b"}, partition)
	require.Equal(t, "x xx xxx", unservedOf(t, p, "x", "xx", "xxx"), "nothing was ever reported")
	require.NoError(t, p.Report(t.Context(), "a", []int{0, 1}))
	require.NoError(t, p.Report(t.Context(), "b", []int{0, 2}))
	require.Equal(t, "xx xxx", unservedOf(t, p, "x", "xx", "xxx"), "both topics must be read")

	server.SetTime(now.Add(10 * time.Second))
	require.Empty(t, unservedOf(t, p, "x"), "a restart takes less than that")
	require.NoError(t, p.Report(t.Context(), "a", []int{0}))
	server.SetTime(now.Add(11 * time.Second))
	require.Equal(t, "x", unservedOf(t, p, "x"), "the reader of one topic is gone")
	require.NoError(t, p.Report(t.Context(), "b", []int{0}))
	require.Empty(t, unservedOf(t, p, "x"))

	server.SetTime(now.Add(-time.Hour)) // Redis' clock was set back
	require.Equal(t, "x", unservedOf(t, p, "x"))
	require.NoError(t, p.Report(t.Context(), "a", []int{0}))
	require.NoError(t, p.Report(t.Context(), "b", []int{0}))
	require.Empty(t, unservedOf(t, p, "x"))
	server.FlushAll()
	require.Equal(t, "x", unservedOf(t, p, "x"), "Redis was emptied")
	require.Empty(t, unservedOf(t, p, ""), "without partitions nothing can be written either")
}

func TestReaderReportsWhatIsCurrent(t *testing.T) {
	t.Parallel()
	server := miniredis.RunT(t)
	p := NewPresence(testenv.RedisAt(t, server.Addr()), Config{}, "t:", []string{"a"}, func(string, string) int { return 3 })
	r := p.Reader("a", testenv.Logger(t))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { r.Run(ctx); close(ended) }()
	r.Current([]int{3})
	require.Eventually(t, func() bool { return unservedOf(t, p, "x") == "" }, testenv.Patience, 5*time.Millisecond)
	server.FlushAll()
	r.Current([]int{2, 3})
	require.Eventually(t, func() bool { return unservedOf(t, p, "x") == "" }, testenv.Patience, 5*time.Millisecond)
	require.Less(t, r.Interval(), p.cfg.ReaderTimeout/3, "a few reports may be lost")
	stop()
	testenv.Receive(t, ended, "the end")
	var none *Presence
	none.Reader("a", nil).Run(t.Context())
	none.Reader("a", nil).Current(nil)
}

// How far a topic is read is known from the last report, with a margin, and whether its reader is still there.
func TestHowFarATopicIsRead(t *testing.T) {
	t.Parallel()
	server := miniredis.RunT(t)
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	server.SetTime(now)
	p := NewPresence(testenv.RedisAt(t, server.Addr()), Config{ReaderTimeout: 20 * time.Second}, "t:", nil, func(_, key string) int { return len(key) - 1 })
	read := func(key string) Read {
		r, err := p.Read(t.Context(), "tasks", key)
		require.NoError(t, err)
		return r
	}
	require.Zero(t, read("x"), "nothing was ever reported")
	require.NoError(t, p.Report(t.Context(), "tasks", []int{0}))
	require.Equal(t, now.Add(-readLag), read("x").Until.UTC())
	require.True(t, read("x").Now)
	require.Zero(t, read("xx"), "another partition")
	require.Zero(t, read(""), "its partition is not known")
	server.SetTime(now.Add(time.Minute))
	require.False(t, read("x").Now)
	require.Equal(t, now.Add(-readLag), read("x").Until.UTC(), "what was read stays so")
	server.Close()
	_, err := p.Read(t.Context(), "tasks", "x")
	require.Error(t, err)
}
