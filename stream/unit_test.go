package stream

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/stream/internal/budget"
	"github.com/batchyard/batchyard/stream/internal/membership"
	"github.com/batchyard/batchyard/stream/internal/offsets"
	"github.com/batchyard/batchyard/stream/internal/refusals"
	"github.com/batchyard/batchyard/stream/internal/tracker"
)

// testPartition is a partition without a broker.
func testPartition() *partition {
	c := &consumer{
		budget: budget.New(1<<30, 1<<50, 0.5), idle: make(chan struct{}, 1), parts: map[int]*partition{}, metrics: &metrics.New(nil).Stream,
		logger: slog.New(slog.DiscardHandler), refusals: refusals.New(func(string, int) {}),
	}
	p := newPartition(context.Background(), c, 0)
	c.budget.Join(&p.budget)
	c.parts[0] = p
	return p
}

// The tracker is compared to a model, a set of offsets: exactly the finished offsets are committed,
// or skipped by the next owner.
func TestTrackerAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := testPartition()
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
		var aside []int64
		committed := start
		check := func() {
			low := start
			for finished[low] {
				low++
			}
			p.mu.Lock()
			require.Equal(t, low, p.tracker.Lowest())
			spans := p.tracker.Finished()
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
				p.add(delivery{recs: recs, next: next, owned: p.owned})
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
				open[i] = p.supersede(r)
				require.True(t, r.Lost())
				require.False(t, open[i].Lost())
				require.Nil(t, p.supersede(r), "once is enough")
				r.Done() // does nothing any more
				r.SetAside()
			},
			"set aside": func(t *rapid.T) {
				if len(open) == 0 {
					t.Skip()
				}
				i := rapid.IntRange(0, len(open)-1).Draw(t, "which")
				r := open[i]
				open = slices.Delete(open, i, i+1)
				aside = append(aside, r.Offset)
				r.SetAside()
				r.Done() // too late: it has to be read again first
				require.Nil(t, p.supersede(r), "too late, too")
			},
			"recall": func(t *rapid.T) {
				if len(aside) == 0 {
					t.Skip()
				}
				i := rapid.IntRange(0, len(aside)-1).Draw(t, "which")
				open = append(open, &Record{Offset: aside[i], owner: p, owned: p.owned, recalled: &Wanted{Offset: aside[i]}})
				aside = slices.Delete(aside, i, i+1)
				p.inFlight++
				p.c.budget.Add(&p.budget, 1, open[len(open)-1].size())
			},
			"": func(t *rapid.T) {
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
	p := testPartition()
	p.begin(0, nil, "")
	recs := []*Record{{Offset: 0, owner: p}, {Offset: 1, owner: p}}
	p.add(delivery{recs: recs, next: 2, owned: p.owned})
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
	p := testPartition()
	defer p.cancel()
	p.begin(50, nil, "old")
	before, after := &Record{Offset: 50, owner: p}, &Record{Offset: 51, owner: p}
	old := p.owned
	p.add(delivery{recs: []*Record{before}, next: 51, owned: old})
	p.startOver(0, "new")
	require.True(t, old.Lost(), "what was set aside is lost")
	p.add(delivery{recs: []*Record{after}, next: 52, owned: old})
	before.Done()
	after.Done()
	require.False(t, before.Lost(), "the stage finishes what it has")
	fresh := &Record{Offset: 0, owner: p}
	p.add(delivery{recs: []*Record{fresh}, next: 1, owned: p.owned})
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
		p := testPartition()
		p.begin(0, nil, "")
		p.c.takeOver(draining, &membership.Session{Member: "m", Generation: 1}, &membership.Session{Member: "m", Generation: next, Assigned: []int{0}})
		require.Equal(t, missed > 0, p.lost.Load())
		p.cancel()
	}
}

// A record holds up the commit if what is finished beyond it does not fit into the metadata.
func TestStragglersAreWhatNoCommitCanName(t *testing.T) {
	p := testPartition()
	defer p.cancel()
	p.begin(0, nil, "")
	var recs []*Record
	for i := range int64(10_000) {
		recs = append(recs, &Record{Offset: i, owner: p})
	}
	p.add(delivery{recs: recs, next: 10_000, owned: p.owned})
	for _, r := range recs[1:] {
		r.Done()
	}
	now := time.Now()
	report := func(maxSpread int64) bool {
		_, ok := p.nextCommit()
		require.True(t, ok)
		p.track((*tracker.Tracker).Failed)
		offset, spread, report := p.tracker.Straggler(maxSpread, now)
		require.Zero(t, offset)
		require.Equal(t, p.tracker.Lowest(), offset)
		require.Positive(t, spread)
		return report
	}
	require.False(t, report(10), "one span names them all")

	p = testPartition()
	defer p.cancel()
	p.begin(0, nil, "")
	for _, r := range recs {
		r.owner, r.released = p, false
	}
	p.add(delivery{recs: recs, next: 10_000, owned: p.owned})
	for i := 1; i < len(recs); i += 2 {
		recs[i].Done()
	}
	require.True(t, report(5000), "5,000 spans take 10,000 bytes")
	require.False(t, report(5000), "already reported")
	now = now.Add(2 * time.Second)
	require.True(t, report(5000), "it is still there")
	require.False(t, report(9000))
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
