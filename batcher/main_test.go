package batcher

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/batchyard/batchyard/internal/embedded"
)

// patience bounds how long a test waits on a loaded machine.
const patience = 30 * time.Second

// shared is the embedded broker of this test binary.
var shared struct {
	sync.Mutex
	broker *embedded.Broker
	n      int
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.broker != nil {
		_ = shared.broker.Close()
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func brokers(t testing.TB) []string {
	t.Helper()
	if os.Getenv("BATCHYARD_TEST_SERVICES") == "real" {
		return strings.Split(os.Getenv("BATCHYARD_KAFKA_BROKERS"), ",")
	}
	shared.Lock()
	defer shared.Unlock()
	if shared.broker == nil {
		b, err := embedded.StartBroker(context.Background(), embedded.BrokerOptions{})
		require.NoError(t, err)
		shared.broker = b
	}
	return []string{shared.broker.Addr()}
}

func prefix() string {
	shared.Lock()
	defer shared.Unlock()
	shared.n++
	return fmt.Sprintf("b%d-%d-%d.", os.Getpid(), time.Now().UnixNano()%1e9, shared.n)
}

func logger() *slog.Logger {
	if os.Getenv("BATCHER_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func redisClient(t testing.TB, addr string) redis.UniversalClient {
	rdb := redis.NewUniversalClient(&redis.UniversalOptions{Addrs: []string{addr}})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	return rdb
}

func wait[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		require.FailNow(t, "timed out waiting for "+what)
		panic("unreachable")
	}
}

func gauge(g prometheus.Gauge) float64 {
	var m dto.Metric
	if err := g.Write(&m); err != nil {
		return -1
	}
	return m.GetGauge().GetValue()
}
