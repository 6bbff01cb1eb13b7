package stream

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/test/testenv"
)

// finisher finishes records in random order, in its own goroutine.
type finisher struct {
	in chan *Record
	wg sync.WaitGroup
}

func newFinisher() *finisher {
	f := &finisher{in: make(chan *Record, 256)}
	f.wg.Go(func() {
		var held []*Record
		finish := func() {
			i := rand.IntN(len(held))
			held[i].Done()
			held[i] = held[len(held)-1]
			held = held[:len(held)-1]
		}
		for {
			if len(held) == 0 {
				r, ok := <-f.in
				if !ok {
					return
				}
				held = append(held, r)
				continue
			}
			select {
			case r, ok := <-f.in:
				if !ok {
					for len(held) > 0 {
						finish()
					}
					return
				}
				held = append(held, r)
				if len(held) > 200 {
					finish()
				}
			default:
				finish()
			}
		}
	})
	return f
}

func (f *finisher) close() {
	close(f.in)
	f.wg.Wait()
}

func committedOffsets(t testing.TB, cl *Client, group, topic string, n int) map[int]int64 {
	out := map[int]int64{}
	for id := range n {
		offset, _, err := cl.membership(group, topic).Committed(until(t), id)
		require.NoError(t, err)
		out[id] = offset
	}
	return out
}

// watchCommits polls the committed offsets until stop is called. stop fails the test when an
// offset went backwards.
func watchCommits(t testing.TB, cl *Client, group, topic string, n int) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		last := map[int]int64{}
		for ctx.Err() == nil {
			for id := range n {
				offset, _, err := cl.membership(group, topic).Committed(ctx, id)
				if err != nil || offset < 0 {
					continue
				}
				if offset < last[id] {
					done <- errors.New("partition " + strconv.Itoa(id) + ": committed " + strconv.FormatInt(offset, 10) + " after " + strconv.FormatInt(last[id], 10))
					return
				}
				last[id] = offset
			}
		}
		done <- nil
	}()
	return func() {
		cancel()
		require.NoError(t, <-done)
	}
}

func TestRestartSkipsFinishedRecords(t *testing.T) {
	t.Parallel()
	cl := open(t, testConfig(t))
	const n = 400
	require.NoError(t, cl.Produce(until(t), numbered(TasksNormal, 0, n, n)...))
	var mu sync.Mutex
	finished, unfinished := map[string]bool{}, map[string]bool{}
	got := newSeen(n)
	cfg := ConsumerConfig{Group: "g", Topic: TasksNormal, DrainTimeout: time.Millisecond}
	r := consume(t, cl, cfg, func(_ context.Context, recs []*Record) {
		mu.Lock()
		defer mu.Unlock()
		for _, rec := range recs {
			v := string(rec.Value)
			if rec.Offset%5 == 2 {
				unfinished[v] = true
			} else {
				finished[v] = true
				rec.Done()
			}
			got.add(v)
		}
	})
	testenv.Receive(t, got.all, "all records")
	r.finish(t)
	// Only the first two records of each partition are below the offset; the metadata lists the rest.
	for id, offset := range committedOffsets(t, cl, "g", TasksNormal, 4) {
		require.Equal(t, int64(2), offset, "partition %d", id)
	}
	for round := range 2 { // a second restart must keep the list, too
		again := newSeen(len(unfinished))
		r = consume(t, cl, cfg, func(_ context.Context, recs []*Record) {
			for _, rec := range recs {
				again.add(string(rec.Value))
				if round == 1 {
					rec.Done()
				}
			}
		})
		testenv.Receive(t, again.all, "the unfinished records")
		r.finish(t)
		for v := range again.count {
			require.True(t, unfinished[v], "%s was finished and was read again", v)
		}
	}
	lag, err := cl.Lag(until(t), "g", TasksNormal)
	require.NoError(t, err)
	require.Zero(t, lag)
}

