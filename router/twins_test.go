package router

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// twin is another record of the task "t", written again so many times.
func twin(requeues int) *item {
	tk := chat("t", "m")
	if requeues > 0 {
		tk.Progress = &task.Progress{Requeues: requeues}
	}
	return newItem(tk, stream.TasksNormal)
}

// stays counts what has to be released before the record is done.
func stays(it *item) int { return int(it.ticket.open.Load()) }

// TestOfTwoRecordsTheOneThatWasGivenBackMoreOftenGoesOn has two records of a task
// meet. A task was lost when the newer one was dropped: what the older one was
// given back as was then taken for a duplicate of it.
func TestOfTwoRecordsTheOneThatWasGivenBackMoreOftenGoesOn(t *testing.T) {
	for name, order := range map[string][]int{"the older is here": {0, 1}, "the newer is here": {1, 0}, "three of them": {1, 0, 2}, "the newest first": {2, 1, 0, 1}} {
		t.Run(name, func(t *testing.T) {
			d, _ := newTestDecider(t, testConfig())
			now := time.Now()
			var all []*item
			best := 0
			for i, n := range order {
				it := twin(n)
				all = append(all, it)
				rider := d.meet(it, now)
				require.Equal(t, i > 0, rider != nil)
				best = max(best, n)
				have := d.window.byKey[it.task.Key()]
				require.Equal(t, best, have.task.Requeues())
				require.NotSame(t, have, rider)
				require.Len(t, have.riders, i, "what rode with it rides on")
			}
			require.Equal(t, 1, d.window.len())
			winner := d.window.byKey[all[0].task.Key()]
			for _, it := range all {
				require.Equal(t, 1, stays(it), "done before the one that goes on has arrived")
				require.True(t, winner.of(it.rec), "a record that holds up its partition is found")
			}
			winner.ticket.release()
			for _, it := range all {
				require.Zero(t, stays(it))
			}
		})
	}
}

// TestOfTwinsTheFirstStays has two records of equal age meet: the second rides
// along, and its record is not done before the first has gone on.
func TestOfTwinsTheFirstStays(t *testing.T) {
	d, _ := newTestDecider(t, testConfig())
	a, b := twin(0), twin(0)
	require.Nil(t, d.meet(a, time.Now()))
	require.Same(t, b, d.meet(b, time.Now()))
	require.Same(t, a, d.window.byKey[a.task.Key()])
	require.Equal(t, 1, stays(b))
}

// TestWhatRodeAlongComesBack has the partition of the one that went on belong to
// another router: its twin is still ours to do.
func TestWhatRodeAlongComesBack(t *testing.T) {
	d, _ := newTestDecider(t, testConfig())
	now := time.Now()
	old, lower, newer := twin(0), twin(1), twin(2)
	for _, it := range []*item{old, lower, newer} {
		d.meet(it, now)
	}
	d.forget(newer, now)
	require.Equal(t, 1, d.window.len())
	require.Same(t, lower, d.window.byKey[old.task.Key()])
	require.Equal(t, []*item{old}, lower.riders)
	require.False(t, lower.gone)
	require.Equal(t, 1, lower.class.tasks)
	lower.ticket.release()
	require.Zero(t, stays(old))
}
