package router

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/router/decide"
	"github.com/batchyard/batchyard/task"
)

// knows is a Postgres that knows these tasks.
type knows map[string]task.Known

func (k knows) Known(_ context.Context, keys []task.Key) ([]task.Known, error) {
	if k == nil {
		return nil, errors.New("Postgres is away")
	}
	out := make([]task.Known, len(keys))
	for i, key := range keys {
		out[i] = k[key.ID]
	}
	return out, nil
}

// What Postgres knows decides about records that may claim their task, and the audit log says how.
func TestWhatPostgresKnowsIsNotRunAgain(t *testing.T) {
	t.Parallel()
	m := metrics.New(nil)
	r := &Router{deps: Deps{Metrics: m}}
	print, other := task.Fingerprint{1}, task.Fingerprint{2}
	var items []*decide.Item
	for i, id := range []string{"new", "done", "own", "other", "running", "retried", "twice", "theirs", "ours", "ours-done", "open", "twice-refused", "requeued", "cancelled", "cancelled-open"} {
		it := record(id, int64(i))
		it.Fingerprint = print
		items = append(items, it)
	}
	items[5].Task.Progress = &task.Progress{Generation: 1}
	items[12].Task.Progress = &task.Progress{Requeues: 1}
	first := []verdict{claimed, claimed, reclaimed, claimed, reclaimed, claimed, duplicate, contested, contested, contested, contested, duplicate, claimed, claimed, contested}
	verdicts := slices.Clone(first)
	r.deps.Known = knows{
		"done": {Fingerprint: print, State: task.Success}, "own": {Fingerprint: print, State: task.Expired}, "other": {Fingerprint: other, State: task.Success}, "running": {Fingerprint: print, State: task.Running},
		"retried": {Fingerprint: print, State: task.Failed}, "twice": {Fingerprint: print, State: task.Success}, "twice-refused": {Fingerprint: other, State: task.Pending}, "requeued": {Fingerprint: print, State: task.Success},
		"theirs": {Fingerprint: other, State: task.Pending}, "ours": {Fingerprint: print, State: task.Pending}, "ours-done": {Fingerprint: print, State: task.Success},
		"open":      {State: task.Pending},                                              // accepted, and not let in yet
		"cancelled": {State: task.Cancelled}, "cancelled-open": {State: task.Cancelled}, // before any record was let in
	}
	ends, checked := r.lookUp(t.Context(), items, verdicts)
	require.True(t, checked)
	require.Equal(t, []verdict{claimed, answered, reread, reused, reclaimed, claimed, duplicate, reused, claimed, answered, contested, reused, reread, answered, contested}, verdicts)

	a := arrivals{actor: "router@r-1", now: time.Now(), ends: ends}
	a.end(items[2], task.TaskReread)
	require.JSONEq(t, `{"state":"EXPIRED"}`, string(a.unit.Events[0].Detail))
	a.end(items[13], task.TaskDuplicate)
	require.Equal(t, print.Bytes(), a.unit.Events[1].Fingerprint, "otherwise another request could take the id")
	a.end(items[6], task.TaskDuplicate)
	require.Nil(t, a.unit.Events[2].Fingerprint, "the other record binds the id")

	r.deps.Known = knows(nil)
	verdicts = slices.Clone(first)
	_, checked = r.lookUp(t.Context(), items, verdicts)
	require.False(t, checked)
	require.Equal(t, first, verdicts, "work continues without Postgres, but for contested ids")
	a = arrivals{actor: "router@r-1", now: time.Now(), unchecked: true}
	a.accept(items[0])
	require.JSONEq(t, `{"unchecked":true}`, string(a.unit.Events[len(a.unit.Events)-1].Detail))
}
