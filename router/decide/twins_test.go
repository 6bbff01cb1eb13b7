package decide

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
)

// twin is one more record of the task "t", requeued so many times.
func twin(requeues int) *Item {
	tk := &task.Task{ID: "t", Model: "m"}
	if requeues > 0 {
		tk.Progress = &task.Progress{Requeues: requeues}
	}
	return newItem(tk, topicOf(task.Normal))
}

// TestOfTwoRecordsTheOneRequeuedMoreOftenContinues adds several records of one task. A task was once
// lost when the newer record was dropped: the record that the older one was requeued as was then taken
// for a duplicate of it.
func TestOfTwoRecordsTheOneRequeuedMoreOftenContinues(t *testing.T) {
	for name, order := range map[string][]int{"older first": {0, 1}, "newer first": {1, 0}, "three records": {1, 0, 2}, "newest first": {2, 1, 0, 1}} {
		t.Run(name, func(t *testing.T) {
			d, _ := newTestDecider(t, testConfig())
			best := 0
			var all []*Item
			for i, n := range order {
				it := twin(n)
				all = append(all, it)
				rider := d.Add(it, time.Now())
				require.Equal(t, i > 0, rider != nil)
				best = max(best, n)
				have := d.window.byKey[it.Task.Key()]
				require.Equal(t, best, have.Task.Requeues())
				require.NotSame(t, have, rider)
				require.Len(t, have.Riders(), i, "the riders of a rider must ride on")
			}
			require.Equal(t, 1, d.Len())
			winner := d.window.byKey[all[0].Task.Key()]
			for _, it := range all {
				require.True(t, it == winner || slices.Contains(winner.Riders(), it))
			}
		})
	}
}

// Of two records that were requeued equally often, the second rides along.
func TestOfEqualTwinsTheFirstContinues(t *testing.T) {
	d, _ := newTestDecider(t, testConfig())
	a, b := twin(0), twin(0)
	require.Nil(t, d.Add(a, time.Now()))
	require.Same(t, b, d.Add(b, time.Now()))
	require.Same(t, a, d.window.byKey[a.Task.Key()])
	require.Equal(t, []*Item{b}, a.Riders())
}

// When the item that continues is lost to another router, its riders are still this router's work.
func TestRidersOfAForgottenItemReturn(t *testing.T) {
	d, _ := newTestDecider(t, testConfig())
	now := time.Now()
	old, lower, newer := twin(0), twin(1), twin(2)
	for _, it := range []*Item{old, lower, newer} {
		d.Add(it, now)
	}
	d.Forget(newer, now)
	require.Equal(t, 1, d.Len())
	require.Same(t, lower, d.window.byKey[old.Task.Key()])
	require.Equal(t, []*Item{old}, lower.Riders())
	require.False(t, lower.gone)
	require.Equal(t, 1, lower.demand.tasks)
	require.Empty(t, newer.Riders())
}

// A record read by its new owner replaces the lost one.
func TestALostItemIsReplacedByItsTwin(t *testing.T) {
	d, _ := newTestDecider(t, testConfig())
	mine := &origin{}
	lost, next := twin(0), twin(0)
	lost.Origin = mine
	require.Nil(t, d.Add(lost, t0))
	mine.lost = true
	require.Nil(t, d.Add(next, t0), "a lost item cannot carry riders")
	require.Same(t, next, d.window.byKey[next.Task.Key()])
	require.Empty(t, next.Riders())
}