func TestMembersComeAndGoUnderLoad(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Partitions = 6
	cfg.SessionTimeout = shortSession()
	cl := open(t, cfg)
	const n = 12000
	stopWatching := watchCommits(t, cl, "g", TasksNormal, 6)
	got := newSeen(n)
	marks := map[int]chan struct{}{}
	for i := 1; i < 6; i++ {
		marks[i*n/6] = make(chan struct{})
	}
	var seenMu sync.Mutex
	high := 0
	var repeated atomic.Int64
	type member struct {
		l *Client
		f *finisher
		r *running
	}
	start := func() *member {
		m := &member{l: open(t, cfg), f: newFinisher()}
		m.r = consume(t, m.l, ConsumerConfig{Group: "g", Topic: TasksNormal, MaxRecords: 600}, func(ctx context.Context, recs []*Record) {
			for _, rec := range recs {
				got.mu.Lock()
				if got.count[string(rec.Value)] > 0 {
					repeated.Add(1)
				}
				got.mu.Unlock()
				got.add(string(rec.Value))
				seenMu.Lock()
				if high++; marks[high] != nil {
					close(marks[high])
				}
				seenMu.Unlock()
				m.f.in <- rec
			}
		})
		return m
	}
	a := start()
	written := make(chan error, 1)
	go func() {
		for i := 0; i < n; i += 20 {
			if err := cl.Produce(context.Background(), numbered(TasksNormal, i, 20, 1000)...); err != nil {
				written <- err
				return
			}
		}
		written <- nil
	}()
	testenv.Receive(t, marks[n/6], "the first sixth")
	b := start()
	testenv.Receive(t, marks[2*n/6], "the second sixth")
	c := start()
	testenv.Receive(t, marks[3*n/6], "half")
	a.r.finish(t)
	testenv.Receive(t, marks[4*n/6], "two thirds")
	b.l.conns.CloseAll(ErrClosed) // killed: it sends nothing more
	testenv.Receive(t, marks[5*n/6], "five sixths")
	d := start()
	require.NoError(t, testenv.Receive(t, written, "the writer"))
	testenv.Receive(t, got.all, "all records")
	c.r.finish(t)
	d.r.finish(t)
	b.r.stop()
	testenv.Receive(t, b.r.done, "the end of the killed member")
	for _, m := range []*member{a, b, c, d} {
		m.f.close()
	}
	stopWatching()
	lag, err := cl.Lag(until(t), "g", TasksNormal)
	require.NoError(t, err)
	require.Zero(t, lag)
	t.Logf("%d of %d records were read again", repeated.Load(), n)
}

// A partition that keeps its owner is not interrupted: its records in flight are not lost and none
// is read again.
func TestANewMemberDisturbsOnlyWhatItTakes(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cl := open(t, cfg)
	require.NoError(t, cl.Produce(until(t), numbered(TasksNormal, 0, 200, 200)...))
	var mu sync.Mutex
	held := map[string]*Record{}
	first := newSeen(200)
	lost := make(chan int, 8)
	a := consume(t, cl, ConsumerConfig{Group: "g", Topic: TasksNormal, OnLost: func(p int) { lost <- p }}, func(_ context.Context, recs []*Record) {
		mu.Lock()
		defer mu.Unlock()
		for _, rec := range recs {
			held[string(rec.Value)] = rec
			first.add(string(rec.Value))
		}
	})
	testenv.Receive(t, first.all, "all records")
	second := newSeen(-1)
	l2 := open(t, cfg)
	b := consume(t, l2, ConsumerConfig{Group: "g", Topic: TasksNormal}, func(_ context.Context, recs []*Record) {
		for _, rec := range recs {
			second.add(string(rec.Value))
			rec.Done()
		}
	})
	moved := map[int]bool{testenv.Receive(t, lost, "a lost partition"): true, testenv.Receive(t, lost, "a lost partition"): true}
	require.Len(t, moved, 2)
	mu.Lock()
	for v, rec := range held {
		require.Equal(t, moved[rec.Partition], rec.Lost(), v)
		rec.Done()
	}
	require.Len(t, first.count, 200)
	for v, times := range first.count {
		require.Equal(t, 1, times, v)
	}
	mu.Unlock()
	// The new member gets all records of the partitions that moved, and no others.
	require.Eventually(t, func() bool {
		lag, err := cl.Lag(context.Background(), "g", TasksNormal)
		return err == nil && lag == 0
	}, testenv.Patience, 20*time.Millisecond)
	for v, rec := range held {
		second.mu.Lock()
		require.Equal(t, moved[rec.Partition], second.count[v] == 1, v)
		second.mu.Unlock()
	}
	a.finish(t)
	b.finish(t)
}

// shortSession is as short as the brokers under test allow.
func shortSession() time.Duration {
	if os.Getenv("BATCHYARD_TEST_SERVICES") == "real" {
		return 6 * time.Second
	}
	return 1500 * time.Millisecond
}

