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

// wait bounds how long a test waits on a busy machine.
const wait = 60 * time.Second

// tick is how often a test polls where no signal is possible.
const tick = 10 * time.Millisecond

// shared is the embedded broker of this test binary.
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

// brokers returns the brokers to test with: an embedded one, or those in
// BATCHYARD_KAFKA_BROKERS if BATCHYARD_TEST_SERVICES=real.
func brokers(t testing.TB) []string {
	t.Helper()
	if os.Getenv("BATCHYARD_TEST_SERVICES") == "real" {
		names := os.Getenv("BATCHYARD_KAFKA_BROKERS")
		require.NotEmpty(t, names, "BATCHYARD_TEST_SERVICES=real needs BATCHYARD_KAFKA_BROKERS")
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

// prefix returns a unique topic prefix for a test.
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

// open opens a Log and creates its topics.
func open(t testing.TB, cfg Config) *Log {
	t.Helper()
	cl, err := Open(t.Context(), cfg, testLog(t), nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cl.Close()) })
	_, err = cl.CreateTopics(t.Context())
	require.NoError(t, err)
	return cl
}

// until returns a context with the longest time that a test waits.
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
		require.FailNow(t, "timed out waiting for "+what)
		panic("unreachable")
	}
}

// running is a Consume in the background.
type running struct {
	stop context.CancelFunc
	done chan error
}

func consume(t testing.TB, cl *Log, cfg ConsumerConfig, handle func(context.Context, []*Record)) *running {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	r := &running{stop: stop, done: make(chan error, 1)}
	ready := make(chan struct{})
	go func() { r.done <- cl.Consume(ctx, cfg, handle, func() { close(ready) }) }()
	t.Cleanup(stop)
	receive(t, ready, "the first assignment")
	return r
}

// finish stops the consumer and waits until Consume returns.
func (r *running) finish(t testing.TB) {
	t.Helper()
	r.stop()
	require.NoError(t, receive(t, r.done, "the end of Consume"))
}

// grow gives a topic more partitions.
func grow(t testing.TB, cl *Log, topic string, partitions int) {
	t.Helper()
	res, err := cl.kafka.CreatePartitions(until(t), &kafka.CreatePartitionsRequest{
		Topics: []kafka.TopicPartitionsConfig{{Name: cl.full(topic), Count: int32(partitions)}},
	})
	require.NoError(t, err)
	require.NoError(t, res.Errors[cl.full(topic)])
}

// ownBroker starts a broker for one test, which may stop it.
func ownBroker(t *testing.T) *embedded.Broker {
	t.Helper()
	broker, err := embedded.StartBroker(t.Context(), embedded.BrokerOptions{Dir: t.TempDir()})
	require.NoError(t, err)
	t.Cleanup(func() { _ = broker.Close() })
	return broker
}
