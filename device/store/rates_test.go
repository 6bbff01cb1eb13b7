package store

import (
	"fmt"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/fuzzing"
)

func TestRatesAndHealthsAreShared(t *testing.T) {
	onRedis(t, func(t *testing.T, rdb redis.UniversalClient, prefix string) {
		r := NewRates(rdb, prefix)
		require.NoError(t, r.Report(t.Context(), nil, nil))
		now := time.Now()
		rates := map[device.RateKey]device.Rate{
			{DeviceID: "d", Model: "m"}:                {ServiceMS: 40.25, Samples: 7, At: now.Add(-time.Minute)},
			{DeviceID: "d", Model: "m", Batched: true}: {ServiceMS: 4, Samples: 1, At: now},
		}
		for i := range 2*maxCall + 1 {
			rates[device.RateKey{DeviceID: "many", Model: fmt.Sprint(i)}] = device.Rate{ServiceMS: 1, Samples: 1, At: now}
		}
		healths := map[string]device.Health{
			"d": {State: device.StateOpen, OpenUntil: now.Add(5 * time.Second), ThrottledUntil: now.Add(time.Minute), Slots: 3, DispatchMS: 1.5, Opened: 2, Why: "5 consecutive faults",
				Failing: "it broke", Since: now.Add(-time.Minute), Figures: device.Figures{Running: 1, Completed: 2, FailureRate: 0.5, MeanMS: 3, TokensPerSecond: 4}},
			"e": {State: device.StateClosed, OpenUntil: now.Add(-time.Second)},
		}
		require.NoError(t, r.Report(t.Context(), rates, healths))
		gotRates, gotHealths, err := r.Load(t.Context())
		require.NoError(t, err)
		require.Len(t, gotRates, len(rates))
		for k, want := range rates {
			got := gotRates[k]
			require.Equal(t, want.ServiceMS, got.ServiceMS)
			require.Equal(t, want.Samples, got.Samples)
			require.WithinDuration(t, want.At, got.At, patience/3)
		}
		d := gotHealths["d"]
		require.WithinDuration(t, healths["d"].OpenUntil, d.OpenUntil, patience/3)
		require.WithinDuration(t, healths["d"].ThrottledUntil, d.ThrottledUntil, patience/3)
		require.WithinDuration(t, now, d.At, patience/3)
		require.WithinDuration(t, healths["d"].Since, d.Since, patience/3)
		d.Since = healths["d"].Since
		d.OpenUntil, d.ThrottledUntil, d.At = healths["d"].OpenUntil, healths["d"].ThrottledUntil, time.Time{}
		require.Equal(t, healths["d"], d)
		require.Equal(t, device.StateClosed, gotHealths["e"].State)
		require.Zero(t, gotHealths["e"].OpenUntil, "it is over")
	})
}

// Workers, routers and Redis need not agree on the time.
func TestRatesDoNotDependOnClocks(t *testing.T) {
	m := miniredis.RunT(t)
	r := NewRates(client(t, m.Addr()), "t:")
	for _, off := range []time.Duration{-3 * time.Hour, 0, 3 * time.Hour} {
		now := time.Now()
		m.FlushAll()
		m.SetTime(now.Add(off))
		k := device.RateKey{DeviceID: "d", Model: "m"}
		require.NoError(t, r.Report(t.Context(), map[device.RateKey]device.Rate{k: {ServiceMS: 1, Samples: 1, At: now}},
			map[string]device.Health{"d": {State: device.StateOpen, OpenUntil: now.Add(time.Minute)}}))
		m.SetTime(now.Add(off + 20*time.Second))
		rates, healths, err := r.Load(t.Context())
		require.NoError(t, err)
		require.WithinDuration(t, now.Add(40*time.Second), healths["d"].OpenUntil, patience/3, "20 of its 60 seconds are over")
		require.WithinDuration(t, now.Add(-20*time.Second), rates[k].At, patience/3)
	}
}

func TestOldAndInvalidRatesAreDeleted(t *testing.T) {
	m := miniredis.RunT(t)
	r := NewRates(client(t, m.Addr()), "t:")
	now := time.Now()
	m.SetTime(now)
	k := device.RateKey{DeviceID: "d", Model: "m"}
	require.NoError(t, r.Report(t.Context(), map[device.RateKey]device.Rate{k: {ServiceMS: 1, Samples: 1, At: now}}, map[string]device.Health{"d": {State: device.StateClosed}}))
	m.HSet("t:rates", "no key", "{}")
	m.HSet("t:rates", "d\x1fm\x1fsingle\x1f", `{"at":1}`)
	m.HSet("t:rates", "d\x1fx\x1fsingle", "garbage")
	m.HSet("t:rates", "d\x1fy\x1fsingle", `{"at":9e300,"service_ms":1}`)
	m.HSet("t:health", "x", "[")
	m.HSet("t:health", "y", fmt.Sprintf(`{"at":%d,"state":"open","open_ms":1000000000000000,"slots":-3,"dispatch_ms":-1}`, now.UnixMilli()))
	rates, healths, err := r.Load(t.Context())
	require.NoError(t, err)
	require.Len(t, rates, 1)
	require.Len(t, healths, 2)
	require.False(t, healths["y"].OpenUntil.After(time.Now().Add(24*time.Hour)), "whatever another program writes, it ends")
	require.Zero(t, healths["y"].Slots)
	m.SetTime(now.Add(rateTTL + time.Minute))
	rates, healths, err = r.Load(t.Context())
	require.NoError(t, err)
	require.Empty(t, rates)
	require.Empty(t, healths)
	keys, err := m.HKeys("t:rates")
	require.Error(t, err, "%v", keys)
}

func FuzzParseRates(f *testing.F) {
	m := miniredis.RunT(f)
	r := NewRates(client(f, m.Addr()), "t:")
	f.Add("d\x1fm\x1fsingle", `{"at":1,"service_ms":2,"samples":3,"age_ms":4}`, `{"at":1,"state":"open","open_ms":5}`)
	f.Fuzz(func(t *testing.T, field, rate, health string) {
		m.FlushAll()
		m.HSet("t:rates", field, rate)
		m.HSet("t:health", field, health)
		// This includes the memory that the client library needs for its request.
		fuzzing.Bound(t, len(field)+len(rate)+len(health), func() {
			_, _, err := r.Load(t.Context())
			require.NoError(t, err)
		})
	})
}
