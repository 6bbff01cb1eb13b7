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

// Local is an installation of the command dev, which brings its own services.
// They can be spoken to once Dev has started it.
func Local(t testing.TB, settings map[string]any) *Installation {
	t.Helper()
	in := &Installation{Services: &Services{}, Dir: testDir(t), Settings: settings}
	// Postgres runs as another user where we are root.
	require.NoError(t, os.Chmod(in.Dir, 0o755)) //nolint:gosec // a directory of tests may be entered
	in.ConfigPath = filepath.Join(in.Dir, "config.yaml")
	in.WriteConfig(t, in.ConfigPath, nil)
	return in
}

var devLine = regexp.MustCompile(`(?s)API\s+http://(\S+).*Kafka\s+(\S+).*Redis\s+(\S+).*Postgres\s+psql '([^']+)'`)

// Dev runs the command dev until it is ready, and points the installation at the
// services inside it.
func (in *Installation) Dev(t testing.TB, args ...string) *Process {
	t.Helper()
	p := in.Begin(t, nil, append([]string{"dev"}, args...)...)
	var said []string
	Eventually(t, 2*Patience, "batchyard dev is ready", func() bool {
		select {
		case <-p.Done():
			t.Fatalf("batchyard dev ended with exit code %d before it was ready:\n%s", p.ExitCode(), tail(p.Log(), 4<<10))
		default:
		}
		said = devLine.FindStringSubmatch(p.Output())
		return said != nil
	})
	p.listen = said[1]
	in.Services.Services = testenv.Services{Brokers: []string{said[2]}, RedisAddr: said[3], PostgresURL: said[4]}
	in.DatabaseURL = said[4]
	in.poolOnce.Do(func() {}) // the pool is the one made here
	if in.pool != nil {
		in.pool.Close()
		in.kafka.Close()
		_ = in.redis.Close() // the server has gone
	}
	cfg, err := pgxpool.ParseConfig(in.DatabaseURL)
	require.NoError(t, err)
	cfg.MaxConns = 3
	in.pool, err = pgxpool.NewWithConfig(context.Background(), cfg)
	require.NoError(t, err)
	in.kafka, err = kgo.NewClient(kgo.SeedBrokers(said[2]), kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)))
	require.NoError(t, err)
	in.redis = redis.NewClient(&redis.Options{Addr: said[3]})
	t.Cleanup(in.pool.Close)
	t.Cleanup(in.kafka.Close)
	return p
}
