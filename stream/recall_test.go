package stream

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

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

// A record that is handed out again, because what it became was refused, may be set aside, and one that was
// recalled may be refused. It stays what it was: not done, and recalled with what the stage wants to know.
func TestARefusedRecordMayBeSetAside(t *testing.T) {
	t.Parallel()
	cl := open(t, testConfig(t))
	require.NoError(t, cl.Produce(until(t), Message{Topic: TasksNormal, Key: "k", Value: []byte("v")}))
	read := make(chan *Record, 10)
	consume(t, cl, ConsumerConfig{Group: "g", Topic: TasksNormal}, func(_ context.Context, recs []*Record) {
		for _, r := range recs {
			read <- r
		}
	})
	refused := errors.New("the broker says no")
	first := testenv.Receive(t, read, "the record")
	first.Again(refused)
	again := testenv.Receive(t, read, "the record again")
	require.NotSame(t, first, again)
	require.Nil(t, again.Recalled())
	require.Error(t, cl.Stuck())

	again.SetAside()
	again.Again(refused) // too late
	require.NoError(t, cl.Stuck(), "it stands still for want of room")
	again.Ownership().Recall([]Wanted{{Offset: again.Offset, Marked: true}})
	recalled := testenv.Receive(t, read, "the record that was recalled")
	require.Equal(t, "v", string(recalled.Value))
	recalled.Again(refused)
	require.Error(t, cl.Stuck())
	last := testenv.Receive(t, read, "the recalled record again")
	require.Equal(t, &Wanted{Offset: again.Offset, Marked: true}, last.Recalled())
	require.Same(t, again.Ownership(), last.Ownership())
	lag, err := cl.Lag(until(t), "g", TasksNormal)
	require.NoError(t, err)
	require.EqualValues(t, 1, lag)
	last.Done()
	require.NoError(t, cl.Stuck())
	require.Eventually(t, func() bool {
		lag, err := cl.Lag(context.Background(), "g", TasksNormal)
		return err == nil && lag == 0
	}, testenv.Patience, tick)
	require.Empty(t, read, "once each time")
}

// Records that were set aside are deleted before they are recalled: the stage gets a gap, and what there is.
// If the process ends before the gap is noted, the next one finds it.
func TestAGapAmongRecordsThatWereSetAside(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Partitions = 1
	cl := open(t, cfg)
	require.NoError(t, cl.Produce(until(t), numbered(TasksNormal, 0, 30, 10)...))
	var mu sync.Mutex
	var order []string // what the stage got
	gaps, read := make(chan *Record, 10), make(chan *Record, 100)
	start := func(note func(ctx context.Context)) *running {
		return consume(t, cl, ConsumerConfig{Group: "g", Topic: TasksNormal, OnGap: func(ctx context.Context, gap *Record) {
			mu.Lock()
			order = append(order, "gap")
			mu.Unlock()
			gaps <- gap
			note(ctx)
		}}, func(_ context.Context, recs []*Record) {
			for _, r := range recs {
				mu.Lock()
				order = append(order, r.Position())
				mu.Unlock()
				read <- r
			}
		})
	}
	receive := func(n int) (recs []*Record) {
		for range n {
			recs = append(recs, testenv.Receive(t, read, "a record"))
		}
		return recs
	}
	dies := func(ctx context.Context) { <-ctx.Done() }

	r := start(dies)
	recs := receive(30)
	wanted := make([]Wanted, 0, len(recs))
	for _, rec := range recs {
		if rec.Offset == 5 || rec.Offset == 25 {
			rec.Done() // not all of them
			continue
		}
		rec.SetAside()
		wanted = append(wanted, Wanted{Offset: rec.Offset})
	}
	deleteRecords(t, cl, 20)
	recs[0].Ownership().Recall(wanted)
	gap := testenv.Receive(t, gaps, "the gap")
	require.Equal(t, TasksNormal+"/0@0", gap.Position())
	require.EqualValues(t, 19, gap.Incomplete.Last)
	require.ErrorIs(t, gap.Incomplete.Err, ErrRemoved)
	r.finish(t)

	r = start(dies) // finds it when it begins to read, and dies, too
	require.Equal(t, gap.Position(), testenv.Receive(t, gaps, "the gap again").Position())
	r.finish(t)
	require.Empty(t, read, "nothing may be done before the gap is noted")

	r = start(func(context.Context) {})
	require.Equal(t, gap.Position(), testenv.Receive(t, gaps, "the gap once more").Position())
	recs = receive(9) // 25 is done
	wanted = wanted[:0]
	for _, rec := range recs {
		rec.SetAside()
		wanted = append(wanted, Wanted{Offset: rec.Offset})
	}
	deleteRecords(t, cl, 24)
	mu.Lock()
	order = nil
	mu.Unlock()
	recs[0].Ownership().Recall(wanted)
	gap = testenv.Receive(t, gaps, "the gap")
	require.EqualValues(t, 20, gap.Offset)
	require.EqualValues(t, 23, gap.Incomplete.Last)
	for _, rec := range receive(9) {
		require.Equal(t, rec.Offset < 24, rec.Incomplete != nil, rec.Position())
		if rec.Incomplete != nil {
			require.ErrorIs(t, rec.Incomplete.Err, ErrRemoved)
		}
		rec.Done()
	}
	r.finish(t)
	require.Equal(t, "gap", order[0])
	lag, err := cl.Lag(until(t), "g", TasksNormal)
	require.NoError(t, err)
	require.Zero(t, lag)

	r = start(func(context.Context) {})
	require.NoError(t, cl.Produce(until(t), numbered(TasksNormal, 30, 1, 10)...))
	recs = receive(1)
	require.EqualValues(t, 30, recs[0].Offset)
	recs[0].Done()
	r.finish(t)
	require.Empty(t, gaps, "the gap was noted")
}
