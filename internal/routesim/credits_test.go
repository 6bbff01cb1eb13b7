package routesim

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/device"
)

// The model and the real credits in Redis are driven with the requireEqualUse calls and must
// give the requireEqualUse answers.
func TestAccountMatchesRedis(t *testing.T) {
	t.Parallel()
	server := miniredis.RunT(t)
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { _ = rdb.Close() })
	pools := []string{"a/each", "b/each", "c/merged"}
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		const ttl = 2 * time.Second
		now := epoch
		server.SetTime(now)
		real := device.NewCredits(rdb, device.Config{LeaseTTL: ttl}, fmt.Sprintf("run%d:", run))
		model := newAccount(ttl.Milliseconds())
		type held struct {
			pool, real, model string
			n                 int
		}
		var leases []held
		advance := func(d time.Duration) {
			now = now.Add(d)
			server.SetTime(now)
			server.FastForward(d)
		}
		requireEqualUse := func() {
			used, err := real.Used(t.Context(), pools)
			require.NoError(rt, err)
			model.renew(now.UnixMilli(), nil)
			for i, p := range pools {
				require.Equal(rt, used[i], model.used[p], "credits of %s in use", p)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) {},
			"acquire": func(rt *rapid.T) {
				who := rapid.SampledFrom([]string{"r1", "r2", "r3"}).Draw(rt, "who")
				var wants []device.Want
				for _, p := range rapid.SliceOfDistinct(rapid.SampledFrom(pools), rapid.ID).Draw(rt, "pools") {
					w := device.Want{Pool: p, Limit: rapid.IntRange(-1, 9).Draw(rt, "limit")}
					if rapid.Bool().Draw(rt, "by band") {
						for b := range w.Of {
							w.Of[b] = rapid.IntRange(0, 4).Draw(rt, "of")
							w.N += w.Of[b]
						}
					} else {
						w.N = rapid.IntRange(0, 6).Draw(rt, "n")
					}
					wants = append(wants, w)
				}
				var asks []device.Ask
				for _, p := range rapid.SliceOfDistinct(rapid.SampledFrom(pools), rapid.ID).Draw(rt, "asks") {
					asks = append(asks, device.Ask{Pool: p, Band: rapid.IntRange(0, 2).Draw(rt, "band"), N: rapid.IntRange(0, 4).Draw(rt, "waiting")})
				}
				gs, err := real.AcquireFor(t.Context(), who, wants, asks)
				require.NoError(rt, err)
				ms, _ := model.acquire(now.UnixMilli(), who, wants, asks)
				for i := range gs {
					g, m := gs[i], ms[i]
					require.Equal(rt, g.Lease == "", m.Lease == "")
					if g.N > 0 {
						leases = append(leases, held{g.Pool, g.Lease, m.Lease, g.N})
					}
					g.Lease, m.Lease = "", ""
					require.Equal(rt, g, m, "want %d of %v by %s with %v", i, wants, who, asks)
				}
				requireEqualUse()
			},
			"release": func(rt *rapid.T) {
				if len(leases) == 0 {
					return
				}
				i := rapid.IntRange(0, len(leases)-1).Draw(rt, "lease")
				n := rapid.IntRange(1, 7).Draw(rt, "n")
				l := leases[i]
				require.NoError(rt, real.Release(t.Context(), []device.Release{{Pool: l.pool, Lease: l.real, N: n}}))
				model.release(now.UnixMilli(), l.model, n)
				if rapid.Bool().Draw(rt, "forget") {
					leases = slices.Delete(leases, i, i+1)
				}
				requireEqualUse()
			},
			"renew": func(rt *rapid.T) {
				var refs []device.LeaseRef
				var ids []string
				for _, l := range leases {
					if rapid.Bool().Draw(rt, "renewed") {
						refs = append(refs, device.LeaseRef{Pool: l.pool, Lease: l.real})
						ids = append(ids, l.model)
					}
				}
				if len(refs) == 0 {
					return
				}
				lost, err := real.Renew(t.Context(), refs)
				require.NoError(rt, err)
				mine, _ := model.renew(now.UnixMilli(), ids)
				require.Equal(rt, lost, mine, "expired leases")
				requireEqualUse()
			},
			"wait": func(rt *rapid.T) {
				// Around the lifetimes of asks and leases, to the millisecond.
				advance(time.Duration(rapid.SampledFrom([]int{0, 1, 250, 499, 500, 501, 999, 1000, 1001, 1999, 2000, 2001}).Draw(rt, "ms")) * time.Millisecond)
			},
			"wait longer": func(rt *rapid.T) { advance(time.Duration(rapid.IntRange(1, 50).Draw(rt, "s")) * time.Second) },
		})
		requireEqualUse()
	})
}

// Redis reclaims at most 200 leases per call, in the order in which they expired.
func TestAccountReclaimsInOrder(t *testing.T) {
	t.Parallel()
	a := newAccount(1000)
	var wants []device.Want
	for i := range 300 {
		wants = append(wants, device.Want{Pool: fmt.Sprintf("p%03d", i), N: 1, Limit: 1})
	}
	for i := range wants {
		a.acquire(int64(i/100), "r", wants[i:i+1], nil)
	}
	require.Len(t, a.used, 300)
	require.Len(t, a.reap(1001), maxReap)
	require.Len(t, a.used, 100)
	require.Empty(t, a.reap(1001))
	require.Len(t, a.reap(1002), 100)
	require.Empty(t, a.used)
	require.Empty(t, a.leases)
}

// Asks and leases expire at the requireEqualUse millisecond in both.
func TestAccountExpiresLikeRedis(t *testing.T) {
	t.Parallel()
	server := miniredis.RunT(t)
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { _ = rdb.Close() })
	const ttl = 2 * time.Second
	for _, ms := range []int{500, 999, 1000, 1001, 1500, 1999, 2000, 2001} {
		wait := time.Duration(ms) * time.Millisecond
		server.SetTime(epoch)
		redisHas := device.NewCredits(rdb, device.Config{LeaseTTL: ttl}, "wait"+wait.String()+":")
		model := newAccount(ttl.Milliseconds())
		ask := []device.Ask{{Pool: "a/each", Band: 0, N: 1}}
		want := func(n int) []device.Want { return []device.Want{{Pool: "a/each", N: n, Limit: 3, Of: [3]int{0, 0, n}}} }
		both := func(who string, wants []device.Want, asks []device.Ask) {
			gs, err := redisHas.AcquireFor(t.Context(), who, wants, asks)
			require.NoError(t, err)
			mine, _ := model.acquire(epoch.Add(wait).UnixMilli(), who, wants, asks)
			for i := range gs {
				gs[i].Lease, mine[i].Lease = "", ""
			}
			require.Equal(t, gs, mine, wait)
		}
		model.acquire(epoch.UnixMilli(), "r1", want(1), ask)
		_, err := redisHas.AcquireFor(t.Context(), "r1", want(1), ask)
		require.NoError(t, err)
		server.SetTime(epoch.Add(wait))
		server.FastForward(wait)
		both("r2", want(3), nil)
		both("r1", want(3), nil)
	}
}
