package records

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/embedded"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/stream"
)

// A record whose dead letter is too large for the topic is replaced by its size and hash, and is done. Headers
// that are large are not kept either.
func TestADeadLetterThatIsTooLarge(t *testing.T) {
	t.Parallel()
	broker, err := embedded.StartBroker(t.Context(), embedded.BrokerOptions{Dir: t.TempDir()})
	require.NoError(t, err)
	t.Cleanup(func() { _ = broker.Close() })
	cl, err := stream.Open(t.Context(), stream.Config{Brokers: []string{broker.Addr()}, Partitions: 1}, nil, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cl.Close()) })
	_, err = cl.CreateTopics(t.Context())
	require.NoError(t, err)
	out := cl.NewOutbox("test", 10, 64<<20)
	dead := &DeadLetters{Stage: "router", Instance: "router@test", Outbox: out, Logger: slog.New(slog.DiscardHandler), Metrics: &metrics.New(nil).Stream}

	value := make([]byte, 17<<20)
	done := make(chan error, 2)
	for i, headers := range [][]stream.Header{{{Key: "mine", Value: []byte("kept")}}, {{Key: "mine", Value: make([]byte, 100<<10)}}} {
		require.NoError(t, dead.Put(t.Context(), Letter{
			Record: &stream.Record{Topic: stream.TasksLow, Partition: 3, Offset: int64(i), Key: []byte("k"), Value: value, Headers: headers},
			Reason: ReasonInvalid, Cause: errors.New("it is invalid"), Done: func(err error) { done <- err },
		}))
		require.NoError(t, <-done)
	}
	require.NoError(t, out.Close(t.Context()))
	sum := sha256.Sum256(value)
	var letters []*stream.Record
	require.NoError(t, cl.Scan(t.Context(), stream.DLQ, func(r *stream.Record) error { letters = append(letters, r); return nil }))
	require.Len(t, letters, 2)
	for i, l := range letters {
		require.Nil(t, l.Value)
		require.Equal(t, "k", string(l.Key))
		require.Equal(t, []string{"kept", ""}[i], l.Header("mine"))
		require.Equal(t, ReasonInvalid, l.Header(HeaderDLQReason))
		require.Equal(t, strconv.Itoa(i), l.Header(HeaderDLQOffset))
		require.Equal(t, strconv.Itoa(len(value)), l.Header(HeaderDLQSize))
		require.Equal(t, hex.EncodeToString(sum[:]), l.Header(HeaderDLQSHA256))
		require.False(t, Whole(l))
		require.True(t, l.Ours())
	}
}
