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
	"github.com/batchyard/batchyard/internal/testenv"
	"github.com/batchyard/batchyard/migrations"
)

// Kind says what a test may do to its services.
type Kind int

const (
	// Shared services are used by other tests at the same time.
	Shared Kind = iota
	// Disruptable services are this test's alone: it may stop them.
	Disruptable
)

// Services are a Kafka, a Redis and a Postgres.
type Services struct {
	testenv.Services
	kind  Kind
	stack *embedded.Stack // of this test alone; nil: shared, or real
}

// users are the tests that use the real services now, by the name of their root:
// a test and its subtests count as one.
var users struct {
	sync.Mutex
	holds map[string]int
}

// Parallel is t.Parallel for tests that use services of that kind. Real services
// that a test stops are everybody's: such a test does not run in parallel, and so
// before those that do, which the testing package holds back until then. (A lock
// would not do: who waits for it keeps a place that a subtest of its holder needs.)
func Parallel(t *testing.T, kind Kind) {
	t.Helper()
	if kind == Shared || !isReal() {
		t.Parallel()
	}
}

// OwnServices is for tests of commands that bring services of their own: on the
// real ones they would do again what they did on the embedded ones.
func OwnServices(t *testing.T) {
	t.Helper()
	if isReal() {
		t.Skip("it brings its own services, and ran with the embedded ones")
	}
}

// Many is n on real services and a quarter of it on embedded ones: what is
// proved with many tasks is proved on the real ones, and the time of a test run is
// better spent there.
func Many(n int) int {
	if isReal() {
		return n
	}
	return n / 4
}

func isReal() bool { return os.Getenv("BATCHYARD_TEST_SERVICES") == "real" }

// Get returns services for the test, which it has until it ends. Call it after
// Parallel.
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

// use counts the test among the users until it ends. One that wants the services
// for itself must be the only one.
func use(t testing.TB, kind Kind) {
	t.Helper()
	root, _, _ := strings.Cut(t.Name(), "/")
	users.Lock()
	defer users.Unlock()
	for other := range users.holds {
		if kind == Disruptable && other != root {
			t.Fatalf("%s uses the services that this test may stop: call harness.Parallel(t, harness.Disruptable) instead of t.Parallel", other)
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
			t.Errorf("closing the test's own services: %v", err)
		}
	})
	return &Services{
		Services: testenv.Services{Brokers: stack.Brokers, RedisAddr: stack.RedisAddr, PostgresURL: stack.PostgresURL},
		kind:     Disruptable, stack: stack,
	}
}

// heal starts what the test left stopped.
func (s *Services) heal(t testing.TB) {
	s.script(t, "start", "kafka")
	s.script(t, "start", "redis")
	s.script(t, "start", "postgres")
}

func (s *Services) script(t testing.TB, args ...string) {
	t.Helper()
	_, file, _, _ := runtime.Caller(0)
	// Not t.Context(): it is used when the test is over, too.
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(filepath.Dir(file), "..", "..", "scripts", "services"), args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("scripts/services %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (s *Services) mine(t testing.TB, what string) {
	t.Helper()
	if s.kind != Disruptable {
		t.Fatalf("%s wants services of the test's own: Get(t, harness.Disruptable)", what)
	}
}

func must(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// StopPostgres takes Postgres away; clients are refused.
func (s *Services) StopPostgres(t testing.TB) {
	t.Helper()
	s.mine(t, "StopPostgres")
	if s.stack != nil {
		must(t, "stopping Postgres", s.stack.Postgres.Stop())
		return
	}
	s.script(t, "stop", "postgres")
}

// StartPostgres brings Postgres back, with its data and on its address.
func (s *Services) StartPostgres(t testing.TB) {
	t.Helper()
	s.mine(t, "StartPostgres")
	if s.stack != nil {
		must(t, "starting Postgres", s.stack.Postgres.Restart(context.WithoutCancel(t.Context())))
		return
	}
	s.script(t, "start", "postgres")
}

// StopBroker takes Kafka away, as SIGKILL does where it is a process.
func (s *Services) StopBroker(t testing.TB) {
	t.Helper()
	s.mine(t, "StopBroker")
	if s.stack != nil {
		must(t, "stopping the broker", s.stack.Broker.Stop())
		return
	}
	s.script(t, "kill", "kafka")
}

// StartBroker brings Kafka back, with its data and on its address.
func (s *Services) StartBroker(t testing.TB) {
	t.Helper()
	s.mine(t, "StartBroker")
	if s.stack != nil {
		must(t, "starting the broker", s.stack.Broker.Restart(context.WithoutCancel(t.Context())))
		return
	}
	s.script(t, "start", "kafka")
}

// RestartBroker is StopBroker and StartBroker.
func (s *Services) RestartBroker(t testing.TB) {
	t.Helper()
	s.StopBroker(t)
	s.StartBroker(t)
}

// EmptyRedis makes Redis forget everything.
func (s *Services) EmptyRedis(t testing.TB) {
	t.Helper()
	s.mine(t, "EmptyRedis")
	if s.stack != nil {
		s.stack.Redis.Empty()
		return
	}
	c := redis.NewClient(&redis.Options{Addr: s.RedisAddr})
	defer func() { _ = c.Close() }()
	must(t, "emptying Redis", c.FlushAll(t.Context()).Err())
}

// StopRedis takes Redis away and what it knew with it.
func (s *Services) StopRedis(t testing.TB) {
	t.Helper()
	s.mine(t, "StopRedis")
	if s.stack != nil {
		must(t, "stopping Redis", s.stack.Redis.Stop())
		return
	}
	s.script(t, "kill", "redis")
}

// StartRedis brings an empty Redis back on its address.
func (s *Services) StartRedis(t testing.TB) {
	t.Helper()
	s.mine(t, "StartRedis")
	if s.stack != nil {
		must(t, "starting Redis", s.stack.Redis.Restart(context.WithoutCancel(t.Context())))
		return
	}
	s.script(t, "start", "redis")
}

// database makes a database for an installation; with schema, it has ours.
func (s *Services) database(t testing.TB, schema bool) string {
	t.Helper()
	if s.kind == Shared {
		if schema {
			return s.DatabaseFrom(t, "batchyard schema", migrations.Up)
		}
		return s.Database(t)
	}
	name := "test_" + strings.ToLower(rand.Text()[:12])
	must(t, "making a database", s.sql(t.Context(), "CREATE DATABASE "+name+" TEMPLATE template0"))
	if s.stack == nil {
		t.Cleanup(func() {
			s.script(t, "start", "postgres") // the test may have left it stopped
			ctx, cancel := context.WithTimeout(context.Background(), Patience)
			defer cancel()
			must(t, "dropping the database", s.sql(ctx, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)"))
		})
	}
	u, err := url.Parse(s.PostgresURL)
	must(t, "reading the Postgres URL", err)
	u.Path = "/" + name
	if schema {
		must(t, "migrating", migrations.Up(t.Context(), u.String()))
	}
	return u.String()
}

func (s *Services) sql(ctx context.Context, statement string) error {
	conn, err := pgx.Connect(ctx, s.PostgresURL)
	if err != nil {
		return fmt.Errorf("connecting to Postgres: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // the statement is done, or its error is told
	if _, err := conn.Exec(ctx, statement); err != nil {
		return fmt.Errorf("running %q: %w", statement, err)
	}
	return nil
}
