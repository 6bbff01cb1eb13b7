package harness

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/batchyard/batchyard/internal/embedded"
	"github.com/batchyard/batchyard/migrations"
	"github.com/batchyard/batchyard/test/testenv"
)

// Kind is what a test may do to its services.
type Kind int

const (
	// Shared services are used by other tests at the same time.
	Shared Kind = iota
	// Disruptable services belong to one test, which may stop them.
	Disruptable
)

// Services are the Kafka, Redis and Postgres of a test.
type Services struct {
	testenv.Services
	kind  Kind
	stack *embedded.Stack // of this test alone; nil if shared or real
}

// users are the tests that are using the real services, by the name of their root: a
// test and its subtests count as one.
var users struct {
	sync.Mutex
	holds map[string]int
}

// Parallel is t.Parallel for tests that use services of that kind. There is only one
// set of real services, so a test that stops them does not run in parallel. The
// testing package runs it before the parallel tests. (A lock would not work: a test
// waiting for it would occupy a parallel slot that a subtest of the holder needs.)
func Parallel(t *testing.T, kind Kind) {
	t.Helper()
	if kind == Shared || !isReal() {
		t.Parallel()
	}
}

// OwnServices skips the test on real services. It is for tests of commands that bring
// their own services, which would only repeat the run on embedded ones.
func OwnServices(t *testing.T) {
	t.Helper()
	if isReal() {
		t.Skip("brings its own services: runs with the embedded services only")
	}
}

// Many returns n on real services and a quarter of it on embedded ones. Large numbers
// of tasks prove more on the real services, so the time is better spent there.
func Many(n int) int {
	if isReal() {
		return n
	}
	return n / 4
}

// Long reports whether tests that have a full size should run at it: BATCHYARD_TEST_LONG=1.
func Long() bool { return os.Getenv("BATCHYARD_TEST_LONG") != "" }

func isReal() bool { return os.Getenv("BATCHYARD_TEST_SERVICES") == "real" }

// Get returns services that the test may use until it ends. Call it after Parallel.
func Get(t testing.TB, kind Kind) *Services {
	t.Helper()
	if kind == Disruptable && !isReal() {
		return own(t)
	}
	if isReal() {
		use(t, kind)
	}
	s := &Services{Services: testenv.Get(t), kind: kind}
	if kind == Disruptable {
		t.Cleanup(func() { s.heal(t) })
	}
	return s
}

// use registers the test as a user until it ends. A test that may stop the services
// must be the only one.
func use(t testing.TB, kind Kind) {
	t.Helper()
	root, _, _ := strings.Cut(t.Name(), "/")
	users.Lock()
	defer users.Unlock()
	for other := range users.holds {
		if kind == Disruptable && other != root {
			t.Fatalf("%s is using the services that this test may stop: call harness.Parallel(t, harness.Disruptable) instead of t.Parallel", other)
		}
	}
	if users.holds == nil {
		users.holds = map[string]int{}
	}
	users.holds[root]++
	t.Cleanup(func() {
		users.Lock()
		defer users.Unlock()
		if users.holds[root]--; users.holds[root] == 0 {
			delete(users.holds, root)
		}
	})
}

// own starts embedded services for one test.
func own(t testing.TB) *Services {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	stack, err := embedded.Start(ctx, embedded.Options{})
	if err != nil {
		t.Fatalf("starting embedded services for the test: %v", err)
	}
	t.Cleanup(func() {
		if err := stack.Close(); err != nil {
			t.Errorf("closing the embedded services of the test: %v", err)
		}
	})
	return &Services{
		Services: testenv.Services{Brokers: stack.Brokers, RedisAddr: stack.RedisAddr, PostgresURL: stack.PostgresURL},
		kind:     Disruptable, stack: stack,
	}
}

// heal starts services that the test left stopped.
func (s *Services) heal(t testing.TB) {
	s.script(t, "start", "kafka")
	s.script(t, "start", "redis")
	s.script(t, "start", "postgres")
}

