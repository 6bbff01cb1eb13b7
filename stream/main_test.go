package stream

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/batchyard/batchyard/internal/embedded"
)

// wait is how long a test waits for what must happen, on a busy machine.
const wait = 60 * time.Second

// tick is how often a test looks where nothing can signal.
const tick = 10 * time.Millisecond

// shared is the broker of this test binary; real ones are named by the environment.
var shared struct {
	sync.Mutex
	broker *embedded.Broker
	n      int
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.broker != nil {
		_ = shared.broker.Close()
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// brokers are the brokers to test on: embedded, or real with
// BATCHYARD_TEST_SERVICES=real and BATCHYARD_KAFKA_BROKERS.
func brokers(t testing.TB) []string {
	t.Helper()
	if os.Getenv("BATCHYARD_TEST_SERVICES") == "real" {
		names := os.Getenv("BATCHYARD_KAFKA_BROKERS")
		require.NotEmpty(t, names, "BATCHYARD_TEST_SERVICES=real wants BATCHYARD_KAFKA_BROKERS")
		return strings.Split(names, ",")
	}
	shared.Lock()
	defer shared.Unlock()
	if shared.broker == nil {
		b, err := embedded.StartBroker(context.Background(), embedded.BrokerOptions{})
		require.NoError(t, err)
		shared.broker = b
	}
	return []string{shared.broker.Addr()}
}

// prefix keeps the topics and groups of a test apart from all others.
func prefix() string {
	shared.Lock()
	defer shared.Unlock()
	shared.n++
	return fmt.Sprintf("t%d-%d-%d.", os.Getpid(), time.Now().UnixNano()%1e9, shared.n)
}

func testConfig(t testing.TB) Config {
	return Config{Brokers: brokers(t), TopicPrefix: prefix(), Partitions: 4, HeartbeatInterval: 100 * time.Millisecond, CommitInterval: 20 * time.Millisecond}
}

func testLog(t testing.TB) *slog.Logger {
	if os.Getenv("STREAM_TEST_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("test", t.Name())
}

// open opens a Log; topics are created when the prefix is new.
func open(t testing.TB, cfg Config) *Log {
	t.Helper()
	l, err := Open(t.Context(), cfg, testLog(t), nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	_, err = l.CreateTopics(t.Context())
	require.NoError(t, err)
	return l
}

// until ends a test's patience.
func until(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	t.Cleanup(cancel)
	return ctx
}

func receive[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(wait):
		require.FailNow(t, "waited in vain for "+what)
		panic("unreachable")
	}
}

// running is a Consume in the background.
type running struct {
	stop context.CancelFunc
	done chan error
}

func consume(t testing.TB, l *Log, cfg ConsumerConfig, handle func(context.Context, []*Record)) *running {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	r := &running{stop: stop, done: make(chan error, 1)}
	ready := make(chan struct{})
	go func() { r.done <- l.Consume(ctx, cfg, handle, func() { close(ready) }) }()
	t.Cleanup(stop)
	receive(t, ready, "the first assignment")
	return r
}

// finish stops the consumer and waits for its end.
func (r *running) finish(t testing.TB) {
	t.Helper()
	r.stop()
	require.NoError(t, receive(t, r.done, "the end of Consume"))
}

// grow gives a topic more partitions.
func grow(t testing.TB, l *Log, topic string, partitions int) {
	t.Helper()
	res, err := l.client.CreatePartitions(until(t), &kafka.CreatePartitionsRequest{
		Topics: []kafka.TopicPartitionsConfig{{Name: l.full(topic), Count: int32(partitions)}},
	})
	require.NoError(t, err)
	require.NoError(t, res.Errors[l.full(topic)])
}

// ownBroker is a broker for one test, which may stop it.
func ownBroker(t *testing.T) *embedded.Broker {
	t.Helper()
	broker, err := embedded.StartBroker(t.Context(), embedded.BrokerOptions{Dir: t.TempDir()})
	require.NoError(t, err)
	t.Cleanup(func() { _ = broker.Close() })
	return broker
}
