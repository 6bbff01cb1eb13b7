package stream

import (
	"context"
	"log/slog"
	"slices"
	"testing"

	"github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/stream/internal/budget"
	"github.com/batchyard/batchyard/stream/internal/offsets"
	"github.com/batchyard/batchyard/stream/internal/refusals"
)

// newPartition is a partition without a broker.
func newPartition(t require.TestingT) *partition {
	c := &consumer{
		budget: budget.New(1<<30, 1<<50), idle: make(chan struct{}, 1), parts: map[int]*partition{}, metrics: &metrics.New(nil).Stream,
		logger: slog.New(slog.DiscardHandler), refusals: refusals.New(func(string, int) {}),
	}
	p := &partition{c: c, committed: -1}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	c.budget.Join(&p.budget)
	c.parts[0] = p
	return p
}

// The tracker is compared to a model, a set of offsets: exactly the finished offsets are committed,
// or skipped by the next owner.
func TestTrackerAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := newPartition(t)
		defer p.cancel()
		start := rapid.Int64Range(0, 1000).Draw(t, "start")
		finished := map[int64]bool{} // or nonexistent
		inherited := rapid.SliceOfDistinct(rapid.Int64Range(start+1, start+60), func(o int64) int64 { return o }).Draw(t, "finished before")
		slices.Sort(inherited)
		var skip []offsets.Span
		for _, o := range inherited {
			finished[o] = true
			if n := len(skip); n > 0 && skip[n-1].End == o {
				skip[n-1].End++
			} else {
				skip = append(skip, offsets.Span{First: o, End: o + 1})
			}
		}
		p.begin(start, skip, "")
		next := start // the next offset to be fetched
		var open []*Record
		committed := start
		check := func() {
			low := start
			for finished[low] {
				low++
			}
			p.mu.Lock()
			require.Equal(t, low, p.lowestUnfinished())
			spans := p.finishedSpans()
			require.Equal(t, len(open), p.inFlight)
			p.mu.Unlock()
			for o := low; o < next+70; o++ {
				require.Equal(t, finished[o], offsets.Contains(spans, o), "offset %d of %v", o, spans)
			}
			require.GreaterOrEqual(t, low, committed)
			committed = low
		}
		t.Repeat(map[string]func(*rapid.T){
			"fetch": func(t *rapid.T) {
				var recs []*Record
				for range rapid.IntRange(1, 8).Draw(t, "records") {
					if rapid.IntRange(0, 4).Draw(t, "gap") == 0 {
						finished[next] = true // compacted, or a control record
						next++
						continue
					}
					if !finished[next] {
						recs = append(recs, &Record{Offset: next, owner: p})
					}
					next++
				}
				p.add(delivery{recs: recs, next: next})
				open = append(open, recs...)
			},
			"done": func(t *rapid.T) {
				if len(open) == 0 {
					t.Skip()
				}
				i := rapid.IntRange(0, len(open)-1).Draw(t, "which")
				r := open[i]
				open = slices.Delete(open, i, i+1)
				r.Done()
				r.Done()
				finished[r.Offset] = true
			},
			"again": func(t *rapid.T) {
				if len(open) == 0 {
					t.Skip()
				}
				i := rapid.IntRange(0, len(open)-1).Draw(t, "which")
				r := open[i]
				r.Again(context.Canceled)
				require.True(t, r.Lost())
				for open[i] = p.head; open[i].Offset != r.Offset; {
					open[i] = open[i].next
				}
				require.NotSame(t, r, open[i])
				r.Done() // does nothing any more
			},
			"": func(*rapid.T) {
				check()
				refused := 0
				for _, r := range open {
					if r.tries > 0 {
						refused++
					}
				}
				require.Equal(t, refused, p.c.refusals.Records(""))
			},
		})
	})
}

func TestLostRecordsAreNotCommitted(t *testing.T) {
	p := newPartition(t)
	p.begin(0, nil, "")
	recs := []*Record{{Offset: 0, owner: p}, {Offset: 1, owner: p}}
	p.add(delivery{recs: recs, next: 2})
	recs[0].Done()
	p.lose()
	require.True(t, recs[1].Lost())
	recs[1].Done()
	_, ok := p.nextCommit()
	require.False(t, ok)
	records, bytes := p.c.budget.Held()
	require.Zero(t, records)
	require.Zero(t, bytes)
}

// Once a topic was recreated, records of the old one are neither waited for nor committed, whether they
// were handed out before or after that was noticed.
func TestRecordsOfARecreatedTopicAreNotCommitted(t *testing.T) {
	p := newPartition(t)
	defer p.cancel()
	p.begin(50, nil, "old")
	before, after := &Record{Offset: 50, owner: p}, &Record{Offset: 51, owner: p}
	p.add(delivery{recs: []*Record{before}, next: 51})
	p.startOver(0, "new")
	p.add(delivery{recs: []*Record{after}, next: 52})
	before.Done()
	after.Done()
	require.False(t, before.Lost(), "the stage finishes what it has")
	fresh := &Record{Offset: 0, owner: p}
	p.add(delivery{recs: []*Record{fresh}, next: 1, life: 1})
	o, ok := p.nextCommit()
	require.True(t, ok)
	require.Zero(t, o.offset)
	require.Equal(t, "topic=new;", o.metadata)
	fresh.Done()
	o, _ = p.nextCommit()
	require.Equal(t, int64(1), o.offset)
	require.Zero(t, p.inFlight)
}

// Partitions survive a rebalance, but not a generation that we missed: another member may have
// owned them in it.
func TestAMissedGenerationLosesAllPartitions(t *testing.T) {
	draining, cancel := context.WithCancel(t.Context())
	cancel() // so that nothing new is started
	for missed, next := range []int{2, 3} {
		p := newPartition(t)
		p.c.logger = slog.New(slog.DiscardHandler)
		p.begin(0, nil, "")
		p.c.takeOver(draining, &session{member: "m", generation: 1}, &session{member: "m", generation: next, assigned: []int{0}})
		require.Equal(t, missed > 0, p.lost.Load())
		p.cancel()
	}
}

func TestStragglerIsReportedOnce(t *testing.T) {
	p := newPartition(t)
	defer p.cancel()
	p.begin(0, nil, "")
	var recs []*Record
	for i := range int64(100) {
		recs = append(recs, &Record{Offset: i, owner: p})
	}
	p.add(delivery{recs: recs, next: 100})
	for _, r := range recs[2:52] {
		r.Done()
	}
	r, _ := p.straggler(52)
	require.Nil(t, r)
	r, spread := p.straggler(51)
	require.Same(t, recs[0], r)
	require.Equal(t, int64(52), spread)
	r, _ = p.straggler(50)
	require.Nil(t, r, "already reported")
	recs[0].Done()
	r, _ = p.straggler(50)
	require.Same(t, recs[1], r, "the next one")
}

func TestPartitioningMatchesOtherClients(t *testing.T) {
	b := kafka.Murmur2Balancer{}
	parts := make([]int, 12)
	for i := range parts {
		parts[i] = i
	}
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.StringN(1, 40, 200).Draw(t, "key")
		require.Equal(t, b.Balance(kafka.Message{Key: []byte(key)}, parts...), int(partitionOf(key, 12)))
	})
}
