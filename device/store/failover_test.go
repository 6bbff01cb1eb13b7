package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/task"
)

// lines is a log that can be searched while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.b.String(), text)
}

func newLines() (*lines, *slog.Logger) {
	l := &lines{}
	return l, slog.New(slog.NewTextHandler(l, nil))
}

// value reads a gauge or counter as Prometheus would.
func value(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue() + f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// server is a Redis that a test may kill.
type server struct {
	addr string
	cmd  *exec.Cmd
	rdb  *redis.Client
}

func (s *server) kill(t *testing.T) {
	require.NoError(t, s.cmd.Process.Kill())
	_ = s.cmd.Wait() // it was killed
}

func startServer(t *testing.T, args ...string) *server {
	t.Helper()
	program, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skip("redis-server is not installed") // TestMain fails in CI: see cluster
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a test
	require.NoError(t, err)
	port := l.Addr().(*net.TCPAddr).Port
	require.NoError(t, l.Close())
	all := []string{"--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", t.TempDir(), "--save", "", "--appendonly", "no"}
	if len(args) > 0 && args[0] == "--cluster-enabled" {
		args = append(args, "--cluster-port", strconv.Itoa(clusterBus(port)))
	}
	s := &server{addr: fmt.Sprint("127.0.0.1:", port), cmd: exec.Command(program, append(all, args...)...)} //nolint:gosec,noctx // it runs as long as the test
	require.NoError(t, s.cmd.Start())
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill() // it may have been killed
		_ = s.cmd.Wait()
	})
	s.rdb = redis.NewClient(&redis.Options{Addr: s.addr})
	t.Cleanup(func() { _ = s.rdb.Close() })
	require.Eventually(t, func() bool { return s.rdb.Ping(context.Background()).Err() == nil }, patience, 10*time.Millisecond)
	return s
}

// failoverCluster is a Redis Cluster of three masters, the first of which has a replica.
func failoverCluster(t *testing.T) []*server {
	t.Helper()
	ctx := t.Context()
	var all []*server
	for range 4 {
		all = append(all, startServer(t, "--cluster-enabled", "yes", "--cluster-node-timeout", "1000"))
	}
	for i, s := range all {
		if i < 3 {
			require.NoError(t, s.rdb.ClusterAddSlotsRange(ctx, []int{0, 5461, 10923}[i], []int{5460, 10922, 16383}[i]).Err())
		}
		if i > 0 {
			host, port, err := net.SplitHostPort(s.addr)
			require.NoError(t, err)
			bus, err := strconv.Atoi(port)
			require.NoError(t, err)
			require.NoError(t, all[0].rdb.Do(ctx, "CLUSTER", "MEET", host, port, strconv.Itoa(clusterBus(bus))).Err())
		}
	}
	knows := func(s *server, n int) func() bool {
		return func() bool {
			return strings.Contains(s.rdb.ClusterInfo(ctx).Val(), fmt.Sprint("cluster_known_nodes:", n))
		}
	}
	for _, s := range all {
		require.Eventually(t, knows(s, 4), patience, 10*time.Millisecond)
	}
	id, err := all[0].rdb.Do(ctx, "CLUSTER", "MYID").Text()
	require.NoError(t, err)
	require.NoError(t, all[3].rdb.ClusterReplicate(ctx, id).Err())
	for _, s := range all {
		require.Eventually(t, func() bool {
			return strings.Contains(s.rdb.ClusterInfo(ctx).Val(), "cluster_state:ok") && strings.Contains(s.rdb.ClusterNodes(ctx).Val(), "slave "+id)
		}, patience, 10*time.Millisecond)
	}
	require.Eventually(t, func() bool {
		return strings.Contains(all[3].rdb.Info(ctx, "replication").Val(), "master_link_status:up")
	}, patience, 10*time.Millisecond)
	return all
}

// keyOf returns a key in one of the slots of the first master.
func keyOf(t *testing.T, s *server) string {
	t.Helper()
	for i := range 1000 {
		key := fmt.Sprintf("k%d", i)
		if slot, err := s.rdb.ClusterKeySlot(t.Context(), key).Result(); err == nil && slot <= 5460 {
			return key
		}
	}
	t.Fatal("no such key")
	return ""
}

// When a replica is promoted, the client uses it although nothing redirects it there, and without
// waiting for the next time it asks by itself, which is an hour away here. The log says what is waited
// for, and when that is over.
func TestAPromotedReplicaIsFound(t *testing.T) {
	all := failoverCluster(t)
	var addrs []string
	for _, s := range all {
		addrs = append(addrs, s.addr)
	}
	log, logger := newLines()
	reg := prometheus.NewRegistry()
	rdb, err := openRedis(t.Context(), RedisConfig{Addr: strings.Join(addrs, ","), Timeout: time.Second}, time.Hour, logger, metrics.New(reg))
	require.NoError(t, err)
	defer func() { require.NoError(t, rdb.Close()) }()
	key := keyOf(t, all[0])
	require.NoError(t, rdb.Set(t.Context(), key, "before", 0).Err())
	require.NoError(t, all[0].rdb.Wait(t.Context(), 1, patience).Err())
	all[0].kill(t)
	require.Error(t, rdb.Set(t.Context(), key, "now", 0).Err(), "nothing is promoted yet")
	require.Eventually(t, func() bool { return rdb.Set(t.Context(), key, "after", 0).Err() == nil }, patience, 50*time.Millisecond)
	require.Equal(t, "after", all[3].rdb.Get(t.Context(), key).Val())
	require.Eventually(t, func() bool { return log.has("Redis answers again") }, patience, 10*time.Millisecond)
	require.True(t, log.has("the master "+all[0].addr+" of the Redis Cluster, or a replica to be promoted in its place"))
	require.Zero(t, value(t, reg, "batchyard_device_redis_down"))
}

