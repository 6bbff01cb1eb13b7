package stream

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
	"github.com/batchyard/batchyard/test/testenv"
)

func numbered(topic string, from, n, keys int) []Message {
	msgs := make([]Message, n)
	for i := range msgs {
		v := from + i
		msgs[i] = Message{Topic: topic, Key: "k" + strconv.Itoa(v%keys), Value: []byte(strconv.Itoa(v)), Headers: []Header{{Key: "n", Value: []byte(strconv.Itoa(v))}}}
	}
	return msgs
}

// seen gathers values until all of a set are there.
type seen struct {
	mu    sync.Mutex
	count map[string]int
	want  int
	all   chan struct{}
}

func newSeen(want int) *seen {
	return &seen{count: map[string]int{}, want: want, all: make(chan struct{})}
}

func (s *seen) add(v string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count[v]++
	if s.count[v] == 1 && len(s.count) == s.want {
		close(s.all)
	}
}

func TestProduceAndConsumeInOrder(t *testing.T) {
	t.Parallel()
	cl := open(t, testConfig(t))
	const n = 5000
	for i := 0; i < n; i += 500 {
		require.NoError(t, cl.Produce(until(t), numbered(TasksNormal, i, 500, 37)...))
	}
	got := newSeen(n)
	last := map[string]int{}
	var mu sync.Mutex
	r := consume(t, cl, ConsumerConfig{Group: "router", Topic: TasksNormal}, func(_ context.Context, recs []*Record) {
		for i, rec := range recs {
			if i > 0 && (rec.Partition != recs[0].Partition || rec.Offset <= recs[i-1].Offset) {
				panic("records of one call are not consecutive")
			}
			v, _ := strconv.Atoi(string(rec.Value))
			mu.Lock()
			if before, ok := last[string(rec.Key)]; ok && v <= before {
				panic(fmt.Sprintf("key %s: %d after %d", rec.Key, v, before))
			}
			last[string(rec.Key)] = v
			mu.Unlock()
			if rec.Header("n") != string(rec.Value) {
				panic("a header is lost")
			}
			rec.Done()
			rec.Done()
			got.add(string(rec.Value))
		}
	})
	testenv.Receive(t, got.all, "all records")
	r.finish(t)
	lag, err := cl.Lag(until(t), "router", TasksNormal)
	require.NoError(t, err)
	require.Zero(t, lag)
	for v, times := range got.count {
		require.Equal(t, 1, times, v)
	}
}

func TestOutboxAcksWholeUnits(t *testing.T) {
	t.Parallel()
	cl := open(t, testConfig(t))
	o := cl.NewOutbox("test", 64, 1<<20)
	const n = 2000
	acked := newSeen(n)
	for i := range n {
		id := "t" + strconv.Itoa(i)
		tk := &task.Task{ID: id, Tenant: "a"}
		require.NoError(t, o.Put(until(t), Unit{
			Messages: []Message{{Topic: Results, Key: id, Value: []byte(id)}},
			Events:   []task.Event{task.NewEvent(task.TaskQueued, tk, "x", tk.SubmittedAt), task.NewEvent(task.TaskAssigned, tk, "x", tk.SubmittedAt)},
			Acked: func(err error) {
				if err != nil {
					panic(err)
				}
				acked.add(id)
			},
		}))
	}
	testenv.Receive(t, acked.all, "all acks")
	require.NoError(t, o.Close(until(t)))
	require.ErrorIs(t, o.Put(until(t), Unit{}), ErrClosed)

	results := map[string]int{}
	require.NoError(t, cl.Scan(until(t), Results, func(r *Record) error { results[string(r.Value)]++; return nil }))
	require.Len(t, results, n)
	events := map[string][]task.Action{}
	where := map[string]int{}
	frames := 0
	require.NoError(t, cl.Scan(until(t), Events, func(r *Record) error {
		frames++
		require.Equal(t, strconv.Itoa(r.Partition), string(r.Key))
		es, err := wire.DecodeFrame[task.Event](wire.FrameEvents, r.Value)
		require.NoError(t, err)
		for _, e := range es {
			events[e.TaskID] = append(events[e.TaskID], e.Action)
			if p, ok := where[e.TaskID]; ok {
				require.Equal(t, p, r.Partition, "events of one task are apart")
			}
			where[e.TaskID] = r.Partition
		}
		return nil
	}))
	require.Len(t, events, n)
	for id, actions := range events {
		require.Equal(t, []task.Action{task.TaskQueued, task.TaskAssigned}, actions, id)
	}
	require.Less(t, frames, 2*n, "events are not gathered")
}

func TestTooLargeHarmsNobodyElse(t *testing.T) {
	t.Parallel()
	cl := open(t, testConfig(t))
	msgs := numbered(TasksLow, 0, 100, 3)
	big := []byte(strings.Repeat("x", edgeLimit))
	msgs[10].Value, msgs[77].Value = big, big
	err := cl.Produce(until(t), msgs...)
	var tooLarge *TooLargeError
	require.ErrorAs(t, err, &tooLarge)
	require.Equal(t, TasksLow, tooLarge.Topic)
	n := 0
	require.NoError(t, cl.Scan(until(t), TasksLow, func(*Record) error { n++; return nil }))
	require.Equal(t, 98, n)
}

func TestRecordsOfFourMegabytes(t *testing.T) {
	t.Parallel()
	cl := open(t, testConfig(t))
	const n = 9
	for i := range n {
		require.NoError(t, cl.Produce(until(t), Message{Topic: TasksHigh, Key: strconv.Itoa(i), Value: []byte(strings.Repeat("y", 4<<20))}))
	}
	got := newSeen(n)
	r := consume(t, cl, ConsumerConfig{Group: "g", Topic: TasksHigh, MaxBytes: 1 << 20}, func(_ context.Context, recs []*Record) {
		for _, rec := range recs {
			if len(rec.Value) != 4<<20 {
				panic("a record is cut off")
			}
			got.add(string(rec.Key))
			rec.Done()
		}
	})
	testenv.Receive(t, got.all, "all records")
	r.finish(t)
}