func TestBrokerRestartInTheMiddle(t *testing.T) {
	t.Parallel()
	broker := ownBroker(t)
	cl := open(t, Config{Brokers: []string{broker.Addr()}, Partitions: 4, HeartbeatInterval: 50 * time.Millisecond, SessionTimeout: time.Second, CommitInterval: 10 * time.Millisecond})
	const n = 6000
	acked := newSeen(n)
	half, most := make(chan struct{}), make(chan struct{})
	var count atomic.Int64
	got := newSeen(n)
	f := newFinisher()
	r := consume(t, cl, ConsumerConfig{Group: "g", Topic: TasksNormal, MaxRecords: 500}, func(_ context.Context, recs []*Record) {
		for _, rec := range recs {
			got.add(string(rec.Value))
			f.in <- rec
			switch count.Add(1) {
			case n / 3:
				close(half)
			case 2 * n / 3:
				close(most)
			}
		}
	})
	o := cl.NewOutbox("test", 500, 1<<20)
	written := make(chan error, 1)
	go func() {
		for _, m := range numbered(TasksNormal, 0, n, n) {
			v := string(m.Value)
			err := o.Put(context.Background(), Unit{Messages: []Message{m}, Acked: func(err error) {
				if err == nil {
					acked.add(v)
				}
			}})
			if err != nil {
				written <- err
				return
			}
		}
		written <- nil
	}()
	for _, when := range []chan struct{}{half, most} {
		testenv.Receive(t, when, "progress")
		require.NoError(t, broker.Stop())
		// The outbox fills up and Put blocks. Meanwhile a Produce fails when its context ends.
		short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		require.ErrorIs(t, cl.Produce(short, Message{Topic: Results, Value: []byte("x")}), context.DeadlineExceeded)
		cancel()
		require.NoError(t, broker.Restart(t.Context()))
	}
	require.NoError(t, testenv.Receive(t, written, "the writer"))
	testenv.Receive(t, acked.all, "all acks")
	testenv.Receive(t, got.all, "all records")
	require.NoError(t, o.Close(until(t)))
	r.finish(t)
	f.close()
	lag, err := cl.Lag(until(t), "g", TasksNormal)
	require.NoError(t, err)
	require.Zero(t, lag)
}

// A member that is cut off for longer than the session timeout loses its partitions to others. Its
// records are lost, and finishing them late changes nothing.
func TestAnEvictedMemberLosesAllPartitions(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.SessionTimeout = shortSession()
	away, other := open(t, cfg), open(t, cfg)
	const n = 400
	require.NoError(t, other.Produce(until(t), numbered(TasksNormal, 0, n, n)...))
	var mu sync.Mutex
	var held []*Record
	first := newSeen(n)
	lost := make(chan int, 16)
	a := consume(t, away, ConsumerConfig{Group: "g", Topic: TasksNormal, OnLost: func(p int) { lost <- p }}, func(_ context.Context, recs []*Record) {
		mu.Lock()
		held = append(held, recs...)
		mu.Unlock()
		for _, rec := range recs {
			first.add(string(rec.Value))
		}
	})
	testenv.Receive(t, first.all, "all records")
	away.conns.CloseAll(ErrClosed)
	second := newSeen(n)
	b := consume(t, other, ConsumerConfig{Group: "g", Topic: TasksNormal}, func(_ context.Context, recs []*Record) {
		for _, rec := range recs {
			second.add(string(rec.Value))
			rec.Done()
		}
	})
	testenv.Receive(t, second.all, "all records at the other member")
	require.Eventually(t, func() bool {
		lag, err := other.Lag(context.Background(), "g", TasksNormal)
		return err == nil && lag == 0
	}, testenv.Patience, tick)
	before := committedOffsets(t, other, "g", TasksNormal, 4)
	mu.Lock()
	for _, rec := range held[:10] {
		require.False(t, rec.Lost(), "it cannot know yet")
	}
	for _, rec := range held[len(held)/2:] {
		rec.Done() // late
	}
	mu.Unlock()
	away.conns.Reopen()
	for range 4 {
		testenv.Receive(t, lost, "a lost partition")
	}
	mu.Lock()
	for _, rec := range held {
		require.True(t, rec.Lost())
		rec.Done()
	}
	mu.Unlock()
	a.finish(t)
	require.Equal(t, before, committedOffsets(t, other, "g", TasksNormal, 4))
	b.finish(t)
	require.Equal(t, before, committedOffsets(t, other, "g", TasksNormal, 4))
}
