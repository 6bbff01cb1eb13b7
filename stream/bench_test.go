package stream

import (
	"context"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
)

func benchMessages(topic string, n, size int) []Message {
	msgs := make([]Message, n)
	for i := range msgs {
		msgs[i] = Message{Topic: topic, Key: strconv.Itoa(i), Value: make([]byte, size), Headers: []Header{{Key: "content-type", Value: []byte("application/msgpack")}}}
	}
	return msgs
}

// openWarm opens a Log and waits until its topics accept records: a new partition has no leader
// for a moment.
func openWarm(b *testing.B, cfg Config) *Client {
	cl := open(b, cfg)
	for _, t := range []string{TasksNormal, Assignments, Events} {
		require.NoError(b, cl.Produce(b.Context(), benchMessages(t, 200, 10)...))
	}
	return cl
}

func BenchmarkProduce(b *testing.B) {
	cfg := testConfig(b)
	cfg.Partitions = 12
	cl := openWarm(b, cfg)
	msgs := benchMessages(TasksNormal, 1000, 300)
	b.SetBytes(300)
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i += len(msgs) {
		require.NoError(b, cl.Produce(b.Context(), msgs[:min(len(msgs), b.N-i)]...))
	}
}

// One message at a time: the latency of a single submit.
func BenchmarkProduceOne(b *testing.B) {
	cl := openWarm(b, testConfig(b))
	for b.Loop() {
		require.NoError(b, cl.Produce(b.Context(), Message{Topic: TasksNormal, Key: "k", Value: []byte("v")}))
	}
}

func BenchmarkConsume(b *testing.B) {
	cfg := testConfig(b)
	cfg.Partitions = 12
	cl := openWarm(b, cfg)
	msgs := benchMessages(TasksNormal, 1000, 300)
	for i := 0; i < b.N; i += len(msgs) {
		require.NoError(b, cl.Produce(b.Context(), msgs[:min(len(msgs), b.N-i)]...))
	}
	var n atomic.Int64
	all := make(chan struct{})
	b.SetBytes(300)
	b.ReportAllocs()
	b.ResetTimer()
	r := consume(b, cl, ConsumerConfig{Group: "g", Topic: TasksNormal}, func(_ context.Context, recs []*Record) {
		for _, rec := range recs {
			rec.Done()
		}
		if after := n.Add(int64(len(recs))); after >= int64(b.N+200) && after-int64(len(recs)) < int64(b.N+200) {
			close(all)
		}
	})
	<-all
	b.StopTimer()
	r.finish(b)
}

// Units like those of a stage: one message and two events.
func BenchmarkOutbox(b *testing.B) {
	cfg := testConfig(b)
	cfg.Partitions = 12
	cl := openWarm(b, cfg)
	o := cl.NewOutbox("bench", 4096, 16<<20)
	all := make(chan struct{})
	var n atomic.Int64
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		id := strconv.Itoa(i)
		e := task.Event{Action: task.TaskAssigned, Outcome: task.OutcomeOK, Tenant: "default", TaskID: id, ResourceID: id, ActorID: "router@host-1", TraceID: "0123456789abcdef0123456789abcdef"}
		err := o.Put(b.Context(), Unit{
			Messages: []Message{{Topic: Assignments, Key: strconv.Itoa(i % 20), Value: make([]byte, 500)}},
			Events:   []task.Event{e, e},
			Acked: func(error) {
				if n.Add(1) == int64(b.N) {
					close(all)
				}
			},
		})
		require.NoError(b, err)
	}
	<-all
	b.StopTimer()
	require.NoError(b, o.Close(b.Context()))
}

// From Produce to the handler, one message at a time.
func BenchmarkEndToEnd(b *testing.B) {
	cl := openWarm(b, testConfig(b))
	got := make(chan struct{}, 200)
	r := consume(b, cl, ConsumerConfig{Group: "g", Topic: TasksNormal}, func(_ context.Context, recs []*Record) {
		for _, rec := range recs {
			rec.Done()
			got <- struct{}{}
		}
	})
	for range 200 {
		<-got
	}
	for b.Loop() {
		require.NoError(b, cl.Produce(b.Context(), Message{Topic: TasksNormal, Value: []byte("v")}))
		<-got
	}
	b.StopTimer()
	r.finish(b)
}
