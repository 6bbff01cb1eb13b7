// Package testenv provides tests with the services that Batchyard depends on.
//
// By default these are the embedded ones. The first test that needs them starts
// them, all tests of the binary share them, and Main closes them. With
//
//	BATCHYARD_TEST_SERVICES=real
//
// tests use the services at BATCHYARD_KAFKA_BROKERS, BATCHYARD_REDIS_ADDR and
// BATCHYARD_POSTGRES_URL, as printed by `scripts/services env`. Tests can't tell the
// difference.
//
// Tests run in parallel on the shared services. To stay apart, each uses its own
// database (Database), and its own prefix for topics, groups and keys (Prefix).
//
//	func TestMain(m *testing.M) { testenv.Main(m) }
//
//	func TestSomething(t *testing.T) {
//		t.Parallel()
//		env := testenv.Get(t)
//		url, prefix := env.Database(t), env.Prefix(t)
//		…
//	}
package testenv

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/batchyard/batchyard/internal/embedded"
)

const (
	servicesVar = "BATCHYARD_TEST_SERVICES"
	brokersVar  = "BATCHYARD_KAFKA_BROKERS"
	redisVar    = "BATCHYARD_REDIS_ADDR"
	postgresVar = "BATCHYARD_POSTGRES_URL"

	// startTimeout allows for a busy machine that has to download Postgres.
	startTimeout = 3 * time.Minute
	// adminTimeout limits a single administrative statement.
	adminTimeout = time.Minute
)

// Services are the addresses of the services.
type Services struct {
	// Brokers are the host:port addresses to bootstrap a Kafka client from.
	Brokers []string
	// RedisAddr is the host:port of Redis.
	RedisAddr string
	// PostgresURL is the shared database. Use Database for one to write to.
	PostgresURL string
	// Real is true for services outside the test process.
	Real bool
}

// shared holds the embedded services of this test binary.
var shared struct {
	sync.Mutex
	stack *embedded.Stack
	err   error
}

// Get returns the services. The first call starts the embedded ones.
func Get(t testing.TB) Services {
	t.Helper()
	if Real() {
		return fromEnv(t)
	}
	shared.Lock()
	defer shared.Unlock()
	if shared.stack == nil && shared.err == nil {
		// Not t.Context(): the services outlive this test.
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		shared.stack, shared.err = embedded.Start(ctx, embedded.Options{})
	}
	if shared.err != nil {
		t.Fatalf("starting the embedded services: %v", shared.err)
	}
	return Services{Brokers: shared.stack.Brokers, RedisAddr: shared.stack.RedisAddr, PostgresURL: shared.stack.PostgresURL}
}

// Real reports whether the services are outside the test process. It starts none.
func Real() bool { return os.Getenv(servicesVar) == "real" }

func fromEnv(t testing.TB) Services {
	t.Helper()
	for _, name := range []string{brokersVar, redisVar, postgresVar} {
		if os.Getenv(name) == "" {
			t.Fatalf(`%s=real needs %s: run eval "$(scripts/services env)"`, servicesVar, name)
		}
	}
	return Services{
		Brokers:     strings.Split(os.Getenv(brokersVar), ","),
		RedisAddr:   os.Getenv(redisVar),
		PostgresURL: os.Getenv(postgresVar),
		Real:        true,
	}
}

