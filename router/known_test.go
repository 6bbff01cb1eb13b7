package router

import (
	"context"
	"errors"
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
	for i, id := range []string{"new", "done", "own", "other", "running", "retried", "twice"} {
		it := record(id, int64(i))
		it.Fingerprint = print
		items = append(items, it)
	}
	items[5].Task.Progress = &task.Progress{Generation: 1}
	verdicts := []verdict{claimed, claimed, reclaimed, claimed, reclaimed, claimed, duplicate}
	r.deps.Known = knows{
		"done": {Fingerprint: print, State: task.Success}, "own": {Fingerprint: print, State: task.Expired}, "other": {Fingerprint: other, State: task.Success}, "running": {Fingerprint: print, State: task.Running},
		"retried": {Fingerprint: print, State: task.Failed}, "twice": {Fingerprint: print, State: task.Success},
	}
	ends, checked := r.lookUp(t.Context(), items, verdicts)
	require.True(t, checked)
	require.Equal(t, []verdict{claimed, answered, reread, reused, reclaimed, claimed, duplicate}, verdicts)

	a := arrivals{actor: "router@r-1", now: time.Now(), ends: ends}
	a.end(items[2], task.TaskReread)
	require.JSONEq(t, `{"state":"EXPIRED"}`, string(a.unit.Events[0].Detail))

	r.deps.Known = knows(nil)
	verdicts = []verdict{claimed, claimed, reclaimed, claimed, reclaimed, claimed, duplicate}
	_, checked = r.lookUp(t.Context(), items, verdicts)
	require.False(t, checked)
	require.Equal(t, []verdict{claimed, claimed, reclaimed, claimed, reclaimed, claimed, duplicate}, verdicts, "work continues without Postgres")
	a = arrivals{actor: "router@r-1", now: time.Now(), unchecked: true}
	a.accept(items[0])
	require.JSONEq(t, `{"unchecked":true}`, string(a.unit.Events[len(a.unit.Events)-1].Detail))
}
