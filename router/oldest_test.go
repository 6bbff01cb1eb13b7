package router

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/waiting"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/test/testenv"
)

// waits asks a router what waits in it until the answer is as wanted.
func waits(t *testing.T, r *Router, what string, wanted func(map[waiting.Reason]waiting.Oldest) bool) map[waiting.Reason]waiting.Oldest {
	t.Helper()
	var got map[waiting.Reason]waiting.Oldest
	require.Eventually(t, func() bool {
		got = map[waiting.Reason]waiting.Oldest{}
		for _, o := range r.Waiting(time.Now()) {
			got[o.Reason] = o
		}
		return wanted(got)
	}, testenv.Patience, 20*time.Millisecond, what)
	return got
}

// A router says why tasks wait, also those that it has set aside; what no device can run is no stall, and neither is
// anything else while it works. It reports how far it has read.
func TestARouterSaysWhatWaits(t *testing.T) {
	y := newYard(t, 1)
	y.deps.Presence = store.NewPresence(y.deps.Redis, store.Config{ReaderTimeout: time.Minute}, "t:", nil, y.log.PartitionOf)
	r, err := New(smallWindow(), y.deps)
	require.NoError(t, err)
	y.run(r.Run)
	ids := y.produce(alike("none", 300, "none")...)
	got := waits(t, r, "tasks without a device", func(got map[waiting.Reason]waiting.Oldest) bool {
		aside, _ := got[waiting.NoDevice]
		return aside.What == "tasks.normal/0@0" && len(got) == 1
	})
	require.True(t, got[waiting.NoDevice].Still.IsZero())
	require.Eventually(t, func() bool {
		read, err := y.deps.Presence.Read(t.Context(), stream.TasksNormal, ids[299])
		return err == nil && read.Now && !read.Until.IsZero()
	}, testenv.Patience, 20*time.Millisecond, "it has read everything")

	y.beat(dev("d", 100, "none"))
	y.until("every task", y.all(ids))
	waits(t, r, "nothing", func(got map[waiting.Reason]waiting.Oldest) bool { return len(got) == 0 })
}

// While Redis is away, tasks wait for it, and that is what the router says.
func TestARouterWithoutRedisSaysSo(t *testing.T) {
	y := newYard(t, 1)
	r, err := New(smallWindow(), y.deps)
	require.NoError(t, err)
	y.run(r.Run)
	y.beat(dev("d", 1, "m"))
	y.until("a task", y.all(y.produce(alike("first", 1, "m")...)))
	require.NoError(t, y.redis.Close())
	y.produce(alike("second", 1, "m")...)
	got := waits(t, r, "Redis", func(got map[waiting.Reason]waiting.Oldest) bool { return !got[waiting.Redis].Still.IsZero() })
	require.NotEmpty(t, got[waiting.Redis].Cause)
}
