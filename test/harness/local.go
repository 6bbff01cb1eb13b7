package harness

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/batchyard/batchyard/internal/testenv"
)

// Local creates an installation for `batchyard dev`, which brings its own services.
// They are available once Dev has started it.
func Local(t testing.TB, settings map[string]any) *Installation {
	t.Helper()
	in := &Installation{Services: &Services{}, Dir: testDir(t), Settings: settings}
	// As root, Postgres runs as another user.
	require.NoError(t, os.Chmod(in.Dir, 0o755)) //nolint:gosec // a test directory is not secret
	in.ConfigPath = filepath.Join(in.Dir, "config.yaml")
	in.WriteConfig(t, in.ConfigPath, nil)
	return in
}

var devLine = regexp.MustCompile(`(?s)API\s+http://(\S+).*Kafka\s+(\S+).*Redis\s+(\S+).*Postgres\s+psql '([^']+)'`)

// Dev starts `batchyard dev`, waits until it is ready, and points the installation at
// its services.
func (in *Installation) Dev(t testing.TB, args ...string) *Process {
	t.Helper()
	p := in.Begin(t, nil, append([]string{"dev"}, args...)...)
	var found []string
	Eventually(t, 2*Patience, "batchyard dev is ready", func() bool {
		select {
		case <-p.Done():
			t.Fatalf("batchyard dev exited with code %d before it was ready:\n%s", p.ExitCode(), tail(p.Log(), 4<<10))
		default:
		}
		found = devLine.FindStringSubmatch(p.Output())
		return found != nil
	})
	p.listen = found[1]
	in.Services.Services = testenv.Services{Brokers: []string{found[2]}, RedisAddr: found[3], PostgresURL: found[4]}
	in.DatabaseURL = found[4]
	in.poolOnce.Do(func() {}) // Pool must use the one created below
	if in.pool != nil {
		in.pool.Close()
		in.kafka.Close()
		_ = in.redis.Close() // its server is gone
	}
	cfg, err := pgxpool.ParseConfig(in.DatabaseURL)
	require.NoError(t, err)
	cfg.MaxConns = 3
	in.pool, err = pgxpool.NewWithConfig(context.Background(), cfg)
	require.NoError(t, err)
	in.kafka, err = kgo.NewClient(kgo.SeedBrokers(found[2]), kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)))
	require.NoError(t, err)
	in.redis = redis.NewClient(&redis.Options{Addr: found[3]})
	t.Cleanup(in.pool.Close)
	t.Cleanup(in.kafka.Close)
	return p
}