// A Redis that evicts keys is reported when the program starts, and while it runs.
func TestEvictionIsNoticed(t *testing.T) {
	s := startServer(t, "--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru")
	log, logger := newLines()
	reg := prometheus.NewRegistry()
	rdb, err := OpenRedis(t.Context(), RedisConfig{Addr: s.addr}, logger, metrics.New(reg))
	require.NoError(t, err)
	defer func() { require.NoError(t, rdb.Close()) }()
	require.True(t, log.has("set maxmemory-policy to noeviction"))
	require.Contains(t, rdb.Note(), "maxmemory-policy is allkeys-lru")
	require.InDelta(t, 1, value(t, reg, "batchyard_device_redis_may_evict_keys"), 0)
	require.False(t, log.has("has evicted keys"))
	for i := range 200 {
		require.NoError(t, s.rdb.Set(t.Context(), fmt.Sprint("k", i), make([]byte, 64<<10), 0).Err())
	}
	rdb.monitor.checkEviction(t.Context())
	require.True(t, log.has("has evicted keys"))
	require.Positive(t, value(t, reg, "batchyard_device_redis_evicted_keys_total"))
	require.NoError(t, s.rdb.ConfigSet(t.Context(), "maxmemory-policy", "noeviction").Err())
	rdb.monitor.checkEviction(t.Context())
	require.Empty(t, rdb.Note())
	require.Zero(t, value(t, reg, "batchyard_device_redis_may_evict_keys"))
}

// A Redis that cannot say whether it evicts is not reported.
func TestARedisThatDoesNotSay(t *testing.T) {
	log, logger := newLines()
	rdb, err := OpenRedis(t.Context(), RedisConfig{Addr: miniredis.RunT(t).Addr()}, logger, nil)
	require.NoError(t, err)
	require.Empty(t, rdb.Note())
	require.NoError(t, rdb.Close())
	require.False(t, log.has("level=WARN"))
}

// lostAnswers fails calls of scripts: half of them before they reach Redis, half of them after.
type lostAnswers struct {
	mu    sync.Mutex
	left  int
	calls int
	over  chan struct{} // closed when a call gets its answer
}

func (l *lostAnswers) await(t *testing.T) {
	t.Helper()
	wait(t, l.over, "an answer")
}

var errLostAnswer = errors.New("the answer was lost")

func (l *lostAnswers) DialHook(next redis.DialHook) redis.DialHook { return next }

func (l *lostAnswers) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (l *lostAnswers) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		l.mu.Lock()
		fail := l.left > 0
		l.left--
		l.calls++
		send := l.calls%2 == 0
		l.mu.Unlock()
		if !fail {
			err := next(ctx, cmd)
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.left == -1 {
				close(l.over)
			}
			return err
		}
		if send {
			_ = next(ctx, cmd)
		}
		cmd.SetErr(errLostAnswer)
		return errLostAnswer
	}
}

// Releases that Redis did not answer are repeated, so the credits do not stay taken until their
// lease expires; and a release that took effect although its answer was lost counts once.
func TestFailedReleasesAreRepeated(t *testing.T) {
	m := miniredis.RunT(t)
	credits := NewCredits(client(t, m.Addr()), Config{}, "t:")
	grants, err := credits.Acquire(t.Context(), "r", []device.Want{{Pool: "a/single", N: 3, Limit: 3}})
	require.NoError(t, err)
	require.Equal(t, 3, grants[0].N)
	require.NoError(t, releaseScript.Load(t.Context(), client(t, m.Addr())).Err())
	failing := client(t, m.Addr())
	hook := &lostAnswers{left: 4, over: make(chan struct{})}
	failing.AddHook(hook)
	renewer := NewLeaseRenewer(NewCredits(failing, Config{}, "t:"), slog.New(slog.DiscardHandler))
	background(t, func(ctx context.Context) error { renewer.Run(ctx); return nil })
	lease := task.Lease{Pool: grants[0].Pool, ID: grants[0].Lease}
	for range 3 {
		renewer.Hold(lease)
	}
	used := func(n int) func() bool {
		return func() bool {
			got, err := credits.Used(context.Background(), []string{"a/single"})
			return err == nil && got[0] == n
		}
	}
	renewer.Release(lease)
	hook.await(t)
	require.Eventually(t, used(2), patience, 10*time.Millisecond)
	renewer.Release(lease)
	require.Eventually(t, used(1), patience, 10*time.Millisecond)
}
