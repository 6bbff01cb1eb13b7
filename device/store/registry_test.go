package store

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/fuzzing"
	"github.com/batchyard/batchyard/task"
)

func gpu(id string) device.Device {
	return device.Device{ID: id, URL: "http://10.0.0.5:8000/", Models: []string{"llama"}, Tags: []string{"gpu"}, Slots: 4, CPU: .5, Queue: -1, InFlight: 2}
}

func TestBeatListLeave(t *testing.T) {
	onRedis(t, func(t *testing.T, rdb redis.UniversalClient, prefix string) {
		r := NewRegistry(rdb, Config{}, prefix)
		beaten, err := r.Beat(t.Context(), gpu("a"))
		require.NoError(t, err)
		require.True(t, beaten.Joined)
		beaten, err = r.Beat(t.Context(), gpu("a"))
		require.NoError(t, err)
		require.False(t, beaten.Joined, "the second heartbeat does not join")
		_, err = r.Beat(t.Context(), gpu("b"))
		require.NoError(t, err)

		ds, err := r.List(t.Context())
		require.NoError(t, err)
		require.Len(t, ds, 2)
		d := ds[0]
		require.Equal(t, "a", d.ID)
		require.Equal(t, "http://10.0.0.5:8000", d.URL)
		require.Equal(t, []string{"llama"}, d.Models)
		require.Equal(t, 4, d.Slots)
		require.Equal(t, -1, d.Queue)
		require.Equal(t, 2, d.InFlight)
		require.InDelta(t, 1.0, d.Weight, 0)
		require.False(t, d.Silent)
		require.False(t, d.JoinedAt.IsZero())
		require.WithinDuration(t, time.Now(), d.At, time.Minute)
		require.True(t, d.Serves("llama") && !d.Serves("gpt") && d.HasTags([]string{"gpu"}) && !d.HasTags([]string{"gpu", "big"}))

		was, err := r.Left(t.Context(), "a")
		require.NoError(t, err)
		require.True(t, was)
		require.NoError(t, r.Leave(t.Context(), "a"), "leaving twice is not an error")
		ds, err = r.List(t.Context())
		require.NoError(t, err)
		require.Len(t, ds, 1)
	})
}

// What people read as the time since when a device is down.
func TestTheRegistryKnowsSinceWhenADeviceIsAsItIs(t *testing.T) {
	m := miniredis.RunT(t)
	r := NewRegistry(client(t, m.Addr()), Config{}, "")
	start := time.Now().Truncate(time.Millisecond).UTC()
	beat := func(after time.Duration, change func(*device.Device)) time.Duration {
		t.Helper()
		m.SetTime(start.Add(after))
		d := gpu("a")
		change(&d)
		_, err := r.Beat(t.Context(), d)
		require.NoError(t, err)
		ds, err := r.List(t.Context())
		require.NoError(t, err)
		require.Equal(t, start, ds[0].JoinedAt)
		return ds[0].ChangedAt.Sub(start)
	}
	up := func(d *device.Device) { d.CPU = 0.9 }
	down := func(d *device.Device) { d.Problem = "connection refused" }
	require.Zero(t, beat(0, up))
	require.Zero(t, beat(5*time.Second, func(d *device.Device) { d.CPU = 0.1 }), "figures do not count")
	require.Equal(t, 10*time.Second, beat(10*time.Second, down))
	require.Equal(t, 10*time.Second, beat(15*time.Second, func(d *device.Device) { d.Problem = "no route to host" }), "it is still down")
	require.Equal(t, 20*time.Second, beat(20*time.Second, up))
}

func TestSilentThenBackThenForgotten(t *testing.T) {
	m := miniredis.RunT(t)
	r := NewRegistry(client(t, m.Addr()), Config{}, "")
	start := time.Now()
	m.SetTime(start)
	_, err := r.Beat(t.Context(), gpu("a"))
	require.NoError(t, err)

	m.SetTime(start.Add(16 * time.Second))
	ds, err := r.List(t.Context())
	require.NoError(t, err)
	require.True(t, ds[0].Silent)
	require.InDelta(t, 16, ds[0].Age.Seconds(), 0.01)

	beaten, err := r.Beat(t.Context(), gpu("a"))
	require.NoError(t, err)
	require.True(t, beaten.Joined, "a device that ends its silence joins")

	m.SetTime(start.Add(2 * time.Hour))
	ds, err = r.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, ds)
	require.Empty(t, m.Keys(), "a forgotten device takes no memory")
}

func TestEachSilenceIsReportedOnce(t *testing.T) {
	m := miniredis.RunT(t)
	one, other := NewRegistry(client(t, m.Addr()), Config{}, ""), NewRegistry(client(t, m.Addr()), Config{}, "")
	start := time.Now()
	say := func(r *Registry) []device.Device {
		ds, err := r.List(t.Context())
		require.NoError(t, err)
		first, err := r.ClaimSilences(t.Context(), ds)
		require.NoError(t, err)
		return first
	}
	for i := range 2 { // it recovers and falls silent again
		m.SetTime(start.Add(time.Duration(i) * time.Minute))
		_, err := one.Beat(t.Context(), gpu("a"))
		require.NoError(t, err)
		m.SetTime(start.Add(time.Duration(i)*time.Minute + 16*time.Second))
		require.Len(t, say(one), 1)
		require.Empty(t, say(other))
		require.Empty(t, say(one))
	}
}

