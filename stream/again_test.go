package stream

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/stream/internal/produce"
	"github.com/batchyard/batchyard/stream/internal/settings"
	"github.com/batchyard/batchyard/test/testenv"
)

func strictConfig(b *testenv.StrictBroker) Config {
	return Config{Brokers: b.Addrs, Partitions: 2, HeartbeatInterval: 100 * time.Millisecond, CommitInterval: 20 * time.Millisecond, FetchWait: 50 * time.Millisecond}
}

func openWith(t *testing.T, cfg Config, m *metrics.Metrics) *Client {
	t.Helper()
	cl, err := Open(t.Context(), cfg, testenv.Logger(t), m)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cl.Close()) })
	_, err = cl.CreateTopics(t.Context())
	require.NoError(t, err)
	return cl
}

// The clock of one process is wrong, or the broker's, in a topic where writers stamp records.
func TestATimeThatIsRefusedIsLeftOut(t *testing.T) {
	t.Parallel()
	broker, m := testenv.Strict(t), metrics.New(nil)
	cl := openWith(t, strictConfig(broker), m)
	broker.Refuse(func(topic string, batch []byte) int16 {
		if topic == Results && testenv.BatchTime(batch).UnixMilli() >= 0 {
			return testenv.InvalidTimestamp
		}
		return 0
	})
	for range 2 {
		require.NoError(t, cl.Produce(until(t), Message{Topic: Results, Key: "k", Value: []byte("v")}, Message{Topic: Results, Key: "k", Value: []byte("w")}))
	}
	require.Equal(t, 1, broker.Refused(), "the second write has no time to begin with")
	n := 0
	require.NoError(t, cl.Scan(until(t), Results, func(r *Record) error {
		require.Equal(t, produce.NoTime, r.Time)
		n++
		return nil
	}))
	require.Equal(t, 4, n)
	var got dto.Metric
	require.NoError(t, m.Stream.TimesRefused.WithLabelValues(Results).Write(&got))
	require.Equal(t, 1.0, got.GetCounter().GetValue())
	require.NoError(t, cl.Stuck())
}

// Whatever a record becomes is refused for good: the process that holds it tries again, and says so.
func TestARecordWhoseOutputIsRefusedIsHandedOutAgain(t *testing.T) {
	t.Parallel()
	broker := testenv.Strict(t)
	cl := openWith(t, strictConfig(broker), nil)
	broker.Refuse(func(topic string, batch []byte) int16 {
		if topic == Results && strings.Contains(string(batch), "poison") {
			return testenv.InvalidRecord
		}
		return 0
	})
	out := cl.NewOutbox("test", 100, 1<<20)
	defer func() { require.NoError(t, out.Close(until(t))) }()
	var mu sync.Mutex
	handled, lost := map[string]int{}, 0
	again := make(chan struct{}, 100)
	consume(t, cl, ConsumerConfig{Group: "g", Topic: TasksNormal, OnAgain: func() { again <- struct{}{} }}, func(ctx context.Context, recs []*Record) {
		for _, r := range recs {
			mu.Lock()
			handled[string(r.Value)]++
			mu.Unlock()
			err := out.Put(ctx, Unit{Messages: []Message{{Topic: Results, Key: "k", Value: r.Value}}, Acked: func(err error) {
				if err == nil {
					r.Done()
					return
				}
				r.Again(err)
				r.Again(err) // once is enough
				mu.Lock()
				defer mu.Unlock()
				if r.Lost() {
					lost++
				}
			}})
			require.NoError(t, err)
		}
	})
	for _, v := range []string{"a", "poison", "b", "c"} {
		require.NoError(t, cl.Produce(until(t), Message{Topic: TasksNormal, Key: "k", Value: []byte(v)}))
	}
	for range 2 { // each time it is handed out
		testenv.Receive(t, again, "a refusal")
	}
	require.ErrorContains(t, cl.Stuck(), "1 records of topic tasks.normal cannot be finished")
	broker.Refuse(nil)
	require.Eventually(t, func() bool {
		lag, err := cl.Lag(context.Background(), "g", TasksNormal)
		return err == nil && lag == 0
	}, testenv.Patience, tick)
	require.NoError(t, cl.Stuck())
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, 2, lost)
	require.Equal(t, map[string]int{"a": 1, "poison": 3, "b": 1, "c": 1}, handled)
}