func (s *Services) script(t testing.TB, args ...string) {
	t.Helper()
	_, file, _, _ := runtime.Caller(0)
	// Not t.Context(): this also runs during cleanup.
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(filepath.Dir(file), "..", "..", "scripts", "services"), args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("scripts/services %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// requireDisruptable fails the test unless it may stop its services.
func (s *Services) requireDisruptable(t testing.TB, what string) {
	t.Helper()
	if s.kind != Disruptable {
		t.Fatalf("%s needs services that only this test uses: call Get(t, harness.Disruptable)", what)
	}
}

func must(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// StopPostgres stops Postgres, so that connections are refused.
func (s *Services) StopPostgres(t testing.TB) {
	t.Helper()
	s.requireDisruptable(t, "StopPostgres")
	if s.stack != nil {
		must(t, "stopping Postgres", s.stack.Postgres.Stop())
		return
	}
	s.script(t, "stop", "postgres")
}

// StartPostgres starts Postgres again, with the same data and address.
func (s *Services) StartPostgres(t testing.TB) {
	t.Helper()
	s.requireDisruptable(t, "StartPostgres")
	if s.stack != nil {
		must(t, "starting Postgres", s.stack.Postgres.Restart(context.WithoutCancel(t.Context())))
		return
	}
	s.script(t, "start", "postgres")
}

// StopBroker stops Kafka; if it is a separate process, with SIGKILL.
func (s *Services) StopBroker(t testing.TB) {
	t.Helper()
	s.requireDisruptable(t, "StopBroker")
	if s.stack != nil {
		must(t, "stopping the broker", s.stack.Broker.Stop())
		return
	}
	s.script(t, "kill", "kafka")
}

// StartBroker starts Kafka again, with the same data and address.
func (s *Services) StartBroker(t testing.TB) {
	t.Helper()
	s.requireDisruptable(t, "StartBroker")
	if s.stack != nil {
		must(t, "starting the broker", s.stack.Broker.Restart(context.WithoutCancel(t.Context())))
		return
	}
	s.script(t, "start", "kafka")
}

// RestartBroker calls StopBroker and StartBroker.
func (s *Services) RestartBroker(t testing.TB) {
	t.Helper()
	s.StopBroker(t)
	s.StartBroker(t)
}

// EmptyRedis deletes everything in Redis.
func (s *Services) EmptyRedis(t testing.TB) {
	t.Helper()
	s.requireDisruptable(t, "EmptyRedis")
	if s.stack != nil {
		s.stack.Redis.Empty()
		return
	}
	c := redis.NewClient(&redis.Options{Addr: s.RedisAddr})
	defer func() { _ = c.Close() }()
	must(t, "emptying Redis", c.FlushAll(t.Context()).Err())
}

// StopRedis stops Redis, which loses its data.
func (s *Services) StopRedis(t testing.TB) {
	t.Helper()
	s.requireDisruptable(t, "StopRedis")
	if s.stack != nil {
		must(t, "stopping Redis", s.stack.Redis.Stop())
		return
	}
	s.script(t, "kill", "redis")
}

// StartRedis starts Redis again, empty, on the same address.
func (s *Services) StartRedis(t testing.TB) {
	t.Helper()
	s.requireDisruptable(t, "StartRedis")
	if s.stack != nil {
		must(t, "starting Redis", s.stack.Redis.Restart(context.WithoutCancel(t.Context())))
		return
	}
	s.script(t, "start", "redis")
}

// database creates a database with schema for an installation.
func (s *Services) database(t testing.TB) string {
	t.Helper()
	if s.kind == Shared {
		return s.DatabaseFrom(t, "batchyard schema", migrations.Up)
	}
	name := "test_" + strings.ToLower(rand.Text()[:12])
	must(t, "creating a database", s.sql(t.Context(), "CREATE DATABASE "+name+" TEMPLATE template0"))
	if s.stack == nil {
		t.Cleanup(func() {
			s.script(t, "start", "postgres") // in case the test left it stopped
			ctx, cancel := context.WithTimeout(context.Background(), Patience)
			defer cancel()
			must(t, "dropping the database", s.sql(ctx, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)"))
		})
	}
	u, err := url.Parse(s.PostgresURL)
	must(t, "parsing the Postgres URL", err)
	u.Path = "/" + name
	must(t, "migrating the database", migrations.Up(t.Context(), u.String()))
	return u.String()
}

func (s *Services) sql(ctx context.Context, statement string) error {
	conn, err := pgx.Connect(ctx, s.PostgresURL)
	if err != nil {
		return fmt.Errorf("connecting to Postgres: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // the statement has already succeeded or failed
	if _, err := conn.Exec(ctx, statement); err != nil {
		return fmt.Errorf("running %q: %w", statement, err)
	}
	return nil
}
