// Package audittest helps to test what reads and writes the tables of the audit log. It knows the
// format of the log and not the recorder, so that tests inside package recorder can use it. Package
// rig has a recorder.
package audittest

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/migrations"
	"github.com/batchyard/batchyard/test/testenv"
)

// Patience is how long a test waits for what has to happen.
const Patience = 60 * time.Second

// Quiet returns a logger that drops everything.
func Quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// URL returns the connection URL of a new database with the schema.
func URL(t testing.TB) string {
	t.Helper()
	return testenv.Get(t).DatabaseFrom(t, "batchyard schema", migrations.Up)
}

// NewPool returns a pool on a new database with the schema.
func NewPool(t testing.TB) *pgxpool.Pool {
	t.Helper()
	return PoolOn(t, URL(t))
}

// PoolOn returns a pool on a database.
func PoolOn(t testing.TB, url string) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// One reads a single value.
func One[T any](t testing.TB, pool *pgxpool.Pool, sql string, args ...any) T {
	t.Helper()
	rows, err := pool.Query(t.Context(), sql, args...)
	require.NoError(t, err)
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	require.NoError(t, err, sql)
	return v
}

// Execute executes a statement.
func Execute(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	_, err := pool.Exec(t.Context(), sql, args...)
	require.NoError(t, err, sql)
}

// Logins creates a login for each role, which is dropped with the test, and returns pools with
// them, and one of the owner.
func Logins(t *testing.T, roles ...string) (owner *pgxpool.Pool, of map[string]*pgxpool.Pool) {
	t.Helper()
	at := URL(t)
	owner, of = PoolOn(t, at), map[string]*pgxpool.Pool{}
	for _, role := range roles {
		name := "login_" + strings.ToLower(rand.Text())
		_, err := owner.Exec(t.Context(), fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD 'secret' IN ROLE %s", name, role))
		require.NoError(t, err)
		t.Cleanup(func() {
			_, err := owner.Exec(context.WithoutCancel(t.Context()), "DROP ROLE "+name)
			require.NoError(t, err)
		})
		u, err := url.Parse(at)
		require.NoError(t, err)
		u.User = url.UserPassword(name, "secret")
		of[role] = PoolOn(t, u.String())
	}
	return owner, of
}

// RequireDenied checks that a statement is refused for lack of a privilege.
func RequireDenied(t *testing.T, pool *pgxpool.Pool, sql string) {
	t.Helper()
	_, err := pool.Exec(t.Context(), sql)
	var pg *pgconn.PgError
	require.ErrorAs(t, err, &pg, sql)
	require.Equal(t, "42501", pg.Code, "%s: %s", sql, pg.Message)
}

// CPU returns the processor time of the database's sessions in microseconds; 0 if they cannot be
// seen. On a busy machine it says more than the clock.
func CPU(tb testing.TB, pool *pgxpool.Pool) (us float64) {
	tb.Helper()
	rows, err := pool.Query(tb.Context(), "SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
	require.NoError(tb, err)
	pids, err := pgx.CollectRows(rows, pgx.RowTo[int])
	require.NoError(tb, err)
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0
		}
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+2:]))
		for _, s := range f[11:13] { // utime and stime, in hundredths of a second
			n, err := strconv.ParseFloat(s, 64)
			require.NoError(tb, err)
			us += n * 1e4
		}
	}
	return us
}

// OwnCPU returns the processor time of this process in microseconds.
func OwnCPU(tb testing.TB) float64 {
	tb.Helper()
	var u syscall.Rusage
	require.NoError(tb, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return float64((u.Utime.Nano() + u.Stime.Nano()) / 1000)
}
