package store

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/device"
)

func TestAcquireReleaseRenew(t *testing.T) {
	onRedis(t, func(t *testing.T, rdb redis.UniversalClient, prefix string) {
		c := NewCredits(rdb, Config{}, prefix)
		ctx := t.Context()
		gs, err := c.Acquire(ctx, "r1", []device.Want{{Pool: "a/single", N: 3, Limit: 4}, {Pool: "b/single", N: 1}, {Pool: "a/single", N: 3, Limit: 4}, {Pool: "c/single", N: 2, Limit: 9}})
		require.NoError(t, err)
		require.Equal(t, []int{3, 0, 1, 2}, []int{gs[0].N, gs[1].N, gs[2].N, gs[3].N})
		require.Equal(t, []int{3, 0, 4, 2}, []int{gs[0].Used, gs[1].Used, gs[2].Used, gs[3].Used})
		require.Empty(t, gs[1].Lease)

		used := func() []int {
			u, err := c.Used(ctx, []string{"a/single", "b/single", "c/single"})
			require.NoError(t, err)
			return u
		}
		require.Equal(t, []int{4, 0, 2}, used())

		require.NoError(t, c.Release(ctx, []device.Release{{Pool: "a/single", Lease: gs[0].Lease, N: 1}, {Pool: "a/single", Lease: gs[0].Lease, N: 1}}))
		require.Equal(t, []int{2, 0, 2}, used(), "a lease can be released in parts")
		require.NoError(t, c.Release(ctx, []device.Release{{Pool: "a/single", Lease: gs[0].Lease, N: 99}}))
		require.Equal(t, []int{1, 0, 2}, used(), "never more than it holds")
		require.NoError(t, c.Release(ctx, []device.Release{{Pool: "a/single", Lease: gs[0].Lease, N: 1}, {Pool: "a/single", Lease: "unknown", N: 1}}))
		require.Equal(t, []int{1, 0, 2}, used(), "releasing twice does nothing")

		lost, err := c.Renew(ctx, []device.LeaseRef{{Pool: "a/single", Lease: gs[2].Lease}, {Pool: "a/single", Lease: gs[0].Lease}})
		require.NoError(t, err)
		require.Equal(t, 1, lost)
		require.NoError(t, c.Release(ctx, []device.Release{{Pool: "a/single", Lease: gs[2].Lease, N: 1}, {Pool: "c/single", Lease: gs[3].Lease, N: 2}}))
		require.Equal(t, []int{0, 0, 0}, used())
	})
}

// A client that did not get the reply repeats the call.
func TestRetriesCountOnce(t *testing.T) {
	onRedis(t, func(t *testing.T, rdb redis.UniversalClient, prefix string) {
		c := NewCredits(rdb, Config{}, prefix)
		acquire := []any{15000, "r1.call.", c.channel, "r1", 1000, 0, "a/single", 3, 0, 0, 4}
		keys := append(slices.Clone(c.keys[:3]), c.asks)
		first, err := acquireScript.Run(t.Context(), rdb, keys, acquire...).Result()
		require.NoError(t, err)
		again, err := acquireScript.Run(t.Context(), rdb, keys, acquire...).Result()
		require.NoError(t, err)
		require.Equal(t, first, again)

		release := []any{"call-2", c.channel, "r1.call.1", 1}
		n, err := releaseScript.Run(t.Context(), rdb, c.keys, release...).Int()
		require.NoError(t, err)
		require.Equal(t, 1, n)
		n, err = releaseScript.Run(t.Context(), rdb, c.keys, release...).Int()
		require.NoError(t, err)
		require.Zero(t, n)
		u, err := c.Used(t.Context(), []string{"a/single"})
		require.NoError(t, err)
		require.Equal(t, []int{2}, u)
	})
}

func TestLargeCallsAreSplit(t *testing.T) {
	onRedis(t, func(t *testing.T, rdb redis.UniversalClient, prefix string) {
		c := NewCredits(rdb, Config{}, prefix)
		var wants []device.Want
		for i := range 2*maxCall + 7 {
			wants = append(wants, device.Want{Pool: device.Pool(fmt.Sprint("d", i), device.ClassSingle), N: 1, Limit: 1})
		}
		gs, err := c.Acquire(t.Context(), "r", wants)
		require.NoError(t, err)
		var rel []device.Release
		var refs []device.LeaseRef
		for _, g := range gs {
			require.Equal(t, 1, g.N)
			rel = append(rel, device.Release{Pool: g.Pool, Lease: g.Lease, N: 1})
			refs = append(refs, device.LeaseRef{Pool: g.Pool, Lease: g.Lease})
		}
		lost, err := c.Renew(t.Context(), refs)
		require.NoError(t, err)
		require.Zero(t, lost)
		require.NoError(t, c.Release(t.Context(), rel))
		n, err := rdb.Exists(t.Context(), c.keys[:3]...).Result()
		require.NoError(t, err)
		require.Zero(t, n, "no lease, no memory")
	})
}