// Main runs the tests, closes the embedded services and exits. In a package that
// doesn't call it, the services end with the process, and the next test binary
// that starts embedded services removes their temporary directory.
func Main(m *testing.M) {
	code := m.Run()
	if err := Close(); err != nil {
		fmt.Fprintf(os.Stderr, "closing the embedded services: %v\n", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// Close is for packages with a custom TestMain. It closes the embedded services, if
// any were started, or drops the template databases that DatabaseFrom created on
// real ones.
func Close() error {
	shared.Lock()
	defer shared.Unlock()
	errs := []error{closeBroker()}
	if shared.stack != nil {
		errs = append(errs, shared.stack.Close())
		shared.stack = nil
		return errors.Join(errs...)
	}
	templates.Lock()
	defer templates.Unlock()
	for key, name := range templates.byKey {
		errs = append(errs, exec(templates.url, drop(name)))
		delete(templates.byKey, key)
	}
	return errors.Join(errs...)
}

// Database creates an empty database for this test and returns its URL. The
// database is dropped when the test ends.
func (s Services) Database(t testing.TB) string {
	t.Helper()
	name := "test_" + token()
	s.admin(t, "CREATE DATABASE "+name+" TEMPLATE template0")
	t.Cleanup(func() { s.admin(t, drop(name)) })
	return s.urlOf(t, name)
}

// DatabaseFrom is like Database, for tests whose schema takes long to create.
// prepare runs once per key and test binary, on a template database that is then
// copied for each test. prepare must close its connections.
func (s Services) DatabaseFrom(t testing.TB, key string, prepare func(ctx context.Context, url string) error) string {
	t.Helper()
	template := s.template(t, key, prepare)
	name := "test_" + token()
	s.admin(t, "CREATE DATABASE "+name+" TEMPLATE "+template)
	t.Cleanup(func() { s.admin(t, drop(name)) })
	return s.urlOf(t, name)
}

// templates are the template databases of DatabaseFrom, by key.
var templates struct {
	sync.Mutex
	url   string
	byKey map[string]string
}

func (s Services) template(t testing.TB, key string, prepare func(ctx context.Context, url string) error) string {
	t.Helper()
	templates.Lock()
	defer templates.Unlock()
	if name, ok := templates.byKey[key]; ok {
		return name
	}
	name := "template_" + token()
	s.admin(t, "CREATE DATABASE "+name+" TEMPLATE template0")
	ctx, cancel := context.WithTimeout(context.Background(), adminTimeout)
	defer cancel()
	if err := prepare(ctx, s.urlOf(t, name)); err != nil {
		s.admin(t, drop(name))
		t.Fatalf("preparing the template database %s: %v", key, err)
	}
	if templates.byKey == nil {
		templates.byKey, templates.url = map[string]string{}, s.PostgresURL
	}
	templates.byKey[key] = name
	return name
}

func (s Services) urlOf(t testing.TB, database string) string {
	t.Helper()
	u, err := url.Parse(s.PostgresURL)
	if err != nil {
		t.Fatalf("parsing the Postgres URL: %v", err)
	}
	u.Path = "/" + database
	return u.String()
}

func (s Services) admin(t testing.TB, sql string) {
	t.Helper()
	if err := exec(s.PostgresURL, sql); err != nil {
		t.Fatal(err)
	}
}

// exec runs one statement on the shared database. It is also used for cleanup, so
// it doesn't depend on the context of a test.
func exec(url, sql string) error {
	ctx, cancel := context.WithTimeout(context.Background(), adminTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("connecting to Postgres: %w", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("running %q: %w", sql, err)
	}
	return nil
}

func drop(database string) string { return "DROP DATABASE IF EXISTS " + database + " WITH (FORCE)" }

// Prefix returns a prefix for this test's topics, groups and keys that no other
// test or earlier run uses. It consists of lower-case letters, digits and hyphens,
// and ends with a hyphen.
func (s Services) Prefix(t testing.TB) string {
	t.Helper()
	return "t-" + token() + "-"
}

// Redis returns a client that is closed when the test ends. All tests share the
// keyspace: see Prefix.
func (s Services) Redis(t testing.TB) redis.UniversalClient {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: s.RedisAddr})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Dir returns an empty directory for embedded services with persistent data. Unlike
// t.TempDir, the user that runs Postgres can enter it, even if the tests run as
// root.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "test-batchyard-*")
	if err == nil {
		err = os.Chmod(dir, 0o711)
	}
	if err != nil {
		t.Fatalf("creating a directory for the test: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func token() string { return strings.ToLower(rand.Text()[:12]) }
