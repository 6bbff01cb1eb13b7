package stream

import (
	"context"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/embedded"
	"github.com/batchyard/batchyard/test/testenv"
)

// tick is how often a test polls where no signal is possible.
const tick = 10 * time.Millisecond

func TestMain(m *testing.M) { testenv.StageMain(m) }

func testConfig(t testing.TB) Config {
	return Config{Brokers: testenv.Brokers(t), TopicPrefix: testenv.TopicPrefix(), Partitions: 4, HeartbeatInterval: 100 * time.Millisecond, CommitInterval: 20 * time.Millisecond}
}

// open opens a Log and creates its topics.
func open(t testing.TB, cfg Config) *Client {
	t.Helper()
	cl, err := Open(t.Context(), cfg, testenv.Logger(t), nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cl.Close()) })
	_, err = cl.CreateTopics(t.Context())
	require.NoError(t, err)
	return cl
}

// until returns a context with the longest time that a test waits.
func until(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience)
	t.Cleanup(cancel)
	return ctx
}

// running is a Consume in the background.
type running struct {
	stop context.CancelFunc
	done chan error
}

func consume(t testing.TB, cl *Client, cfg ConsumerConfig, handle func(context.Context, []*Record)) *running {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	r := &running{stop: stop, done: make(chan error, 1)}
	ready := make(chan struct{})
	go func() { r.done <- cl.Consume(ctx, cfg, handle, func() { close(ready) }) }()
	t.Cleanup(stop)
	testenv.Receive(t, ready, "the first assignment")
	return r
}

// finish stops the consumer and waits until Consume returns.
func (r *running) finish(t testing.TB) {
	t.Helper()
	r.stop()
	require.NoError(t, testenv.Receive(t, r.done, "the end of Consume"))
}

// grow gives a topic more partitions.
func grow(t testing.TB, cl *Client, topic string, partitions int) {
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