// A refused record does not hold up the end of a consumer, and the next one reads it.
func TestARefusedRecordDoesNotDelayTheEnd(t *testing.T) {
	t.Parallel()
	cl := open(t, testConfig(t))
	require.NoError(t, cl.Produce(until(t), Message{Topic: TasksNormal, Key: "k", Value: []byte("v")}))
	refused := make(chan struct{}, 1)
	r := consume(t, cl, ConsumerConfig{Group: "g", Topic: TasksNormal, DrainTimeout: time.Hour}, func(_ context.Context, recs []*Record) {
		recs[0].Again(context.Canceled)
		select {
		case refused <- struct{}{}:
		default:
		}
	})
	testenv.Receive(t, refused, "the record")
	r.finish(t)
	require.NoError(t, cl.Stuck())
	read := make(chan *Record, 1)
	consume(t, cl, ConsumerConfig{Group: "g", Topic: TasksNormal}, func(_ context.Context, recs []*Record) { recs[0].Done(); read <- recs[0] })
	require.Equal(t, "v", string(testenv.Receive(t, read, "the record again").Value))
}

// A partition is current when all that was in it has been handed out, and not while the stage is stuck.
func TestAConsumerReportsThePartitionsThatItKeepsUpWith(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Partitions, cfg.FetchWait = 2, 50*time.Millisecond
	cl := open(t, cfg)
	free, stuck := keyIn(0, 2), keyIn(1, 2)
	for range 50 {
		require.NoError(t, cl.Produce(until(t), Message{Topic: Batches, Key: free, Value: []byte("v")}, Message{Topic: Batches, Key: stuck, Value: []byte("v")}))
	}
	gate := make(chan struct{})
	reports := make(chan []int, 1000)
	consume(t, cl, ConsumerConfig{Group: "g", Topic: Batches, MaxRecords: 40, OnCurrent: func(p []int) { reports <- p }, CurrentEvery: 20 * time.Millisecond}, func(_ context.Context, recs []*Record) {
		for _, r := range recs {
			if r.Partition == 1 {
				<-gate
			}
			r.Done()
		}
	})
	for range 5 {
		require.Equal(t, []int{0}, testenv.Receive(t, reports, "a report"))
	}
	close(gate)
	require.Eventually(t, func() bool { return len(testenv.Receive(t, reports, "a report")) == 2 }, testenv.Patience, tick)
}

// keyIn returns a key that belongs to a partition.
func keyIn(partition int32, n int) string {
	for i := 0; ; i++ {
		if key := strings.Repeat("k", i); i > 0 && partitionOf(key, n) == partition {
			return key
		}
	}
}

// A real broker accepts records without a time where it refuses those of a clock that is two hours ahead,
// and needs neither where it stamps records itself. The test is not parallel: the clock is this process's.
func TestARealBrokerTakesRecordsOfAWrongClock(t *testing.T) { //nolint:paralleltest // see above
	if !testenv.Real() {
		t.Skip("the embedded broker checks no times")
	}
	defer func() { clock.Observe(time.Now(), time.Now()) }()
	clock.Observe(time.Now().Add(2*time.Hour), time.Now())
	m := metrics.New(nil)
	cl := openWith(t, testConfig(t), m)
	refused := func() float64 {
		var got dto.Metric
		require.NoError(t, m.Stream.TimesRefused.WithLabelValues(Results).Write(&got))
		return got.GetCounter().GetValue()
	}
	require.NoError(t, cl.Produce(until(t), Message{Topic: Results, Key: "k", Value: []byte("stamped by the broker")}))
	require.Zero(t, refused())
	set(t, cl, Results, settings.Timestamps, "CreateTime")
	require.Eventually(t, func() bool {
		require.NoError(t, cl.Produce(until(t), Message{Topic: Results, Key: "k", Value: []byte("without a time")}))
		return refused() > 0
	}, testenv.Patience, tick)
	last := time.Time{}
	require.NoError(t, cl.Scan(until(t), Results, func(r *Record) error { last = r.Time; return nil }))
	require.Equal(t, produce.NoTime, last)
}
