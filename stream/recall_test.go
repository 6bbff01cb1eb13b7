package stream

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/test/testenv"
)

// shelf sets every record aside that it reads for the first time, and finishes what it recalls.
type shelf struct {
	mu      sync.Mutex
	aside   map[*Ownership][]int64
	times   map[string]int // that a record was recalled, by value
	n       int            // records set aside
	changed chan struct{}
}

func newShelf() *shelf {
	return &shelf{aside: map[*Ownership][]int64{}, times: map[string]int{}, changed: make(chan struct{}, 1)}
}

func (s *shelf) take(_ context.Context, recs []*Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range recs {
		if w := r.Recalled(); w != nil {
			if !w.Marked || w.Offset != r.Offset {
				panic("it is not what was asked for")
			}
			s.times[string(r.Value)]++
			r.Done()
			continue
		}
		s.aside[r.Ownership()] = append(s.aside[r.Ownership()], r.Offset)
		s.n++
		r.SetAside()
		r.Done() // too late
	}
	signal(s.changed)
}

// until waits until a condition holds.
func (s *shelf) until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	timeout := time.After(testenv.Patience)
	for {
		s.mu.Lock()
		ok := cond()
		s.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-s.changed:
		case <-timeout:
			require.FailNow(t, "timed out waiting for "+what)
		}
	}
}

// recall asks for some of what was set aside, in any order: all if share is 1.
func (s *shelf) recall(rng *rand.Rand, share float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for o, offsets := range s.aside {
		var wanted []Wanted
		var rest []int64
		for _, i := range rng.Perm(len(offsets)) {
			if rng.Float64() < share {
				wanted = append(wanted, Wanted{Offset: offsets[i], Marked: true})
			} else {
				rest = append(rest, offsets[i])
			}
		}
		s.aside[o] = rest
		o.Recall(wanted)
	}
}

// Many more records than fit into memory are read and set aside; each can be read again, by this process
// or the next one, and none is committed before it is done.
func TestRecordsThatWereSetAsideAreReadAgain(t *testing.T) {
	t.Parallel()
	cl := open(t, testConfig(t))
	const n = 3000
	require.NoError(t, cl.Produce(until(t), numbered(TasksNormal, 0, n, n)...))
	cfg := ConsumerConfig{Group: "g", Topic: TasksNormal, MaxRecords: 100, MaxBytes: 64 << 10}
	rng := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // choices, not secrets
	first := newShelf()
	r := consume(t, cl, cfg, first.take)
	first.until(t, "all to be read", func() bool { return first.n == n })
	lag, err := cl.Lag(until(t), "g", TasksNormal)
	require.NoError(t, err)
	require.EqualValues(t, n, lag, "what was set aside is not done")
	for range 3 {
		first.recall(rng, 0.2)
	}
	wanted := func() int {
		left := 0
		for _, offsets := range first.aside {
			left += len(offsets)
		}
		return n - left
	}
	first.until(t, "what was recalled", func() bool { return len(first.times) == wanted() })
	r.finish(t)

	second := newShelf()
	r = consume(t, cl, cfg, second.take)
	second.until(t, "the rest", func() bool { return second.n == n-len(first.times) })
	second.recall(rng, 1)
	second.until(t, "all of the rest", func() bool { return len(second.times) == second.n })
	r.finish(t)
	for v, times := range first.times {
		require.Equal(t, 1, times)
		require.Zero(t, second.times[v], "it was done")
	}
	lag, err = cl.Lag(until(t), "g", TasksNormal)
	require.NoError(t, err)
	require.Zero(t, lag)
}

// A record that the log does not hold any more is handed out as such, so that the stage notices.
func TestRemovedRecordsAreHandedOut(t *testing.T) {
	p := testPartition()
	defer p.cancel()
	var got []*Record
	p.c.handle = func(_ context.Context, recs []*Record) { got = append(got, recs...) }
	p.c.cl = &Client{}
	p.begin(0, nil, "")
	recs := []*Record{{Offset: 0, owner: p}, {Offset: 1, owner: p}, {Offset: 5, owner: p}}
	p.add(delivery{recs: recs, next: 6, owned: p.owned})
	for _, rec := range recs {
		rec.SetAside()
	}
	require.Zero(t, p.inFlight)
	r := recaller{p: p, owned: p.owned}
	left := r.match([]Wanted{{Offset: 0}, {Offset: 1}, {Offset: 5}, {Offset: 9}}, fetched{recs: []*Record{{Offset: 1}, {Offset: 2}, {Offset: 6}}, next: 7})
	require.Equal(t, []Wanted{{Offset: 9}}, left)
	require.Len(t, got, 3)
	for i, removed := range []bool{true, false, true} {
		require.Equal(t, recs[i].Offset, got[i].Offset)
		require.Equal(t, removed, got[i].Incomplete != nil)
		got[i].Done()
	}
	require.Equal(t, int64(6), p.tracker.Lowest())
	require.ErrorIs(t, got[0].Incomplete.Err, ErrRemoved)
}

// The retention is that of the topic, not the configured one.
func TestRetentionIsWhatKafkaHas(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Retention, cfg.ParkedRetention = 5*time.Hour, 7*time.Hour
	cl := open(t, cfg)
	retention := func(topic string) time.Duration {
		got, err := cl.Retention(until(t), topic)
		require.NoError(t, err)
		return got
	}
	require.Equal(t, 5*time.Hour, retention(TasksHigh))
	require.Equal(t, 7*time.Hour, retention(TasksParked))
	require.Zero(t, retention(Checkpoints), "forever")
	set := func(value string) {
		res, err := cl.kafka.IncrementalAlterConfigs(until(t), &kafka.IncrementalAlterConfigsRequest{Resources: []kafka.IncrementalAlterConfigsRequestResource{{
			ResourceType: kafka.ResourceTypeTopic, ResourceName: cl.full(TasksHigh),
			Configs: []kafka.IncrementalAlterConfigsRequestConfig{{Name: "retention.ms", Value: value, ConfigOperation: kafka.ConfigOperationSet}},
		}}})
		require.NoError(t, err)
		require.NoError(t, res.Resources[0].Error)
	}
	for value, want := range map[string]time.Duration{"90000": 90 * time.Second, "-1": 0, "9223372036854775807": maxRetention} {
		set(value) // brokers learn of it a moment later
		require.Eventually(t, func() bool { return retention(TasksHigh) == want }, testenv.Patience, tick, value)
	}
}