// lease is a lease in the model.
type lease struct {
	pool  string
	n     int
	until time.Time
}

// Compares the account with a model, for any interleaving of holders that acquire, release
// in parts or twice, renew or die, of time passing and of Redis being emptied. After each
// step the account equals the model, and no pool exceeds the limit it was acquired under.
func TestCreditsProperty(t *testing.T) {
	m := miniredis.RunT(t)
	rdb := client(t, m.Addr())
	rapid.Check(t, func(t *rapid.T) {
		m.FlushAll()
		now := time.UnixMilli(1_800_000_000_000)
		m.SetTime(now)
		const ttl = 10 * time.Second
		c := NewCredits(rdb, Config{LeaseTTL: ttl}, "p:")
		ctx := context.Background()
		pools := []string{"a/single", "a/batched", "b/single"}
		limits := map[string]int{"a/single": 4, "a/batched": 1, "b/single": 7}
		alive := map[string]*lease{}
		var known []device.LeaseRef // every lease that ever existed, dead holders' included
		used := func(pool string) (n int) {
			for _, l := range alive {
				if l.pool == pool {
					n += l.n
				}
			}
			return n
		}
		pick := func(t *rapid.T) device.LeaseRef {
			if len(known) == 0 {
				t.Skip("no lease yet")
			}
			return known[rapid.IntRange(0, len(known)-1).Draw(t, "lease")]
		}
		t.Repeat(map[string]func(*rapid.T){
			"acquire": func(t *rapid.T) {
				var wants []device.Want
				for _, p := range pools {
					if n := rapid.IntRange(0, 5).Draw(t, "n"); n > 0 {
						wants = append(wants, device.Want{Pool: p, N: n, Limit: limits[p]})
					}
				}
				gs, err := c.Acquire(ctx, "h", wants)
				require.NoError(t, err)
				for i, g := range gs {
					require.Equal(t, min(wants[i].N, limits[g.Pool]-used(g.Pool)), g.N)
					if g.N > 0 {
						alive[g.Lease] = &lease{g.Pool, g.N, now.Add(ttl)}
						known = append(known, device.LeaseRef{Pool: g.Pool, Lease: g.Lease})
					}
					require.Equal(t, used(g.Pool), g.Used)
				}
			},
			"release": func(t *rapid.T) {
				ref, n := pick(t), rapid.IntRange(1, 4).Draw(t, "n")
				require.NoError(t, c.Release(ctx, []device.Release{{Pool: ref.Pool, Lease: ref.Lease, N: n}}))
				if l := alive[ref.Lease]; l != nil {
					if l.n -= n; l.n <= 0 {
						delete(alive, ref.Lease)
					}
				}
			},
			"renew": func(t *rapid.T) {
				ref := pick(t)
				lost, err := c.Renew(ctx, []device.LeaseRef{ref})
				require.NoError(t, err)
				if l := alive[ref.Lease]; l != nil {
					require.Zero(t, lost)
					l.until = now.Add(ttl)
				} else {
					require.Equal(t, 1, lost)
				}
			},
			"time": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(1, 12_000).Draw(t, "ms")) * time.Millisecond)
				m.SetTime(now)
				for id, l := range alive {
					if !l.until.After(now) {
						delete(alive, id)
					}
				}
			},
			"emptied": func(t *rapid.T) {
				if rapid.IntRange(0, 9).Draw(t, "rarely") > 0 {
					t.Skip("rarely")
				}
				m.FlushAll()
				clear(alive)
			},
			"": func(t *rapid.T) {
				us, err := c.Used(ctx, pools)
				require.NoError(t, err)
				for i, p := range pools {
					require.Equal(t, used(p), us[i], p)
					require.LessOrEqual(t, us[i], limits[p])
				}
			},
		})
	})
}

// Many holders at once: none may see more credits in use than the limit, by their own
// count, which does not ask Redis.
func TestLimitHoldsUnderConcurrency(t *testing.T) {
	onRedis(t, func(t *testing.T, rdb redis.UniversalClient, prefix string) {
		const limit = 5
		var inUse [3]atomic.Int64
		var wg sync.WaitGroup
		for h := range 8 {
			wg.Go(func() {
				c := NewCredits(rdb, Config{}, prefix)
				for range 100 {
					p := rand.IntN(3)
					pool := device.Pool(fmt.Sprint("d", p), device.ClassSingle)
					gs, err := c.Acquire(t.Context(), fmt.Sprint("h", h), []device.Want{{Pool: pool, N: 1 + rand.IntN(3), Limit: limit}})
					if err != nil {
						t.Error(err)
						return
					}
					g := gs[0]
					if n := inUse[p].Add(int64(g.N)); n > limit {
						t.Errorf("%d credits of %s are in use, the limit is %d", n, pool, limit)
					}
					for range g.N { // one by one, as tasks end
						inUse[p].Add(-1)
						if err := c.Release(t.Context(), []device.Release{{Pool: pool, Lease: g.Lease, N: 1}}); err != nil {
							t.Error(err)
							return
						}
					}
				}
			})
		}
		wg.Wait()
	})
}

