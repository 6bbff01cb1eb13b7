package device

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if theCluster.stop != nil {
		theCluster.stop()
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// theCluster is a Redis Cluster of one node. It owns all slots and, like a larger cluster,
// refuses commands that touch two of them.
var theCluster struct {
	sync.Mutex
	addr string
	stop func()
}

func cluster(t *testing.T) string {
	t.Helper()
	theCluster.Lock()
	defer theCluster.Unlock()
	if theCluster.addr != "" {
		return theCluster.addr
	}
	server, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("redis-server is not installed")
		}
		t.Skip("redis-server is not installed")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a test
	require.NoError(t, err)
	port := l.Addr().(*net.TCPAddr).Port
	require.NoError(t, l.Close())
	dir, err := os.MkdirTemp("", "test-redis-*")
	require.NoError(t, err)
	cmd := exec.Command(server, "--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", dir, "--save", "", //nolint:noctx // it runs as long as the tests
		"--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(clusterBus(port)))
	require.NoError(t, cmd.Start())
	theCluster.stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
	}
	addr := fmt.Sprint("127.0.0.1:", port)
	node := redis.NewClient(&redis.Options{Addr: addr})
	defer func() { require.NoError(t, node.Close()) }()
	require.Eventually(t, func() bool { return node.Ping(context.Background()).Err() == nil }, patience, 10*time.Millisecond)
	require.NoError(t, node.ClusterAddSlotsRange(context.Background(), 0, 16383).Err())
	require.Eventually(t, func() bool {
		return strings.Contains(node.ClusterInfo(context.Background()).Val(), "cluster_state:ok")
	}, patience, 10*time.Millisecond)
	theCluster.addr = addr
	return addr
}

// clusterBus returns a port for the traffic between nodes.
func clusterBus(port int) int {
	if port > 40000 {
		return port - 20000
	}
	return port + 10000
}

// patience is for loaded machines: a passing test never waits that long.
const patience = 30 * time.Second

// onRedis runs a test on an in-process Redis, on a Redis Cluster if redis-server is
// installed and, if the environment names one, on a real Redis.
func onRedis(t *testing.T, f func(t *testing.T, rdb redis.UniversalClient, prefix string)) {
	t.Run("embedded", func(t *testing.T) {
		m := miniredis.RunT(t)
		f(t, client(t, m.Addr()), "t:")
	})
	t.Run("cluster", func(t *testing.T) {
		rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{cluster(t)}})
		t.Cleanup(func() { require.NoError(t, rdb.Close()) })
		f(t, rdb, "t"+nonce()+":")
	})
	if addr := os.Getenv("BATCHYARD_REDIS_ADDR"); addr != "" && os.Getenv("BATCHYARD_TEST_SERVICES") == "real" {
		t.Run("real", func(t *testing.T) { f(t, client(t, addr), "t"+nonce()+":") })
	}
}

func client(t testing.TB, addr string) redis.UniversalClient {
	rdb := redis.NewUniversalClient(&redis.UniversalOptions{Addrs: []string{addr}})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	return rdb
}

// background runs f until the test ends and checks that it returns no error.
func background(t *testing.T, f func(ctx context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			require.NoError(t, err)
		case <-time.After(patience):
			t.Error("it does not return when its context ends")
		}
	})
}

func wait[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		require.FailNow(t, "timed out waiting for "+what)
		panic("unreachable")
	}
}
