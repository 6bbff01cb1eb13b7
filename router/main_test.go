package router

import (
	"fmt"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/router/decide"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/testenv"
)

func TestMain(m *testing.M) { testenv.StageMain(m) }

func testConfig() Config {
	return Config{
		Policy: "expected_finish", MaxPendingTasks: 256, MaxPendingBytes: 16 << 20, MaxRoundTasks: 16, MaxPrefetch: 64, MaxDeviceQueue: 64, BatchCreditsPerSlot: 8,
		DispatchLatency: time.Millisecond, ClaimTTL: time.Minute, ShareNormal: 0.2, ShareLow: 0.06, LevelBoost: 2 * time.Second, ProbeInterval: time.Minute,
		MaxAsideBytes: 16 << 20, RefreshInterval: 50 * time.Millisecond, DrainTimeout: 10 * time.Second,
	}
}

func depsOn(t testing.TB, rdb redis.UniversalClient, prefix, instance string) Deps {
	cfg := store.Config{Timeout: time.Hour, LeaseTTL: time.Minute}
	return Deps{
		Redis: rdb, Prefix: prefix, Instance: instance, Logger: testenv.Logger(t), Metrics: metrics.New(nil), Limits: task.Limits{MaxInput: 1 << 20},
		Registry: store.NewRegistry(rdb, cfg, prefix), Credits: store.NewCredits(rdb, cfg, prefix),
		Rates: store.NewRates(rdb, prefix), Cancels: store.NewOverrides(rdb, cfg, prefix), Control: store.NewControl(rdb, cfg, prefix),
	}
}

// newTestScheduler is a scheduler on its own Redis, without a log.
func newTestScheduler(t testing.TB, cfg Config) *scheduler {
	rdb := testenv.RedisAt(t, miniredis.RunT(t).Addr())
	s, err := newScheduler(cfg, depsOn(t, rdb, "t:", "router@test"), nil)
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
	return &decide.Item{Task: tk, Origin: newOrigin(rec), Offset: nextOffset, Source: topic, Size: 10, ReadyAt: tk.ReadyAt()}
}
