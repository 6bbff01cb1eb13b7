// Package clusters tests what happens when a part of a cluster is lost: a Kafka broker, a master of
// a Redis Cluster, the primary of Postgres. The services are those of `scripts/services cluster`;
// each test starts what it needs and stops it.
//
// The tests need Java, Redis and Postgres, and a minute each, so they run only with
// BATCHYARD_TEST_CLUSTERS=1, as `make test-clusters` sets it.
package clusters

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Cluster is services that belong to one test.
type Cluster struct {
	dir  string
	env  []string
	port map[string]int // of the first member of each service
}

// nextPort is where the search for free ports continues; below the ephemeral range.
var nextPort atomic.Int64

// span is how many consecutive ports of each service are used.
const span = 120

// Start starts the named services, "kafka", "redis" or "postgres", for a test.
func Start(t testing.TB, services ...string) *Cluster {
	t.Helper()
	if os.Getenv("BATCHYARD_TEST_CLUSTERS") == "" {
		t.Skip("to run it: make test-clusters")
	}
	dir, err := os.MkdirTemp("", "test-clusters-*")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755)) //nolint:gosec // Postgres runs as another user
	c := &Cluster{dir: dir, port: map[string]int{}}
	c.env = append(os.Environ(), "BATCHYARD_SERVICES_DIR="+filepath.Join(dir, "services"))
	for _, s := range []string{"kafka", "redis", "postgres"} {
		c.port[s] = freePorts(t)
		c.env = append(c.env, fmt.Sprintf("%s_PORT=%d", strings.ToUpper(s), c.port[s]))
	}
	t.Cleanup(func() {
		_, err := c.run(context.Background(), "down")
		require.NoError(t, errors.Join(err, os.RemoveAll(dir)))
	})
	c.Do(t, append([]string{"up"}, services...)...)
	return c
}

// freePorts returns the first of some ports that nothing listens on.
func freePorts(t testing.TB) int {
	t.Helper()
	nextPort.CompareAndSwap(0, 20000+int64(os.Getpid()%40)*200)
	for {
		first := int(nextPort.Add(span)) - span
		require.Less(t, first, 31000, "no free ports")
		free := true
		for i := 0; free && i < span; i++ {
			l, err := net.Listen("tcp", addr(first+i)) //nolint:noctx // immediate, on loopback
			if free = err == nil; free {
				_ = l.Close() // only checks that the port is free
			}
		}
		if free {
			return first
		}
	}
}

func addr(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// Do runs a command of `scripts/services cluster` and returns its output.
func (c *Cluster) Do(t testing.TB, args ...string) string {
	t.Helper()
	out, err := c.run(t.Context(), args...)
	require.NoError(t, err)
	return out
}

func (c *Cluster) run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 8*time.Minute) // three brokers start slowly on a busy machine
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join("..", "..", "scripts", "services"), append([]string{"cluster"}, args...)...)
	cmd.Env = c.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("scripts/services cluster %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// Addrs returns the addresses of members, separated by commas. Brokers are ten ports apart.
func (c *Cluster) Addrs(service string, members int) string {
	apart := 1
	if service == "kafka" {
		apart = 10
	}
	var all []string
	for i := range members {
		all = append(all, addr(c.port[service]+apart*i))
	}
	return strings.Join(all, ",")
}

// Member returns the name of the member that listens on an address.
func (c *Cluster) Member(t testing.TB, service, at string) string {
	t.Helper()
	_, text, err := net.SplitHostPort(at)
	require.NoError(t, err)
	port, err := strconv.Atoi(text)
	require.NoError(t, err)
	return fmt.Sprintf("%s-%d", service, port-c.port[service]+1)
}
