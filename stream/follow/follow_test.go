package follow

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/embedded"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/test/testenv"
)

func TestMain(m *testing.M) { testenv.StageMain(m) }

// follower is a partition that is followed.
type follower struct {
	cl      *stream.Client
	started chan struct{}
	missed  chan error
	got     chan string
	stop    context.CancelFunc
	ended   chan struct{}
}

func follow(t *testing.T, broker string, before int) *follower {
	t.Helper()
	cl, err := stream.Open(t.Context(), stream.Config{Brokers: []string{broker}, TopicPrefix: testenv.TopicPrefix(), Partitions: 4}, testenv.Logger(t), nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cl.Close()) })
	_, err = cl.CreateTopics(t.Context())
	require.NoError(t, err)
	f := &follower{cl: cl, started: make(chan struct{}), missed: make(chan error, 1), got: make(chan string, 100), ended: make(chan struct{})}
	old := make([]stream.Message, before)
	for i := range old {
		old[i] = stream.Message{Topic: stream.Results, Key: "k", Value: []byte("old")}
	}
	require.NoError(t, cl.Produce(t.Context(), old...))
	ctx, stop := context.WithCancel(t.Context())
	f.stop = stop
	go func() {
		defer close(f.ended)
		Partition(ctx, cl, Tail{
			Topic: stream.Results, Partition: cl.PartitionOf(stream.Results, "k"), Started: func() { close(f.started) },
			Missed: func(err error) {
				select {
				case f.missed <- err:
				default:
				}
			},
			Handle: func(recs []*stream.Record) {
				for _, r := range recs {
					f.got <- string(r.Value)
				}
			},
		})
	}()
	t.Cleanup(func() {
		stop()
		testenv.Receive(t, f.ended, "the end")
	})
	testenv.Receive(t, f.started, "the start")
	return f
}

func (f *follower) put(t *testing.T, value string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience)
	defer cancel()
	require.NoError(t, f.cl.Produce(ctx, stream.Message{Topic: stream.Results, Key: "k", Value: []byte(value)}))
}

// What is written after the start is handed out once and in order, also across a broker's restart.
func TestOnlyWhatIsNewIsHandedOut(t *testing.T) {
	t.Parallel()
	broker, err := embedded.StartBroker(t.Context(), embedded.BrokerOptions{Dir: t.TempDir()})
	require.NoError(t, err)
	t.Cleanup(func() { _ = broker.Close() })
	f := follow(t, broker.Addr(), 2)
	pass := func(from, to int) {
		t.Helper()
		for i := from; i < to; i++ {
			f.put(t, fmt.Sprint(i))
		}
		for i := from; i < to; i++ {
			require.Equal(t, fmt.Sprint(i), testenv.Receive(t, f.got, "a record"))
		}
	}
	pass(0, 3)
	require.Empty(t, f.missed)
	require.NoError(t, broker.Stop())
	require.Error(t, testenv.Receive(t, f.missed, "the failure"))
	require.NoError(t, broker.Restart(t.Context()))
	pass(3, 6)
}

// A follower whose topic was recreated says so, and continues at the end of the new one.
func TestATopicIsRecreated(t *testing.T) {
	t.Parallel()
	const old = 5000
	f := follow(t, testenv.Brokers(t)[0], old)
	require.NoError(t, f.cl.DeleteTopics(t.Context()))
	require.Error(t, testenv.Receive(t, f.missed, "the failure"))
	require.Eventually(t, func() bool {
		_, err := f.cl.CreateTopics(t.Context())
		return err == nil
	}, testenv.Patience, 10*time.Millisecond)
	written := 0
	require.Eventually(t, func() bool {
		written++
		f.put(t, "new")
		return len(f.got) > 0
	}, testenv.Patience, 10*time.Millisecond)
	require.Equal(t, "new", <-f.got)
	require.Less(t, written, old, "the offsets of the old topic mean nothing")
}
