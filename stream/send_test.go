package stream

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/stream/internal/produce"
)

// The transport may encode a request after its round trip has ended, when the context ended first. What it holds must
// then still be there: an index out of range on the transport's goroutine would end the process.
func TestARequestThatWasGivenUpCanBeEncoded(t *testing.T) {
	t.Parallel()
	topic, err := findTopic(TasksNormal)
	require.NoError(t, err)
	p := &producer{cl: &Client{}}
	pt := part{q: &queue{topic: topic}, entries: []entry{{msg: Message{Key: "k", Value: []byte("v")}, at: time.Now()}}}
	b := p.batch(&pt)
	pt.entries = nil
	require.Equal(t, 1, b.Records)
	require.NotPanics(t, func() { b.Record(0, new(produce.Record)) })
}
