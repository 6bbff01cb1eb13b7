package harness

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.yaml.in/yaml/v3"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/stream"
)

// Partitions is the partition count of an installation's topics.
const Partitions = 4

// Secret is the key that signs an installation's callbacks, and SecretEnv the
// environment variable that passes it to the processes.
const (
	Secret    = "whsec_ZW5kIHRvIGVuZCB0ZXN0cyBvZiBiYXRjaHlhcmQh"
	SecretEnv = "BATCHYARD_TEST_CALLBACK_SECRET" //nolint:gosec // the name of a variable
)

// Installation is a separate Batchyard, with its own database, topics, keys and
// configuration.
type Installation struct {
	Services    *Services
	DatabaseURL string
	TopicPrefix string
	RedisPrefix string
	Dir         string
	ConfigPath  string
	Settings    map[string]any // by key, as in config.yaml
	Program     string         // path of the binary for Process and Begin; empty means Binary

	poolOnce sync.Once
	pool     *pgxpool.Pool
	kafka    *kgo.Client
	redis    redis.UniversalClient
}

// quick returns settings that make tests faster without changing what they test:
// shorter timeouts and intervals.
func quick() map[string]any {
	return map[string]any{
		"log.level":                "info",
		"kafka.partitions":         Partitions,
		"kafka.session_timeout":    "6s", // the minimum that brokers allow by default
		"kafka.heartbeat_interval": "200ms",
		"kafka.rebalance_timeout":  "6s",
		"kafka.commit_interval":    "100ms",
		"kafka.fetch_wait":         "250ms",
		"kafka.dial_timeout":       "3s",
		"redis.timeout":            "2s",
		"postgres.timeout":         "3s",
		"postgres.max_conns":       6,
		"devices.lease_ttl":        "4s",
		"router.refresh_interval":  "200ms",
		"router.claim_ttl":         "1m",
		"workers.backoff_min":      "20ms",
		"workers.backoff_max":      "500ms",
		"workers.breaker_open":     "300ms",
		"workers.report_interval":  "100ms",
		"callbacks.allow_private":  true,
		"callbacks.secret_env":     SecretEnv,
		"callbacks.timeout":        "2s",
		"callbacks.retries":        []string{"100ms", "300ms", "1s", "3s", "5s", "10s"},
		"api.listen":               "127.0.0.1:0",
		"ops.listen":               "127.0.0.1:0",
		"status.poll_interval":     "5s",
		"kafka.event_linger":       "2ms",
		"kafka.replication":        1,
	}
}

// Install creates an installation for the test, with an empty database, schema,
// topics, a prefix for keys, and config.yaml. settings override the defaults of tests;
// a nil value removes a setting.
func Install(t testing.TB, s *Services, settings map[string]any) *Installation {
	t.Helper()
	in := Bare(t, s, settings)
	in.CreateTopics(t)
	return in
}

// CreateTopics creates the topics of an installation that was made by Bare.
func (in *Installation) CreateTopics(t testing.TB) {
	t.Helper()
	brokers, ok := in.Settings["kafka.brokers"].([]string)
	require.True(t, ok)
	replication, _ := in.Settings["kafka.replication"].(int)
	log, err := stream.Open(t.Context(), stream.Config{Brokers: brokers, TopicPrefix: in.TopicPrefix, Partitions: in.partitions(), Replication: max(1, replication)}, slog.New(slog.DiscardHandler), nil)
	require.NoError(t, err)
	// On a busy machine a broker may be considered dead for a moment, and then learn
	// late about new topics.
	Eventually(t, Patience, "topics can be created", func() bool {
		_, err = log.CreateTopics(t.Context())
		return err == nil
	})
	Eventually(t, Patience, "the topics exist", func() bool { return log.CheckTopics(t.Context()) == nil })
	require.NoError(t, log.Close())
}

func (in *Installation) partitions() int {
	n, _ := in.Settings["kafka.partitions"].(int)
	return max(n, 1)
}

// Bare is Install without topics.
func Bare(t testing.TB, s *Services, settings map[string]any) *Installation {
	t.Helper()
	prefix := s.Prefix(t)
	in := &Installation{
		Services: s, DatabaseURL: s.database(t), TopicPrefix: prefix, RedisPrefix: prefix,
		Dir: testDir(t), Settings: quick(),
	}
	in.Settings["kafka.brokers"] = s.Brokers
	in.Settings["kafka.topic_prefix"] = prefix
	in.Settings["redis.addr"] = s.RedisAddr
	in.Settings["redis.prefix"] = prefix
	in.Settings["postgres.url"] = in.DatabaseURL
	in.Settings["audit.checkpoint_dir"] = filepath.Join(in.Dir, "audit-checkpoints")
	maps.Copy(in.Settings, settings)
	t.Cleanup(func() {
		if in.pool != nil {
			in.pool.Close()
		}
	})
	in.ConfigPath = filepath.Join(in.Dir, "config.yaml")
	in.WriteConfig(t, in.ConfigPath, nil)

	var err error
	brokers, ok := in.Settings["kafka.brokers"].([]string)
	require.True(t, ok)
	in.kafka, err = kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)),
		kgo.ProducerBatchMaxBytes(16<<20), kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.AllowIdempotentProduceCancellation())
	require.NoError(t, err)
	t.Cleanup(in.kafka.Close)
	if addr, ok := in.Settings["redis.addr"].(string); ok && strings.Contains(addr, ",") {
		in.redis, err = store.OpenRedis(t.Context(), store.RedisConfig{Addr: addr}, nil, nil)
		require.NoError(t, err)
	} else {
		in.redis = redis.NewClient(&redis.Options{Addr: s.RedisAddr})
	}
	t.Cleanup(func() { _ = in.redis.Close() })
	return in
}

