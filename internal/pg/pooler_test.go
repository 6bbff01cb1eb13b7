package pg_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/test/testenv"
)

// bouncer starts PgBouncer in front of a database, with so many sessions, and returns its URL.
func bouncer(t *testing.T, database, mode string, sessions int) string {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("pgbouncer is not installed")
		}
		t.Skip("pgbouncer is not installed")
	}
	cfg, err := pgxpool.ParseConfig(database)
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a test
	require.NoError(t, err)
	port := l.Addr().(*net.TCPAddr).Port
	require.NoError(t, l.Close())
	dir, err := os.MkdirTemp("", "test-bouncer-*")
	require.NoError(t, err)
	c := cfg.ConnConfig
	ini := fmt.Sprintf("[databases]\nit = host=%s port=%d dbname=%s user=%s password=%s\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\nunix_socket_dir =\nauth_type = any\npool_mode = %s\ndefault_pool_size = %d\nmax_client_conn = 50\nserver_round_robin = 1\nignore_startup_parameters = extra_float_digits\n",
		c.Host, c.Port, c.Database, c.User, c.Password, port, mode, sessions)
	path := filepath.Join(dir, "pgbouncer.ini")
	require.NoError(t, os.WriteFile(path, []byte(ini), 0o644)) //nolint:gosec // read by another user
	require.NoError(t, os.Chmod(dir, 0o755))                   //nolint:gosec // as above
	args := []string{"-q", path}
	if os.Getuid() == 0 { // it refuses to run as root
		name := "postgres"
		if _, err := user.Lookup(name); err != nil {
			name = "nobody"
		}
		args = append([]string{"-u", name}, args...)
	}
	cmd := exec.Command(program, args...) //nolint:gosec,noctx // it runs as long as the test
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
	})
	url := "postgres://" + c.User + "@" + net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) + "/it?sslmode=disable&default_query_exec_mode=exec"
	require.Eventually(t, func() bool {
		pool, err := pgxpool.New(context.Background(), url)
		if err != nil {
			return false
		}
		defer pool.Close()
		return pool.Ping(context.Background()) == nil
	}, 30*time.Second, 20*time.Millisecond)
	return url
}

// A pooler that gives each transaction another session is refused, whether it has many sessions or
// one. One that keeps a session for each connection, and Postgres itself, are not.
func TestSharedSessionsAreRefused(t *testing.T) {
	t.Parallel()
	database := testenv.Get(t).Database(t)
	check := func(url string) error {
		pool, err := pgxpool.New(t.Context(), url)
		require.NoError(t, err)
		defer pool.Close()
		return pg.CheckSessions(t.Context(), pool)
	}
	require.NoError(t, check(database))
	for name, c := range map[string]struct {
		mode     string
		sessions int
		refused  bool
	}{
		"session":          {"session", 8, false},
		"transaction":      {"transaction", 8, true},
		"a single session": {"transaction", 1, true},
		"two sessions":     {"transaction", 2, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := check(bouncer(t, database, c.mode, c.sessions))
			if c.refused {
				require.ErrorIs(t, err, pg.ErrSharedSessions)
				return
			}
			require.NoError(t, err)
		})
	}
}
