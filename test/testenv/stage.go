package testenv

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/batchyard/batchyard/internal/embedded"
)

// Patience is how long a test waits for what must happen. It is for a loaded machine; nothing
// takes that long when it works.
const Patience = 60 * time.Second

// logVar turns the logs of the code under test on.
const logVar = "BATCHYARD_TEST_LOG"

// sharedBroker is the broker of this test binary.
var sharedBroker struct {
	sync.Mutex
	broker *embedded.Broker
	err    error
}

// StageMain is [Main] for the tests of a stage: it also fails when goroutines are left behind.
func StageMain(m *testing.M) {
	code := m.Run()
	if err := Close(); err != nil {
		fmt.Fprintf(os.Stderr, "closing the embedded services: %v\n", err)
		code = max(code, 1)
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// Brokers returns the Kafka brokers to test on. It starts an embedded broker and nothing else, which
// takes milliseconds where [Get] takes seconds; with real services it is theirs.
func Brokers(t testing.TB) []string {
	t.Helper()
	if Real() {
		if os.Getenv(brokersVar) == "" {
			t.Fatalf(`%s=real needs %s: run eval "$(scripts/services env)"`, servicesVar, brokersVar)
		}
		return strings.Split(os.Getenv(brokersVar), ",")
	}
	sharedBroker.Lock()
	defer sharedBroker.Unlock()
	if sharedBroker.broker == nil && sharedBroker.err == nil {
		// Not t.Context(): the broker serves the tests after this one.
		sharedBroker.broker, sharedBroker.err = embedded.StartBroker(context.Background(), embedded.BrokerOptions{})
	}
	if sharedBroker.err != nil {
		t.Fatalf("starting the embedded broker: %v", sharedBroker.err)
	}
	return []string{sharedBroker.broker.Addr()}
}

// closeBroker closes the broker that Brokers started.
func closeBroker() error {
	sharedBroker.Lock()
	defer sharedBroker.Unlock()
	if sharedBroker.broker == nil {
		return nil
	}
	err := sharedBroker.broker.Close()
	sharedBroker.broker = nil
	return err
}

// TopicPrefix returns a prefix for this test's topics, groups and keys that no other test and no
// earlier run has.
func TopicPrefix() string { return "t-" + token() + "." }

// Logger returns the logger for the code under test: silent, unless BATCHYARD_TEST_LOG is set.
func Logger(t testing.TB) *slog.Logger {
	if os.Getenv(logVar) == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("test", t.Name())
}

// RedisAt returns a client that is closed when the test ends.
func RedisAt(t testing.TB, addr string) redis.UniversalClient {
	t.Helper()
	client := redis.NewUniversalClient(&redis.UniversalOptions{Addrs: []string{addr}})
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Errorf("closing the Redis client: %v", err)
		}
	})
	return client
}

// Receive returns the next value of a channel, and fails the test when none comes within [Patience].
func Receive[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	timer := time.NewTimer(Patience)
	defer timer.Stop()
	select {
	case v := <-c:
		return v
	case <-timer.C:
		t.Fatalf("waited %s in vain for %s", Patience, what)
		panic("unreachable")
	}
}
