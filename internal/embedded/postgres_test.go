package embedded

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

func startPostgres(t *testing.T, dir string) *Postgres {
	t.Helper()
	p, err := StartPostgres(within(t), PostgresOptions{Dir: dir})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

// openDir returns a directory that the user running Postgres can enter, unlike
// t.TempDir.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "embedded-test-*")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o711))
	return dir
}

// alive reports whether a postgres with that process id is running; false for a
// zombie.
func alive(pid int) bool { return strings.Contains(commandOf(pid), " -D ") }

// query connects, runs one statement and returns its first column.
func query(t *testing.T, url, sql string) (got any) {
	t.Helper()
	ctx := within(t)
	conn, err := pgx.Connect(ctx, url)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	require.NoError(t, conn.QueryRow(ctx, sql).Scan(&got))
	return got
}

func TestPostgresKeepsDataAcrossStopsAndCrashes(t *testing.T) {
	t.Parallel()
	p := startPostgres(t, "")
	require.Equal(t, Database, query(t, p.URL(), "SELECT current_database()"))
	require.NotContains(t, p.Addr(), ":5432")
	url := p.URL()
	ctx := within(t)
	conn, err := pgx.Connect(ctx, url)
	require.NoError(t, err)
	_, err = conn.Exec(ctx, "CREATE TABLE kept (n int)")
	require.NoError(t, err)
	_, err = conn.Exec(ctx, "INSERT INTO kept VALUES (1)")
	require.NoError(t, err)

	require.NoError(t, p.Stop())
	require.Error(t, conn.Ping(ctx))
	_, err = pgx.Connect(ctx, url)
	require.Error(t, err, "a stopped Postgres must not accept connections")
	require.NoError(t, p.Restart(ctx))
	require.Equal(t, url, p.URL())
	require.EqualValues(t, 1, query(t, url, "INSERT INTO kept VALUES (2) RETURNING 1"))

	require.NoError(t, p.Kill())
	require.NoError(t, p.Restart(ctx))
	require.EqualValues(t, 2, query(t, url, "SELECT count(*) FROM kept"))

	dir := filepath.Dir(p.dir)
	require.NoError(t, p.Close())
	require.NoError(t, p.Close(), "a second Close does nothing")
	require.NoDirExists(t, dir)
	require.ErrorContains(t, p.Restart(ctx), "closed")
}

func TestPostgresRequiresThePassword(t *testing.T) {
	t.Parallel()
	p := startPostgres(t, "")
	_, err := pgx.Connect(within(t), "postgres://batchyard:guess@"+p.Addr()+"/batchyard?sslmode=disable")
	require.ErrorContains(t, err, "password authentication failed")
	info, err := os.Stat(filepath.Join(p.dir, passwordFile))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
}

func TestPostgresReplacesPartiallyCopiedDirectory(t *testing.T) {
	t.Parallel()
	dir := openDir(t)
	require.NoError(t, os.MkdirAll(filepath.Join(dir, postgresDir, dataDir, "base"), 0o700))
	p := startPostgres(t, dir)
	require.EqualValues(t, 1, query(t, p.URL(), "SELECT 1"))
}

func TestPostgresIgnoresReusedProcessID(t *testing.T) {
	t.Parallel()
	dir := openDir(t)
	p := startPostgres(t, dir)
	require.NoError(t, p.Kill())
	// As in a restarted container: the process id now belongs to another process.
	path := filepath.Join(p.dir, dataDir, "postmaster.pid")
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	stranger := exec.Command("sleep", "300")
	stranger.SysProcAttr = p.bin.command(p.owner, "postgres").SysProcAttr
	require.NoError(t, stranger.Start())
	t.Cleanup(func() { _ = stranger.Process.Kill(); _ = stranger.Wait() })
	_, rest, _ := strings.Cut(string(raw), "\n")
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, "%d\n%s", stranger.Process.Pid, rest), 0o600))
	require.NoError(t, p.Close())
	again := startPostgres(t, dir)
	require.EqualValues(t, 1, query(t, again.URL(), "SELECT 1"))
}

func TestPostgresReportsMissingBinaries(t *testing.T) {
	t.Parallel()
	_, err := StartPostgres(within(t), PostgresOptions{BinDir: t.TempDir()})
	require.ErrorContains(t, err, "no usable initdb and postgres")

	dir := openDir(t)
	data := filepath.Join(dir, postgresDir, dataDir)
	require.NoError(t, os.MkdirAll(data, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(data, "PG_VERSION"), []byte("9\n"), 0o600))
	_, err = StartPostgres(within(t), PostgresOptions{Dir: dir, BinDir: "/usr/bin"})
	require.Error(t, err)
}

