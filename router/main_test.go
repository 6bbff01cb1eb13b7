package router

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/embedded"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/router/decide"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// patience is for a busy machine; nothing waits this long unless it is broken.
const patience = 30 * time.Second

// shared is the broker of this test binary. The environment may name real ones instead.
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
	return fmt.Sprintf("r%d-%d-%d.", os.Getpid(), time.Now().UnixNano()%1e9, shared.n)
}

func logger() *slog.Logger {
	if os.Getenv("ROUTER_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func testConfig() Config {
	return Config{
		Policy: "expected_finish", MaxPendingTasks: 256, MaxPendingBytes: 16 << 20, MaxRoundTasks: 16, MaxPrefetch: 64, MaxDeviceQueue: 64, BatchCreditsPerSlot: 8,
		DispatchLatency: time.Millisecond, ClaimTTL: time.Minute, ShareNormal: 0.2, ShareLow: 0.06, LevelBoost: 2 * time.Second, ProbeInterval: time.Minute,
		ParkRetry: 300 * time.Millisecond, RefreshInterval: 50 * time.Millisecond, DrainTimeout: 10 * time.Second,
	}
}

func redisClient(t testing.TB, addr string) redis.UniversalClient {
	rdb := redis.NewUniversalClient(&redis.UniversalOptions{Addrs: []string{addr}})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	return rdb
}

func depsOn(rdb redis.UniversalClient, prefix, instance string) Deps {
	cfg := store.Config{Timeout: time.Hour, LeaseTTL: time.Minute}
	return Deps{
		Redis: rdb, Prefix: prefix, Instance: instance, Logger: logger(), Metrics: metrics.New(nil), Limits: task.Limits{MaxInput: 1 << 20},
		Registry: store.NewRegistry(rdb, cfg, prefix), Credits: store.NewCredits(rdb, cfg, prefix),
		Rates: store.NewRates(rdb, prefix), Cancels: store.NewOverrides(rdb, cfg, prefix), Control: store.NewControl(rdb, cfg, prefix),
	}
}

// newTestScheduler is a scheduler on its own Redis, without a log.
func newTestScheduler(t testing.TB, cfg Config) *scheduler {
	rdb := redisClient(t, miniredis.RunT(t).Addr())
	s, err := newScheduler(cfg, depsOn(rdb, "t:", "router@test"), nil)
	require.NoError(t, err)
	return s
}

func dev(id string, slots int, models ...string) device.Device {
	return device.Device{ID: id, URL: "http://" + id, Models: models, Slots: slots, Weight: 1, Queue: -1, InFlight: -1}
}

var nextOffset int64

// newItem is an item as intake makes it.
func newItem(tk *task.Task, topic string) *decide.Item {
	nextOffset++
	if tk.ID == "" {
		tk.ID = fmt.Sprintf("t-%d", nextOffset)
	}
	tk.Normalize(time.Now())
	rec := &stream.Record{Topic: topic, Partition: 1, Offset: nextOffset, Value: make([]byte, 10)}
	return &decide.Item{Task: tk, Origin: newOrigin(rec), Source: topic, Size: 10, ReadyAt: tk.ReadyAt()}
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
