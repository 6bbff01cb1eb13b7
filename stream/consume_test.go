package stream

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/test/testenv"
)

func TestBudgetBoundsMemoryWithoutStarvation(t *testing.T) {
	t.Parallel()
	cl := open(t, testConfig(t))
	// A thousand records for partition 0 that are never done, then some for the others.
	var msgs []Message
	for i := 0; len(msgs) < 1000; i++ {
		if k := strconv.Itoa(i); partitionOf(k, 4) == 0 {
			msgs = append(msgs, Message{Topic: TasksNormal, Key: k, Value: make([]byte, 1000)})
		}
	}
	require.NoError(t, cl.Produce(until(t), msgs...))
	var held, most, others atomic.Int64
	full, served := make(chan struct{}), make(chan struct{})
	var stuck sync.Map
	r := consume(t, cl, ConsumerConfig{Group: "g", Topic: TasksNormal, MaxRecords: 80, DrainTimeout: time.Millisecond}, func(_ context.Context, recs []*Record) {
		for _, rec := range recs {
			if rec.Partition == 0 {
				stuck.Store(rec, nil)
				if held.Add(1) == 50 { // its share, an eighth, and the common half
					close(full)
				}
				continue
			}
			most.Store(max(most.Load(), held.Load()))
			rec.Done()
			if others.Add(1) == 3000 {
				close(served)
			}
		}
	})
	testenv.Receive(t, full, "the stuck partition to use up its part")
	msgs = msgs[:0]
	for i := 0; len(msgs) < 3000; i++ {
		if k := strconv.Itoa(i); partitionOf(k, 4) != 0 {
			msgs = append(msgs, Message{Topic: TasksNormal, Key: k, Value: []byte(k)})
		}
	}
	require.NoError(t, cl.Produce(until(t), msgs...))
	testenv.Receive(t, served, "the others' records")
	require.Equal(t, int64(50), held.Load(), "the stuck partition exceeded its part")
	r.finish(t)
}

func TestDrainWaitsForRecordsInFlight(t *testing.T) {
	t.Parallel()
	cl := open(t, testConfig(t))
	require.NoError(t, cl.Produce(until(t), numbered(TasksNormal, 0, 100, 100)...))
	var mu sync.Mutex
	var held []*Record
	got := newSeen(100)
	ended := make(chan struct{}, 16)
	r := consume(t, cl, ConsumerConfig{Group: "g", Topic: TasksNormal}, func(ctx context.Context, recs []*Record) {
		mu.Lock()
		held = append(held, recs...)
		mu.Unlock()
		for _, rec := range recs {
			got.add(string(rec.Value))
		}
		<-ctx.Done()
		ended <- struct{}{}
	})
	// Each handler is called once and blocks its own partition.
	require.Eventually(t, func() bool { mu.Lock(); defer mu.Unlock(); return len(held) == 100 }, testenv.Patience, 5*time.Millisecond)
	r.stop()
	testenv.Receive(t, ended, "the handlers' context to end")
	select {
	case <-r.done:
		require.Fail(t, "Consume returned with records in flight")
	case <-time.After(50 * time.Millisecond):
	}
	for _, rec := range held {
		require.False(t, rec.Lost())
		rec.Done()
	}
	require.NoError(t, testenv.Receive(t, r.done, "the end of Consume"))
	lag, err := cl.Lag(until(t), "g", TasksNormal)
	require.NoError(t, err)
	require.Zero(t, lag)
}

func TestStragglersAreReported(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Partitions = 1
	cl := open(t, cfg)
	const n = 8000 // as many spans do not fit into a commit
	require.NoError(t, cl.Produce(until(t), numbered(TasksNormal, 0, n, n)...))
	named := make(chan int64, 100)
	var mu sync.Mutex
	held := map[int64]*Record{}
	r := consume(t, cl, ConsumerConfig{
		Group: "g", Topic: TasksNormal, MaxRecords: 2 * n, MaxSpread: 100,
		OnStraggler: func(_ *Ownership, offset int64) { named <- offset },
	}, func(_ context.Context, recs []*Record) {
		mu.Lock()
		defer mu.Unlock()
		for _, rec := range recs {
			if held[rec.Offset] = rec; rec.Offset%2 == 1 {
				rec.Done()
			}
		}
	})
	require.Zero(t, testenv.Receive(t, named, "a straggler"))
	mu.Lock()
	held[0].Done()
	mu.Unlock()
	require.Equal(t, int64(2), testenv.Receive(t, named, "the next one"))
	require.Eventually(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(held) == n
	}, testenv.Patience, time.Millisecond)
	for _, rec := range held {
		rec.Done()
	}
	r.finish(t)
	lag, err := cl.Lag(until(t), "g", TasksNormal)
	require.NoError(t, err)
	require.Zero(t, lag)
}

// store is an offset store that starts at a given offset.
type store struct {
	mu       sync.Mutex
	next     int64
	failures int
	acquired map[int]int
}

func (s *store) Acquire(_ context.Context, _ string, partition int) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failures > 0 {
		s.failures--
		return 0, errors.New("the database is unreachable")
	}
	s.acquired[partition]++
	return s.next, nil
}

// When the log does not hold the stored offset (retention, a recreated topic), reading continues
// at the first offset that it holds, and no record is read twice.
func TestReadingContinuesAtTheFirstOffset(t *testing.T) {
	t.Parallel()
	cl := open(t, testConfig(t))
	msgs := numbered(Events, 0, 400, 400)
	require.NoError(t, cl.Produce(until(t), msgs...))
	s := &store{next: 1 << 40, acquired: map[int]int{}}
	var mu sync.Mutex
	times := map[string]int{}
	all := make(chan struct{})
	r := consume(t, cl, ConsumerConfig{Group: "audit", Topic: Events, Offsets: s}, func(_ context.Context, recs []*Record) {
		mu.Lock()
		defer mu.Unlock()
		for _, rec := range recs {
			times[string(rec.Value)]++
			rec.Done()
		}
		if len(times) == len(msgs) {
			close(all)
		}
	})
	testenv.Receive(t, all, "every record")
	r.finish(t)
	for v, n := range times {
		require.Equal(t, 1, n, v)
	}
}

func TestOffsetStoreDecidesWhereReadingStarts(t *testing.T) {
	t.Parallel()
	cl := open(t, testConfig(t))
	require.NoError(t, cl.Produce(until(t), numbered(Events, 0, 400, 400)...))
	for _, next := range []int64{-1, 5} {
		s := &store{next: next, failures: 3, acquired: map[int]int{}}
		var below atomic.Int64
		done := make(chan struct{}, 4)
		r := consume(t, cl, ConsumerConfig{Group: "audit", Topic: Events, Offsets: s}, func(_ context.Context, recs []*Record) {
			if recs[0].Offset < 5 {
				below.Add(1)
			}
			for _, rec := range recs {
				rec.Done()
			}
			done <- struct{}{}
		})
		for range 4 {
			testenv.Receive(t, done, "records of each partition")
		}
		r.finish(t)
		require.Equal(t, next < 0, below.Load() > 0)
		require.Equal(t, map[int]int{0: 1, 1: 1, 2: 1, 3: 1}, s.acquired)
	}
}