func TestWatchReportsFreedPools(t *testing.T) {
	m := miniredis.RunT(t)
	c := NewCredits(client(t, m.Addr()), Config{LeaseTTL: time.Second}, "")
	freed := make(chan []string, 100)
	background(t, func(ctx context.Context) error { return c.Watch(ctx, func(p []string) { freed <- p }) })
	require.Nil(t, wait(t, freed, "the first subscription"))

	gs, err := c.Acquire(t.Context(), "h", []device.Want{{Pool: "a/single", N: 1, Limit: 1}, {Pool: "b/single", N: 1, Limit: 1}})
	require.NoError(t, err)
	require.NoError(t, c.Release(t.Context(), []device.Release{{Pool: "a/single", Lease: gs[0].Lease, N: 1}}))
	require.Equal(t, []string{"a/single"}, wait(t, freed, "the released credit"))
	// The holder of b dies: the watcher notices by itself, without any other call.
	require.Equal(t, []string{"b/single"}, wait(t, freed, "the credit of the dead holder"))

	m.Close()
	require.NoError(t, m.Restart())
	require.Nil(t, wait(t, freed, "the subscription after Redis came back"))
}

func BenchmarkRound(b *testing.B) {
	m := miniredis.RunT(b)
	rdb := redis.NewUniversalClient(&redis.UniversalOptions{Addrs: []string{m.Addr()}})
	defer rdb.Close()
	c := NewCredits(rdb, Config{}, "b:")
	wants := make([]device.Want, 100) // 256 tasks over 100 pools
	for i := range wants {
		wants[i] = device.Want{Pool: device.Pool(fmt.Sprint("device-", i), device.ClassSingle), N: 2 + i%2, Limit: 8}
	}
	var rel []device.Release
	for b.Loop() {
		gs, err := c.Acquire(b.Context(), "router@host-1", wants)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		rel = rel[:0]
		for _, g := range gs {
			rel = append(rel, device.Release{Pool: g.Pool, Lease: g.Lease, N: g.N})
		}
		if err := c.Release(b.Context(), rel); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// While tasks of a priority wait at one router, no other router gets the credits that they
// need for a lower priority.
func TestCreditsAreKeptForHigherPrioritiesElsewhere(t *testing.T) {
	onRedis(t, func(t *testing.T, rdb redis.UniversalClient, prefix string) {
		c := NewCredits(rdb, Config{}, prefix)
		take := func(who string, of [3]int, limit int, asks ...device.Ask) device.Grant {
			gs, err := c.AcquireFor(t.Context(), who, []device.Want{{Pool: "d/single", Limit: limit, ByPriority: of}}, asks)
			require.NoError(t, err)
			return gs[0]
		}
		ask := func(who string, priority, n int) {
			_, err := c.AcquireFor(t.Context(), who, nil, []device.Ask{{Pool: "d/single", Priority: priority, N: n}})
			require.NoError(t, err)
		}
		require.Equal(t, 4, take("a", [3]int{1, 0, 3}, 4).N)
		ask("a", 0, 2)
		g := take("b", [3]int{0, 0, 4}, 7) // 3 are free, 2 of them are reserved
		require.Equal(t, []any{1, true}, []any{g.N, g.Outranked})
		g = take("b", [3]int{0, 2, 0}, 7)
		require.Equal(t, []any{0, true, ""}, []any{g.N, g.Outranked, g.Lease})
		g = take("b", [3]int{1, 0, 1}, 7)
		require.Equal(t, []any{1, true}, []any{g.N, g.Outranked}, "the same priority gets them")
		ask("b", 1, 5)
		g = take("c", [3]int{0, 1, 0}, 7)
		require.True(t, g.Outranked, "an ask of a lower priority does not replace one of a higher")
		g = take("a", [3]int{0, 0, 1}, 7)
		require.Equal(t, []any{1, false}, []any{g.N, g.Outranked}, "a router's own ask does not count")
		ask("a", 0, 0)
		g = take("b", [3]int{0, 0, 1}, 8)
		require.Equal(t, []any{1, false}, []any{g.N, g.Outranked}, "the ask was withdrawn")
	})
}

func TestRoutersAreCounted(t *testing.T) {
	onRedis(t, func(t *testing.T, rdb redis.UniversalClient, prefix string) {
		c := NewCredits(rdb, Config{}, prefix)
		for i, who := range []string{"a", "b", "b", "c"} {
			n, err := c.Present(t.Context(), who, time.Hour)
			require.NoError(t, err)
			require.Equal(t, []int{1, 2, 2, 3}[i], n)
		}
		require.NoError(t, c.Absent(t.Context(), "b"))
		n, err := c.Present(t.Context(), "a", time.Hour)
		require.NoError(t, err)
		require.Equal(t, 2, n)
		n, err = c.Present(t.Context(), "a", 0)
		require.NoError(t, err)
		require.Equal(t, 1, n, "a router that was not seen lately is gone")
	})
}
