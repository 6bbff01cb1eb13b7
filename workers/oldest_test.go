package workers

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/waiting"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
)

// What waits at a device says why, and is a stall only if nothing begins or ends there.
func TestWhyWorkWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := bare(t, "d")
		newCall := func(id string) *call {
			w := newWork(s.life, task.Assignment{Task: task.Task{ID: id}}, "b", records.NewAck(&standIn{}, 1))
			w.read = time.Now()
			return &call{works: []*work{w}}
		}
		look := func() map[waiting.Reason]waiting.Oldest {
			v := view{now: time.Now(), limit: time.Hour}
			r.waiting(&v)
			s.backoffs.waiting(&v)
			out := map[waiting.Reason]waiting.Oldest{}
			for _, o := range v.List {
				out[o.Reason] = o
			}
			return out
		}
		require.Empty(t, look())

		r.queue = append(r.queue, newCall("a"))
		<-time.After(time.Minute)
		got := look()
		require.Equal(t, time.Minute, time.Since(got[waiting.Stuck].Still), "there is a free slot")

		for range r.concurrency.Slots() {
			c := newCall("runs")
			c.began = time.Now()
			r.running[c] = struct{}{}
		}
		r.moved = time.Now()
		<-time.After(time.Minute)
		got = look()
		require.NotContains(t, got, waiting.Stuck)
		require.Equal(t, 2*time.Minute, time.Since(got[waiting.Busy].Since))
		require.Equal(t, time.Minute, time.Since(got[waiting.Busy].Still), "when a call began or ended last")
		require.Equal(t, time.Minute, time.Since(got[waiting.Running].Still))
		require.Equal(t, time.Hour, got[waiting.Running].Allow, "as long as a request may take")

		r.slowUntil = time.Now().Add(time.Minute)
		require.True(t, look()[waiting.Throttled].Still.IsZero(), "it asked for a pause")
		<-time.After(2 * time.Minute)
		require.NotContains(t, look(), waiting.Throttled)

		require.True(t, s.backoffs.add(time.Hour, r, newCall("again").works[0]))
		<-time.After(time.Minute)
		require.True(t, look()[waiting.Later].Still.IsZero())
		s.backoffs.close()
		require.NotContains(t, look(), waiting.Later)
	})
}

// standIn stands in for a record.
type standIn struct{}

func (*standIn) Done()       {}
func (*standIn) Lost() bool  { return false }
func (*standIn) Again(error) {}