// testDir returns a directory that is removed when the test ends. Unlike that of
// t.TempDir, its name is short.
func testDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "test-batchyard-*")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// WriteConfig writes the installation's settings, overridden by with, to a file.
func (in *Installation) WriteConfig(t testing.TB, path string, with map[string]any) {
	t.Helper()
	all := maps.Clone(in.Settings)
	maps.Copy(all, with)
	tree := map[string]any{}
	for key, v := range all {
		if v == nil {
			continue
		}
		at, parts := tree, strings.Split(key, ".")
		for _, p := range parts[:len(parts)-1] {
			next, ok := at[p].(map[string]any)
			if !ok {
				next = map[string]any{}
				at[p] = next
			}
			at = next
		}
		at[parts[len(parts)-1]] = v
	}
	b, err := yaml.Marshal(tree)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, b, 0o600))
}

// Pool returns a connection pool for the installation's database.
func (in *Installation) Pool(t testing.TB) *pgxpool.Pool {
	t.Helper()
	in.poolOnce.Do(func() {
		cfg, err := pgxpool.ParseConfig(in.DatabaseURL)
		require.NoError(t, err)
		cfg.MaxConns = 3
		in.pool, err = pgxpool.NewWithConfig(context.Background(), cfg)
		require.NoError(t, err)
	})
	require.NotNil(t, in.pool)
	return in.pool
}

// SQL runs a query and returns its single value.
func SQL[T any](t testing.TB, in *Installation, sql string, args ...any) T {
	t.Helper()
	var v T
	require.NoError(t, in.Pool(t).QueryRow(t.Context(), sql, args...).Scan(&v), sql)
	return v
}

// Rows runs a query and returns its rows as structs, matching columns to fields by
// name.
func Rows[T any](t testing.TB, in *Installation, sql string, args ...any) []T {
	t.Helper()
	rows, err := in.Pool(t).Query(t.Context(), sql, args...)
	require.NoError(t, err, sql)
	out, err := pgx.CollectRows(rows, pgx.RowToStructByName[T])
	require.NoError(t, err, sql)
	return out
}

// Topic returns the full name of a topic, with the prefix.
func (in *Installation) Topic(name string) string { return in.TopicPrefix + name }

// Beat is the heartbeat interval of the devices.
const Beat = 500 * time.Millisecond

// Fleet starts simulated devices and sends their heartbeats until the test ends. It
// writes them to Redis directly, so that no particular stage needs to run.
func (in *Installation) Fleet(t testing.TB, specs ...fleet.Spec) *fleet.Fleet {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	f, err := fleet.Start(ctx, specs)
	require.NoError(t, err)
	var devices []device.Device
	for _, d := range f.Devices() {
		spec := d.Spec()
		devices = append(devices, device.Device{ID: d.ID(), URL: d.URL(), Models: spec.Models, Tags: spec.Tags, Slots: spec.Slots})
	}
	done := in.report(ctx, devices)
	t.Cleanup(func() {
		cancel()
		<-done
		f.Close()
	})
	ids := make([]string, 0, len(devices))
	for _, d := range devices {
		ids = append(ids, d.ID)
	}
	in.awaitDevices(t, ids...)
	return f
}

// Device sends heartbeats for a device that the test runs itself, and returns when the device is
// registered.
func (in *Installation) Device(t testing.TB, d device.Device) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := in.report(ctx, []device.Device{d})
	t.Cleanup(func() {
		cancel()
		<-done
	})
	in.awaitDevices(t, d.ID)
}

// awaitDevices waits until devices are registered.
func (in *Installation) awaitDevices(t testing.TB, ids ...string) {
	t.Helper()
	registry := store.NewRegistry(in.redis, store.Config{}, in.RedisPrefix)
	Eventually(t, Patience, "the devices are registered", func() bool {
		known, err := registry.List(t.Context())
		return err == nil && !slices.ContainsFunc(ids, func(id string) bool {
			return !slices.ContainsFunc(known, func(d device.Device) bool { return d.ID == id })
		})
	})
}

// report sends heartbeats for devices until ctx ends, even if Redis is down for a
// while.
func (in *Installation) report(ctx context.Context, devices []device.Device) <-chan struct{} {
	done := make(chan struct{})
	registry := store.NewRegistry(in.redis, store.Config{}, in.RedisPrefix)
	go func() {
		defer close(done)
		tick := time.NewTicker(Beat)
		defer tick.Stop()
		for {
			for _, d := range devices {
				d.Normalize()
				_, _ = registry.Beat(ctx, d) // if it fails, the next heartbeat follows soon
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	return done
}
