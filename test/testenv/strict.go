package testenv

import (
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Error codes of Kafka with which a [StrictBroker] refuses.
const (
	InvalidTimestamp int16 = 32
	InvalidRecord    int16 = 87
)

// StrictBroker is a broker for one test that refuses what it is told to refuse.
type StrictBroker struct {
	Addrs []string

	mu      sync.Mutex
	refuse  func(topic string, batch []byte) int16
	refused int
}

// Strict starts a broker that ends with the test.
func Strict(t testing.TB) *StrictBroker {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.GroupMinSessionTimeout(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	b := &StrictBroker{Addrs: c.ListenAddrs()}
	c.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		return b.produce(r.(*kmsg.ProduceRequest)) //nolint:forcetypeassert // the key says so
	})
	return b
}

// Refuse makes the broker answer writes with the error code that the function returns, unless it is 0. A
// batch is as in the protocol: see [BatchTime].
func (b *StrictBroker) Refuse(f func(topic string, batch []byte) (code int16)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refuse = f
}

// Refused returns how many writes were refused.
func (b *StrictBroker) Refused() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.refused
}

// BatchTime returns the time of a batch's first record.
func BatchTime(batch []byte) time.Time {
	const at = 27
	return time.UnixMilli(int64(binary.BigEndian.Uint64(batch[at:]))) //nolint:gosec // as the format defines it
}

// produce refuses a whole request if one of its batches is refused: its other partitions are answered with
// an error that the client repeats.
func (b *StrictBroker) produce(req *kmsg.ProduceRequest) (kmsg.Response, error, bool) { //nolint:revive // the order of results is that of the library
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.refuse == nil {
		return nil, nil, false
	}
	const notLeader = 6
	res, some := req.ResponseKind().(*kmsg.ProduceResponse), false //nolint:forcetypeassert // of that request
	for _, t := range req.Topics {
		rt := kmsg.NewProduceResponseTopic()
		rt.Topic = t.Topic
		for _, p := range t.Partitions {
			rp := kmsg.NewProduceResponseTopicPartition()
			rp.Partition, rp.ErrorCode = p.Partition, notLeader
			if code := b.refuse(t.Topic, p.Records); code != 0 {
				rp.ErrorCode, some = code, true
				b.refused++
			}
			rt.Partitions = append(rt.Partitions, rp)
		}
		res.Topics = append(res.Topics, rt)
	}
	if !some {
		return nil, nil, false
	}
	return res, nil, true
}
