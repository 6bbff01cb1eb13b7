package clusters

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// sample is how many results there were at a time.
type sample struct {
	at time.Time
	n  int64
}

// watchResults counts the records of the topic results until ctx ends.
func watchResults(ctx context.Context, t testing.TB, in *harness.Installation) <-chan sample {
	out := make(chan sample, 10_000)
	go func() {
		defer close(out)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			total := int64(0)
			for _, end := range in.Ends(t, stream.Results) {
				total += end
			}
			out <- sample{time.Now(), total}
		}
	}()
	return out
}

// masterOf returns the address of the master of a key's slot, as a node that answers says.
func masterOf(ctx context.Context, rdb *redis.ClusterClient, key string, not string) string {
	slot, err := rdb.ClusterKeySlot(ctx, key).Result()
	if err != nil {
		return ""
	}
	master := ""
	_ = rdb.ForEachShard(ctx, func(ctx context.Context, node *redis.Client) error {
		if node.Options().Addr == not {
			return nil
		}
		ranges, err := node.ClusterSlots(ctx).Result() //nolint:staticcheck // ClusterShards needs Redis 7
		if err != nil {
			return nil //nolint:nilerr // another node answers
		}
		for _, r := range ranges {
			if int64(r.Start) <= slot && slot <= int64(r.End) && len(r.Nodes) > 0 && r.Nodes[0].Addr != not {
				master = r.Nodes[0].Addr
			}
		}
		return nil
	})
	return master
}

// TestRoutingContinuesAfterAMasterIsLost kills the master of the Redis Cluster that holds the credits
// while tasks run. Routing is back within five seconds of the promotion of its replica, every task
// has one result, and the log says what is waited for.
func TestRoutingContinuesAfterAMasterIsLost(t *testing.T) {
	c := Start(t, "redis")
	services := harness.Get(t, harness.Shared)
	in := harness.Install(t, services, map[string]any{
		"redis.addr": c.Addrs("redis", 6), "redis.timeout": "3s", "devices.lease_ttl": "15s", "router.refresh_interval": "500ms", "devices.heartbeat_timeout": "15s",
	})
	var specs []fleet.Spec
	for i := range 4 {
		specs = append(specs, fleet.Spec{ID: fmt.Sprintf("d%d", i), Slots: 8, ServiceTime: 100 * time.Millisecond})
	}
	in.Fleet(t, specs...)
	a, b := in.Process(t, "serve"), in.Process(t, "serve")
	const tasks = 12_000
	var ids []string
	for i := 0; i < tasks; i += 500 {
		batch, names := harness.Chats(fmt.Sprintf("t%d-", i), 500)
		a.API().Submit(t, batch...)
		ids = append(ids, names...)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	samples := watchResults(ctx, t, in)
	var before []sample
	for s := range samples { // full speed for three seconds
		if before = append(before, s); s.at.Sub(before[0].at) > 5*time.Second && s.n > 500 {
			break
		}
	}
	n := len(before)
	full := float64(before[n-1].n-before[n-21].n) / before[n-1].at.Sub(before[n-21].at).Seconds()

	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: strings.Split(c.Addrs("redis", 6), ",")})
	defer rdb.Close()
	key := in.RedisPrefix + "{credits}:used"
	holder := masterOf(ctx, rdb, key, "")
	require.NotEmpty(t, holder)
	c.Do(t, "kill", c.Member(t, "redis", holder))
	killed := time.Now()
	var promoted time.Time
	promotion := make(chan time.Time, 1)
	go func() {
		for ctx.Err() == nil {
			if masterOf(ctx, rdb, key, holder) != "" {
				promotion <- time.Now()
				return
			}
		}
	}()
	var window []sample
	var back time.Time
	for s := range samples {
		select {
		case promoted = <-promotion:
		default:
		}
		window = append(window, s)
		if len(window) <= 10 || promoted.IsZero() {
			continue
		}
		old := window[len(window)-11] // a second ago
		rate := float64(s.n-old.n) / s.at.Sub(old.at).Seconds()
		if old.at.After(promoted) && rate > 0.8*full {
			back = old.at
			break
		}
		if s.at.Sub(killed) > 90*time.Second {
			break
		}
	}
	t.Logf("full speed is %.0f results/s; promoted after %.1f s; full speed again %.1f s after the promotion", full, promoted.Sub(killed).Seconds(), back.Sub(promoted).Seconds())
	for i := 10; i < len(window); i += 10 {
		t.Logf("%5.1f s after the kill: %4d results/s", window[i].at.Sub(killed).Seconds(), window[i].n-window[i-10].n)
	}
	require.False(t, back.IsZero(), "routing is not back at full speed")
	cancel()
	in.Await(t, ids, 2*time.Minute)
	require.Equal(t, int64(tasks), harness.SQL[int64](t, in, "SELECT count(*) FROM results WHERE state = 'SUCCESS'"))
	if in.Program == "" {
		require.LessOrEqual(t, back.Sub(promoted), 5*time.Second)
		host, _, err := net.SplitHostPort(holder)
		require.NoError(t, err)
		require.Contains(t, a.Log()+b.Log(), "Redis does not answer", host)
		require.Contains(t, a.Log()+b.Log(), "Redis answers again")
	}
}
