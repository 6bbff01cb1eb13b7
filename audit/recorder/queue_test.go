package recorder

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
)

// It does not matter how far one topic or partition is ahead of another, and each of two writers
// takes half of the partitions.
func TestAChunkTakesEventsWithTheirResults(t *testing.T) {
	t.Parallel()
	const parts, seconds = 4, 20
	q := newQueue(2, 100, 1000)
	begin := time.Now()
	put := func(topic string, partition, second int) {
		q.put(t.Context(), &entry{part: &ownership{TopicPartition: audit.PartitionOf(topic, partition)}, offset: int64(second), bytes: 1, at: begin.Add(time.Duration(second) * time.Second)})
	}
	for partition := range parts {
		for second := range seconds {
			put("results", partition, second)
		}
	}
	for second := range seconds {
		for partition := range parts {
			put("events", partition, second)
		}
	}
	next := map[ownership]int64{}
	for turn := range seconds / 2 { // by two writers that begin and end together
		halves := [2]map[int32]int{{}, {}}
		var releases []func()
		for _, half := range halves {
			c, release := q.take(t.Context(), 8, 1000)
			releases = append(releases, release)
			require.Len(t, c, 8)
			for _, e := range c {
				require.Equal(t, turn, int(e.offset)/2, "by time")
				require.Equal(t, next[*e.part], e.offset)
				next[*e.part]++
				half[e.part.Partition]++
			}
		}
		for _, release := range releases {
			release()
		}
		require.Len(t, halves[0], 2)
		require.Len(t, halves[1], 2)
		for _, half := range halves {
			for p, n := range half {
				require.Equal(t, 4, n, "two events and two results of partition %d", p)
			}
		}
	}
	require.Empty(t, q.waiting)
	require.Equal(t, [2]holding{}, q.held)

	// A single writer takes whatever there is.
	for partition := range parts {
		put("events", partition, seconds)
	}
	c, release := q.take(t.Context(), 8, 1000)
	require.Len(t, c, parts)
	release()
	require.Zero(t, q.busy)
}

// A record that never fits behind others begins a chunk.
func TestALargeRecordGetsItsTurn(t *testing.T) {
	t.Parallel()
	q := newQueue(1, 50, 500)
	put := func(partition int, bytes int64) {
		q.put(t.Context(), &entry{part: &ownership{TopicPartition: audit.PartitionOf("results", partition)}, bytes: bytes})
	}
	put(0, 10)
	put(1, 95)
	put(2, 10)
	turns := 0
	for large := false; !large; turns++ {
		require.Less(t, turns, 3)
		c, of := q.poll(10, 100)
		for _, e := range c {
			large = large || e.part.Partition == 1
			put(int(e.part.Partition), 10) // the other partitions always have more
		}
		q.release(of)
	}
}

// Whichever writer is free takes what waits, a partition is with one of them at a time, and its
// records come in order.
func TestWritersShareTheQueue(t *testing.T) {
	t.Parallel()
	const parts, records, takers = 6, 400, 3
	q := newQueue(takers, 8, 1000)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var left atomic.Int64
	left.Store(2 * parts * records)
	var at [parts]atomic.Int32
	var next [2][parts]int64
	var all sync.WaitGroup
	for p := range parts {
		for _, topic := range []string{"events", "results"} {
			all.Go(func() {
				for i := range records {
					q.put(ctx, &entry{part: &ownership{TopicPartition: audit.PartitionOf(topic, p)}, offset: int64(i), bytes: 1})
				}
			})
		}
	}
	for range takers {
		all.Go(func() {
			for {
				c, release := q.take(ctx, 7, 1000)
				if c == nil {
					return
				}
				mine := map[int32]bool{}
				for _, e := range c {
					p := e.part.Partition
					if !mine[p] {
						mine[p] = true
						assert.Equal(t, int32(1), at[p].Add(1), "partition %d is with two writers", p)
					}
					assert.Equal(t, next[laneOf(e)][p], e.offset)
					next[laneOf(e)][p]++ // the race detector checks that the next writer sees it
				}
				for p := range mine {
					at[p].Add(-1)
				}
				release()
				if left.Add(-int64(len(c))) == 0 {
					stop()
				}
			}
		})
	}
	all.Wait()
	require.Zero(t, left.Load())
	require.Empty(t, q.waiting)
	require.Equal(t, [2]holding{}, q.held)
}

func TestQueueIsBoundedAndKeepsOrder(t *testing.T) {
	t.Parallel()
	q := newQueue(1, 5, 500)
	part := &ownership{TopicPartition: audit.PartitionOf("events", 0)}
	put := make(chan int, 100)
	go func() {
		for i := range 50 {
			q.put(context.Background(), &entry{part: part, offset: int64(i), bytes: 1})
			put <- i
		}
		close(put)
	}()
	for range 10 {
		<-put
	}
	var got []int64
	for len(got) < 50 {
		q.mu.Lock()
		require.LessOrEqual(t, q.held[0].rows, 10)
		q.mu.Unlock()
		c, release := q.take(t.Context(), 3, 1000)
		for _, e := range c {
			got = append(got, e.offset)
		}
		release()
	}
	for i, o := range got {
		require.Equal(t, int64(i), o)
	}
	// A single record larger than everything passes; a full queue accepts a record when its context
	// ends.
	q.put(t.Context(), &entry{part: part, bytes: 5000})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	q.put(ended, &entry{part: part, bytes: 1})
	for range 2 {
		c, release := q.take(t.Context(), 1, 1)
		require.Len(t, c, 1)
		release()
	}
	c, _ := q.take(ended, 1, 1)
	require.Nil(t, c)
}
