package device

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is for a loaded machine; nothing waits that long when it works.
const patience = 30 * time.Second

// onRedis runs a test on a Redis inside the process and, when the environment
// names one, on a real one.
func onRedis(t *testing.T, f func(t *testing.T, rdb redis.UniversalClient, prefix string)) {
	t.Run("embedded", func(t *testing.T) {
		m := miniredis.RunT(t)
		f(t, client(t, m.Addr()), "t:")
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

// background runs f until the test ends and checks that it ends well.
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
			t.Error("it does not end when its context does")
		}
	})
}

func wait[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		require.FailNow(t, "waited in vain for "+what)
		panic("unreachable")
	}
}
