// Package testenv gives tests the services that Batchyard stands on.
//
// By default these are the embedded ones: one set for a test binary, started by
// the first test that asks and closed by Main. With
//
//	BATCHYARD_TEST_SERVICES=real
//
// they are those that BATCHYARD_KAFKA_BROKERS, BATCHYARD_REDIS_ADDR and
// BATCHYARD_POSTGRES_URL name, which `scripts/services env` prints. A test does
// not see the difference.
//
// All tests share the services and run in parallel. They stay apart by a
// database of their own (Database), and by a prefix of their own for topics,
// groups and keys (Prefix).
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

	// startWait is for a loaded machine that downloads Postgres, too.
	startWait = 3 * time.Minute
	// adminWait bounds one administrative step of a test.
	adminWait = time.Minute
)

// Services is where the services are.
type Services struct {
	// Brokers are the host:port to bootstrap a Kafka client from.
	Brokers []string
	// RedisAddr is host:port.
	RedisAddr string
	// PostgresURL is the shared database; take Database for one to write to.
	PostgresURL string
	// Real is true for services outside the test's process.
	Real bool
}

// shared is the embedded set of this test binary.
var shared struct {
	sync.Mutex
	stack *embedded.Stack
	err   error
}

// Get returns the services, starting the embedded ones when nobody has yet.
func Get(t testing.TB) Services {
	t.Helper()
	if os.Getenv(servicesVar) == "real" {
		return fromEnv(t)
	}
	shared.Lock()
	defer shared.Unlock()
	if shared.stack == nil && shared.err == nil {
		// Not t.Context(): what is started serves the tests after this one.
		ctx, cancel := context.WithTimeout(context.Background(), startWait)
		defer cancel()
		shared.stack, shared.err = embedded.Start(ctx, embedded.Options{})
	}
	if shared.err != nil {
		t.Fatalf("starting the embedded services: %v", shared.err)
	}
	return Services{Brokers: shared.stack.Brokers, RedisAddr: shared.stack.RedisAddr, PostgresURL: shared.stack.PostgresURL}
}

func fromEnv(t testing.TB) Services {
	t.Helper()
	for _, name := range []string{brokersVar, redisVar, postgresVar} {
		if os.Getenv(name) == "" {
			t.Fatalf(`%s=real wants %s: run eval "$(scripts/services env)"`, servicesVar, name)
		}
	}
	return Services{
		Brokers:     strings.Split(os.Getenv(brokersVar), ","),
		RedisAddr:   os.Getenv(redisVar),
		PostgresURL: os.Getenv(postgresVar),
		Real:        true,
	}
}

// Main runs the tests, closes the embedded services and exits. When a package
// has no Main, its services end with its process, and their temporary directory
// is removed by the next test binary that starts some.
func Main(m *testing.M) {
	code := m.Run()
	if err := Close(); err != nil {
		fmt.Fprintf(os.Stderr, "closing the embedded services: %v\n", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// Close is for a TestMain of a package's own: it closes the embedded services
// if any were started, and drops the templates that DatabaseFrom left on real ones.
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

// Database creates an empty database for this test, drops it when the test
// ends, and returns its URL.
func (s Services) Database(t testing.TB) string {
	t.Helper()
	name := "test_" + token()
	s.admin(t, "CREATE DATABASE "+name+" TEMPLATE template0")
	t.Cleanup(func() { s.admin(t, drop(name)) })
	return s.urlOf(t, name)
}

// DatabaseFrom is Database for tests whose schema takes long to make: prepare
// runs once for a key and test binary, on a database that is then copied for
// every test. prepare must leave no connection open.
func (s Services) DatabaseFrom(t testing.TB, key string, prepare func(ctx context.Context, url string) error) string {
	t.Helper()
	template := s.template(t, key, prepare)
	name := "test_" + token()
	s.admin(t, "CREATE DATABASE "+name+" TEMPLATE "+template)
	t.Cleanup(func() { s.admin(t, drop(name)) })
	return s.urlOf(t, name)
}

// templates are the databases that DatabaseFrom copies, by key.
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
	ctx, cancel := context.WithTimeout(context.Background(), adminWait)
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

// exec runs one statement on the shared database. It is used when a test is
// over, too, so it does not depend on the test's context.
func exec(url, sql string) error {
	ctx, cancel := context.WithTimeout(context.Background(), adminWait)
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

// Prefix is a prefix for this test's topics, groups and keys that no other test
// and no earlier run has: lower-case letters, digits and hyphens, ending with a hyphen.
func (s Services) Prefix(t testing.TB) string {
	t.Helper()
	return "t-" + token() + "-"
}

// Redis is a client that is closed when the test ends. Keys are shared: see Prefix.
func (s Services) Redis(t testing.TB) redis.UniversalClient {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: s.RedisAddr})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Dir is an empty directory for embedded services that keep their data. Unlike
// t.TempDir it can be entered by the user as whom Postgres runs when the tests
// run as root.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "test-batchyard-*")
	if err == nil {
		err = os.Chmod(dir, 0o711)
	}
	if err != nil {
		t.Fatalf("making a directory for the test: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func token() string { return strings.ToLower(rand.Text()[:12]) }
