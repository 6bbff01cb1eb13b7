package topicid

import (
	"encoding/hex"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/batchyard/batchyard/internal/fuzzing"
)

// answer is what a broker sends, as another client encodes it.
func answer(tags int) []byte {
	res := kmsg.NewPtrMetadataResponse()
	res.Version = version
	res.Brokers = []kmsg.MetadataResponseBroker{{NodeID: 1, Host: "a", Port: 9092}, {NodeID: 2, Host: "b", Port: 9092, Rack: kmsg.StringPtr("r")}}
	res.ClusterID = kmsg.StringPtr("cluster-1")
	for i := range tags {
		res.UnknownTags.Set(uint32(100+i), []byte("later"))
	}
	for _, name := range []string{"events", "results"} {
		t := kmsg.NewMetadataResponseTopic()
		t.Topic = kmsg.StringPtr(name)
		t.TopicID = [16]byte{1, byte(len(name))}
		for p := range 3 {
			part := kmsg.NewMetadataResponseTopicPartition()
			part.Partition, part.Replicas, part.ISR = int32(p), []int32{1, 2}, []int32{2}
			t.Partitions = append(t.Partitions, part)
		}
		res.Topics = append(res.Topics, t)
	}
	missing := kmsg.NewMetadataResponseTopic()
	missing.Topic, missing.ErrorCode = kmsg.StringPtr("missing"), 3
	res.Topics = append(res.Topics, missing)
	return res.AppendTo([]byte{0}) // the header has no tags
}

func TestIDsAreRead(t *testing.T) {
	t.Parallel()
	for _, tags := range []int{0, 2} {
		got, err := Decode(answer(tags))
		require.NoError(t, err)
		id := func(n byte) string {
			b := [16]byte{1, n}
			return hex.EncodeToString(b[:])
		}
		require.Equal(t, &Response{Known: true, Cluster: "cluster-1", IDs: map[string]string{"events": id(6), "results": id(7)}, Partitions: map[string]int{"events": 3, "results": 3}}, got)
	}
}

func TestARequestIsWhatOtherClientsSend(t *testing.T) {
	t.Parallel()
	var req kmsg.MetadataRequest
	req.Version = version
	require.NoError(t, req.ReadFrom((&Request{Topics: []string{"events", "x.results"}}).body()))
	require.Len(t, req.Topics, 2)
	require.Equal(t, "x.results", *req.Topics[1].Topic)
	require.False(t, req.AllowAutoTopicCreation)
}

func FuzzDecode(f *testing.F) {
	f.Add(answer(0))
	f.Add(answer(1))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzzing.Bound(t, len(b), func() { _, _ = Decode(b) })
	})
}