func TestEmptiedRedisIsNoError(t *testing.T) {
	m := miniredis.RunT(t)
	r := NewRegistry(client(t, m.Addr()), Config{}, "")
	_, err := r.Beat(t.Context(), gpu("a"))
	require.NoError(t, err)
	m.FlushAll()
	ds, err := r.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, ds)
	beaten, err := r.Beat(t.Context(), gpu("a"))
	require.NoError(t, err)
	require.True(t, beaten.Joined)
}

func TestRegistryIsBounded(t *testing.T) {
	m := miniredis.RunT(t)
	r := NewRegistry(client(t, m.Addr()), Config{MaxDevices: 2}, "")
	for i := range 2 {
		_, err := r.Beat(t.Context(), gpu(fmt.Sprint("d", i)))
		require.NoError(t, err)
	}
	_, err := r.Beat(t.Context(), gpu("d2"))
	var fe *task.FieldError
	require.ErrorAs(t, err, &fe)
	_, err = r.Beat(t.Context(), gpu("d1"))
	require.NoError(t, err, "a known device is still accepted")
}

func TestOtherProgramsMayWriteToTheHash(t *testing.T) {
	m := miniredis.RunT(t)
	r := NewRegistry(client(t, m.Addr()), Config{}, "")
	m.HSet("{devices}", "own", fmt.Sprintf(`{"url":"http://h:1","models":["*"],"slots":2,"at":%d}`, time.Now().UnixMilli()))
	m.HSet("{devices}", "junk", `]`)
	m.HSet("{devices}", "bad id!", `{"url":"http://h:1","models":["*"]}`)
	ds, err := r.List(t.Context())
	require.NoError(t, err)
	require.Len(t, ds, 1)
	require.Equal(t, "own", ds[0].ID)
	require.True(t, ds[0].Serves("anything"))
	fields, err := m.HKeys("{devices}")
	require.NoError(t, err)
	require.Equal(t, []string{"own"}, fields, "invalid entries are deleted")
}

func TestWatchReportsChangesAndGaps(t *testing.T) {
	m := miniredis.RunT(t)
	r := NewRegistry(client(t, m.Addr()), Config{}, "")
	changed := make(chan struct{}, 100)
	background(t, func(ctx context.Context) error { return r.Watch(ctx, func() { changed <- struct{}{} }) })
	wait(t, changed, "the first subscription")

	_, err := r.Beat(t.Context(), gpu("a"))
	require.NoError(t, err)
	wait(t, changed, "joining")
	d := gpu("a")
	d.CPU = .9
	_, err = r.Beat(t.Context(), d)
	require.NoError(t, err)
	d.Slots = 5
	_, err = r.Beat(t.Context(), d)
	require.NoError(t, err)
	wait(t, changed, "the new slots")
	require.NoError(t, r.Leave(t.Context(), "a"))
	wait(t, changed, "leaving")
	require.Empty(t, changed, "a new figure alone is not a change")

	m.Close()
	require.NoError(t, m.Restart())
	wait(t, changed, "the subscription after Redis came back")
}

func TestInvalidHeartbeats(t *testing.T) {
	many := make([]string, device.MaxModels+1)
	for i := range many {
		many[i] = "m"
	}
	for field, change := range map[string]func(*device.Device){
		"device_id":  func(d *device.Device) { d.ID = "a/b" },
		"url":        func(d *device.Device) { d.URL = "ftp://x" },
		"models":     func(d *device.Device) { d.Models = many },
		"models[0]":  func(d *device.Device) { d.Models = []string{"a\x00"} },
		"tags[1]":    func(d *device.Device) { d.Tags = []string{"a", ""} },
		"slots":      func(d *device.Device) { d.Slots = -1 },
		"cpu":        func(d *device.Device) { d.CPU = 35 },
		"latency_ms": func(d *device.Device) { d.LatencyMS = -1 },
		"queue":      func(d *device.Device) { d.Queue = -2 },
		"weight":     func(d *device.Device) { d.Weight = -1 },
	} {
		t.Run(field, func(t *testing.T) {
			d := gpu("a")
			d.Normalize()
			change(&d)
			var fe *task.FieldError
			require.ErrorAs(t, d.Validate(), &fe)
			require.Equal(t, field, fe.Field)
			require.NotEmpty(t, fe.Remedy)
		})
	}
	d := gpu("a")
	d.URL = "http://user:secret@h/"
	require.NotContains(t, d.Validate().Error(), "secret")
}

func FuzzParseEntry(f *testing.F) {
	f.Add("a", `{"at":1,"joined_at":1,"sum":"00","url":"http://h","models":["m"],"slots":1}`)
	f.Add("a", `{"queue":9e99}`)
	f.Fuzz(func(t *testing.T, id, value string) {
		fuzzing.Bound(t, len(id)+len(value), func() { parseEntry(id, value, time.Now(), time.Second) })
		if d, ok := parseEntry(id, value, time.Now(), time.Second); ok {
			require.NoError(t, d.Validate())
		}
	})
}
