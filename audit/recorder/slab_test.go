package recorder

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
	"github.com/batchyard/batchyard/test/audittest"
)

// Records wait undecoded. What cannot be decoded becomes a dead letter, what is beside it in its
// record does not, and the memory of a chunk is reused for the next without a trace of the last
// one.
func TestAWriterDecodesWhatItTakes(t *testing.T) {
	t.Parallel()
	r := newRig(t, audittest.NewPool(t))
	r.w.cfg.ChunkRows = 16 // many chunks, and some records are larger
	events, results := r.own("events", 0), r.own("results", 0)
	var all []*entry
	rows, tasks := 0, 0
	say := func(n int, mend func([]task.Event)) {
		var es []task.Event
		for range n {
			s := audittest.NewStory(fmt.Sprint("t", tasks))
			tasks++
			es = append(es, s.Accepted())
			b, err := wire.EncodeResult(s.Result(task.Success, "d1"), wire.ContentMsgpack)
			require.NoError(t, err)
			e := &entry{rec: &fakeRecord{}, part: results, offset: results.take(), bytes: 1}
			e.holdResult(b, wire.ContentMsgpack)
			all = append(all, e)
		}
		mend(es)
		b, err := wire.EncodeFrame(wire.FrameEvents, es)
		require.NoError(t, err)
		e := &entry{rec: &fakeRecord{}, part: events, offset: events.take(), bytes: 1}
		e.holdEvents(b)
		all = append(all, e)
	}
	for n := range 24 {
		say(n, func([]task.Event) {})
		rows += n
	}
	say(5, func(es []task.Event) { es[1].Action, es[4].Action = "task.invented", "task.invented" })
	rows += 3
	for _, b := range [][]byte{nil, {}, []byte("garbage"), {0xdd, 0xff, 0xff, 0xff, 0xff}} {
		for _, part := range []*ownership{events, results} {
			e := &entry{rec: &fakeRecord{}, part: part, offset: part.take(), bytes: 1}
			if laneOf(e) == eventsLane {
				e.holdEvents(b)
			} else {
				e.holdResult(b, "")
			}
			all = append(all, e)
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- r.w.run(ctx) }()
	for _, e := range all {
		r.w.queue.put(ctx, e)
	}
	require.Eventually(t, func() bool {
		for _, e := range all {
			if !e.rec.(*fakeRecord).isDone() {
				return false
			}
		}
		return true
	}, audittest.Patience, 5*time.Millisecond)
	cancel()
	require.NoError(t, <-done)

	require.Equal(t, rows, audittest.One[int](t, r.pool, "SELECT count(*) FROM audit_log"))
	require.Equal(t, tasks, audittest.One[int](t, r.pool, "SELECT count(*) FROM results"))
	require.Equal(t, tasks, audittest.One[int](t, r.pool, "SELECT count(*) FROM tasks"))
	audittest.RequireChains(t, r.pool, map[string]int64{"events/0": int64(rows)})
	reasons := map[string]int{}
	for _, l := range r.sent {
		reasons[l.reason]++
	}
	require.Equal(t, map[string]int{"unreadable": 8, "invalid": 2}, reasons)
	require.GreaterOrEqual(t, cap(r.w.slab.events), 23)
	for _, it := range r.w.slab.events[:cap(r.w.slab.events)] {
		require.Zero(t, it, "what a chunk had is cleared")
	}
}

// One chunk of many events does not keep their memory.
func TestALargeSlabIsFreed(t *testing.T) {
	t.Parallel()
	s := &slab{}
	part := &ownership{TopicPartition: audit.PartitionOf(stream.Events, 0)}
	es := make([]task.Event, wire.MaxFrameEvents)
	for i := range es {
		es[i] = audittest.NewStory("t").Event(task.TaskQueued, 0, "")
	}
	frame, err := wire.EncodeFrame(wire.FrameEvents, es)
	require.NoError(t, err)
	for _, c := range []struct {
		records int
		kept    bool
	}{{maxSlabEvents / len(es), true}, {maxSlabEvents/len(es) + 1, false}, {1, true}} {
		var of chunk
		for range c.records {
			e := &entry{part: part}
			e.holdEvents(frame)
			require.Equal(t, len(es), e.rows())
			of = append(of, e)
		}
		s.decode(of)
		for _, e := range of {
			require.Len(t, e.events, len(es))
			require.Empty(t, e.dead)
		}
		s.reset()
		require.Equal(t, c.kept, cap(s.events) > 0)
	}
}
