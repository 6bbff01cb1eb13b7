package router

import (
	"context"

	"github.com/batchyard/batchyard/router/decide"
	"github.com/batchyard/batchyard/task"
)

// Known says what Postgres has about tasks. An error means that it does not answer; it must come soon.
type Known interface {
	Known(ctx context.Context, keys []task.Key) ([]task.Known, error)
}

// lookUp asks Postgres about tasks, and changes the verdicts accordingly. A claim in Redis lasts minutes;
// Postgres knows for good whether a task has been answered, and what it asked. So what was answered does not
// run again after its claim expired, Redis was emptied or a topic was read again from its beginning.
//
// While Postgres does not answer, tasks go on unchecked, because nothing else would move either; only those
// with a contested id wait. A task may then run again if its claim is gone, too. The same holds for the moment between a result's
// acknowledgement and its commit by the recorder. The recorder keeps the first result in any case.
//
// ends is how the answered ones ended. If the items could not be checked, their task.queued events say so.
func (r *Router) lookUp(ctx context.Context, items []*decide.Item, verdicts []verdict) (ends map[*decide.Item]task.State, checked bool) {
	if r.deps.Known == nil {
		for i, v := range verdicts {
			if v == contested {
				verdicts[i] = reused
			}
		}
		return nil, true
	}
	keys := make([]task.Key, len(items))
	for i, it := range items {
		keys[i] = it.Task.Key()
	}
	known, err := r.deps.Known.Known(ctx, keys)
	if err != nil {
		r.deps.Metrics.Router.Unchecked.Add(float64(len(keys)))
		return nil, false
	}
	ends = map[*decide.Item]task.State{}
	for i, k := range known {
		switch {
		case k.IsOther(items[i].Fingerprint):
			verdicts[i] = reused
		case verdicts[i] == duplicate:
		case verdicts[i] == contested && k.Fingerprint.IsZero(): // even if it was cancelled: perhaps before any record was read
		case verdicts[i] == contested && !k.Answers(items[i].Task.Generation()):
			verdicts[i] = claimed // it is ours: the claim was lost, and taken by the other
		case k.State == "" || !k.Answers(items[i].Task.Generation()):
		case verdicts[i] == reclaimed, items[i].Task.Requeues() > 0: // a copy that Batchyard wrote is no second submit
			verdicts[i], ends[items[i]] = reread, k.State
		default:
			verdicts[i], ends[items[i]] = answered, k.State
		}
	}
	return ends, true
}
