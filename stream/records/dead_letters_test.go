package records

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/stream"
)

func TestDeadLetter(t *testing.T) {
	t.Parallel()
	r := &stream.Record{
		Topic: stream.TasksLow, Partition: 3, Offset: 9, Key: []byte("k"), Value: []byte{0xff},
		Headers: []stream.Header{{Key: "a", Value: []byte("b")}, {Key: HeaderDLQReason, Value: []byte("old")}},
	}
	long := strings.Repeat("ü", maxDLQError)
	m := DeadLetter(r, "router", "garbage", errors.New(long))
	require.Equal(t, stream.DLQ, m.Topic)
	require.Equal(t, "k", m.Key)
	require.Equal(t, r.Value, m.Value)
	got := map[string]string{}
	for _, h := range m.Headers {
		require.NotContains(t, got, h.Key)
		got[h.Key] = string(h.Value)
	}
	require.Equal(t, "b", got["a"])
	require.Equal(t, "old", got["dlq-original-dlq-reason"])
	require.Equal(t, "garbage", got[HeaderDLQReason])
	require.Equal(t, "router", got[HeaderDLQStage])
	require.Equal(t, stream.TasksLow, got[HeaderDLQTopic])
	require.Equal(t, "3", got[HeaderDLQPartition])
	require.Equal(t, "9", got[HeaderDLQOffset])
	require.Equal(t, long[:maxDLQError], got[HeaderDLQError])
	require.NotEmpty(t, got[HeaderDLQTime])
	require.Equal(t, "tasks.low/3@9", r.Position())
}

// A dead letter is restored as it was, also after several deaths: null and empty keys and values,
// the sender's own dlq-* headers, and the signature.
func TestRestore(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]*stream.Record{
		"nulls":    {Topic: stream.TasksLow},
		"empties":  {Topic: stream.TasksLow, Key: []byte{}, Value: []byte{}, Headers: []stream.Header{{Key: "", Value: []byte{}}, {Key: "n"}}},
		"contents": {Topic: stream.Results, Key: []byte("k"), Value: []byte("v"), Headers: []stream.Header{{Key: "a", Value: []byte("b")}}},
		"headers of dead letters": {Topic: stream.TasksHigh, Key: []byte("k"), Headers: []stream.Header{
			{Key: HeaderDLQTopic, Value: []byte("mine")}, {Key: "dlq-original-dlq-topic", Value: []byte("mine, too")}, {Key: "dlq-", Value: nil},
			{Key: stream.HeaderSignature, Value: []byte("v1,x")}, {Key: "dlq-original-batchyard-signature", Value: []byte("y")}, {Key: "dlq-original-", Value: []byte("z")},
		}},
	} {
		at := r
		for death := range 3 {
			m := DeadLetter(at, "router", ReasonInvalid, nil)
			require.False(t, m.Verbatim)
			letter := &stream.Record{Topic: m.Topic, Key: keyOf(m), Value: m.Value, Headers: append(m.Headers, stream.Header{Key: stream.HeaderSignature, Value: []byte("of the letter")})}
			back := Restore(letter)
			require.True(t, back.Verbatim, "a replay signs nothing")
			require.Equal(t, r.Topic, back.Topic)
			require.Equal(t, r.Value, back.Value)
			require.Equal(t, r.Key, keyOf(back))
			if len(r.Headers) > 0 || len(back.Headers) > 0 {
				require.Equal(t, r.Headers, back.Headers, "%s, death %d", name, death)
			}
			replayed := append(back.Headers, stream.Header{Key: stream.HeaderReplay, Value: []byte("1")}, stream.Header{Key: stream.HeaderReplayFrom, Value: []byte("2@3")})
			at = &stream.Record{Topic: back.Topic, Key: keyOf(back), Value: back.Value, Headers: replayed}
		}
	}
}

// keyOf returns the key with which a message is written.
func keyOf(m stream.Message) []byte {
	if m.Key == "" && !m.EmptyKey {
		return nil
	}
	return []byte(m.Key)
}