func TestErrorNamesDirectoryClosedToPostgresUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root runs Postgres as another user")
	}
	closed := filepath.Join(t.TempDir(), "closed")
	require.NoError(t, os.Mkdir(closed, 0o700))
	_, err := StartPostgres(within(t), PostgresOptions{Dir: filepath.Join(closed, "data")})
	require.ErrorContains(t, err, "may not enter "+closed)
}

func TestStackStartsAndCloses(t *testing.T) {
	t.Parallel()
	var steps []string
	began := time.Now()
	s, err := Start(within(t), Options{Progress: func(step string) { steps = append(steps, step) }})
	require.NoError(t, err)
	t.Logf("started in %s", time.Since(began).Round(time.Millisecond))
	require.Contains(t, steps, "starting Postgres")
	require.NoError(t, createTopic(within(t), s.Brokers[0], "a", nil))
	produce(t, s.Brokers[0], "a", "x")
	require.EqualValues(t, 1, query(t, s.PostgresURL, "SELECT 1"))
	began = time.Now()
	require.NoError(t, s.Close())
	t.Logf("closed in %s", time.Since(began).Round(time.Millisecond))
	require.NoError(t, s.Close())
	require.NoDirExists(t, s.DataDir)
}

func TestStackCannotStartTwiceOnOneDirectory(t *testing.T) {
	t.Parallel()
	dir := openDir(t)
	s, err := Start(within(t), Options{DataDir: dir})
	require.NoError(t, err)
	_, err = Start(within(t), Options{DataDir: dir})
	require.ErrorContains(t, err, "in use by another process")
	require.NoError(t, s.Close())
	s, err = Start(within(t), Options{DataDir: dir})
	require.NoError(t, err)
	require.NoError(t, s.Close())
}

func TestNothingOutlivesKilledProcess(t *testing.T) {
	t.Parallel()
	for name, dir := range map[string]string{"persistent": openDir(t), "temporary": ""} {
		t.Run(name, func(t *testing.T) {
			child, lines := startChild(t, "stack", dir)
			require.True(t, lines.Scan())
			at := lines.Text()
			require.True(t, lines.Scan())
			postmaster, err := strconv.Atoi(lines.Text())
			require.NoError(t, err)
			require.True(t, alive(postmaster))

			require.NoError(t, child.Process.Kill())
			require.Error(t, child.Wait())
			if dir == "" {
				// The next start stops the orphaned Postgres and removes the directory.
				s, err := Start(within(t), Options{})
				require.NoError(t, err)
				require.NoDirExists(t, at)
				require.False(t, alive(postmaster))
				require.NoError(t, s.Close())
				return
			}
			s, err := Start(within(t), Options{DataDir: dir})
			require.NoError(t, err)
			require.False(t, alive(postmaster))
			require.EqualValues(t, 42, query(t, s.PostgresURL, "SELECT n FROM kept"))
			require.NoError(t, s.Close())
		})
	}
}

// The kernel or the watchdog ends Postgres when its parent dies, without waiting
// for the next start.
func TestPostgresEndsWithParent(t *testing.T) {
	t.Parallel()
	child, lines := startChild(t, "stack", openDir(t))
	require.True(t, lines.Scan())
	require.True(t, lines.Scan())
	postmaster, err := strconv.Atoi(lines.Text())
	require.NoError(t, err)
	require.NoError(t, child.Process.Kill())
	require.Error(t, child.Wait())
	require.Eventually(t, func() bool { return !alive(postmaster) }, 30*time.Second, 10*time.Millisecond)
}

func TestSweepKeepsDirectoriesInUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	inUse, dead, foreign := filepath.Join(dir, "batchyard-1"), filepath.Join(dir, "batchyard-2"), filepath.Join(dir, "batchyard-3")
	for _, path := range []string{inUse, dead, foreign} {
		require.NoError(t, os.Mkdir(path, 0o700))
	}
	held, err := lockDir(inUse)
	require.NoError(t, err)
	defer func() { _ = held.Close() }()
	released, err := lockDir(dead)
	require.NoError(t, err)
	require.NoError(t, released.Close()) // as the kernel does when the holder dies

	sweep(within(t), dir, loggerOr(nil))
	require.DirExists(t, inUse)
	require.NoDirExists(t, dead)
	require.DirExists(t, foreign, "a directory without a lock file is not ours")
}
