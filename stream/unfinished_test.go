package stream

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/test/testenv"
)

// What a consumer has not finished is known: since it was handed out, while the handler has it, and while it is at rest
// because what it became was refused.
func TestUnfinishedRecordsAreKnown(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Partitions, cfg.FetchWait = 1, 50*time.Millisecond
	cl := open(t, cfg)
	handed, gate := make(chan *Record, 10), make(chan struct{})
	c := consume(t, cl, ConsumerConfig{Group: "g", Topic: Batches}, func(_ context.Context, recs []*Record) {
		for _, r := range recs {
			handed <- r
		}
		<-gate
	})
	kinds := func() map[Progress]Unfinished {
		out := map[Progress]Unfinished{}
		for _, u := range cl.Unfinished("g", time.Now()) {
			out[u.Progress] = u
		}
		return out
	}
	require.Eventually(t, func() bool { return len(kinds()) == 0 }, testenv.Patience, tick, "nothing waits")
	require.NoError(t, cl.Produce(until(t), Message{Topic: Batches, Key: "k", Value: []byte("v")}))
	r := testenv.Receive(t, handed, "the record")
	got := kinds()
	require.Contains(t, got, InFlight)
	require.Equal(t, "batches/0@0", got[InHandler].Ownership.Position(got[InHandler].Offset))
	require.Empty(t, cl.Unfinished("another", time.Now()))
	since := got[InFlight].Since
	gate <- struct{}{}
	require.Eventually(t, func() bool { _, inside := kinds()[InHandler]; return !inside }, testenv.Patience, tick)
	require.Equal(t, since, kinds()[InFlight].Since, "it stands still")

	r.Again(errors.New("the broker says no"))
	require.Contains(t, kinds(), AtRest)
	require.Equal(t, since, kinds()[InFlight].Since)
	again := testenv.Receive(t, handed, "the record again")
	gate <- struct{}{}
	again.Done()
	require.Eventually(t, func() bool { return len(kinds()) == 0 }, testenv.Patience, tick)
	c.finish(t)
	require.NoError(t, cl.Produce(until(t), Message{Topic: Batches, Key: "k", Value: []byte("v")}))
	require.Empty(t, kinds(), "no consumer runs")
}

// A record that the topic holds and the consumer does not read is known, too; one of an open transaction may not be read
// yet. So is a partition whose offset is not known.
func TestRecordsThatAreNotReadAreKnown(t *testing.T) {
	t.Parallel()
	p := newPartition(t.Context(), &consumer{cfg: ConsumerConfig{Group: "g", Topic: Batches}}, 0)
	start := time.Now()
	kinds := func(at time.Time) (all []Progress) {
		for _, u := range p.unfinished(nil, at) {
			all = append(all, u.Progress)
		}
		return all
	}
	require.Equal(t, []Progress{NotBegun}, kinds(start))
	p.begin(0, nil, "")
	p.end.Store(5)
	require.Empty(t, kinds(start), "they are of an open transaction")
	p.readable.Store(5)
	require.Equal(t, []Progress{NotRead}, kinds(start.Add(time.Second)))
	require.Equal(t, start.Add(time.Second), p.unfinished(nil, start.Add(time.Minute))[0].Since)
	p.mu.Lock()
	p.tracker.Add(0)
	p.inFlight = 1
	p.mu.Unlock()
	require.Equal(t, []Progress{InFlight}, kinds(start), "it may have no room for more")
	p.cancel()
	require.Empty(t, kinds(start), "it has ended")
}
