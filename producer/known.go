package producer

import (
	"context"
	"fmt"

	"github.com/batchyard/batchyard/task"
)

// Known says what Postgres has about tasks. An error means that it does not answer; it must come soon.
type Known interface {
	Known(ctx context.Context, keys []task.Key) ([]task.Known, error)
}

// ReusedError lists the tasks of a submit whose ids belong to other requests. No task of it was written.
type ReusedError struct{ RefusedError }

// checkIDs compares the tasks whose ids the sender chose with what is known about these ids. It returns
// the state of each task: PENDING, or what Postgres says. A *ReusedError means that ids belong to other
// requests.
//
// While Postgres does not answer, or Redis, less is known. A task under a reused id is then accepted, and
// the router that reads it makes it a dead letter, as far as it can know more.
func (p *Producer) checkIDs(ctx context.Context, tasks []*task.Task, chosen []int) ([]task.State, error) {
	states := make([]task.State, len(tasks))
	for i := range states {
		states[i] = task.Pending
	}
	if len(chosen) == 0 {
		return states, nil
	}
	keys, prints := make([]task.Key, len(chosen)), make([]task.Fingerprint, len(chosen))
	for j, i := range chosen {
		keys[j], prints[j] = tasks[i].Key(), tasks[i].Fingerprint()
	}
	var reused ReusedError
	if p.known != nil {
		known, err := p.known.Known(ctx, keys)
		if err != nil {
			p.metrics.Producer.Unchecked.Add(float64(len(keys)))
		}
		for j, k := range known {
			switch {
			case k.IsOther(prints[j]):
				reused.addReused(chosen[j], keys[j])
			case k.State.Terminal() && k.Fingerprint.IsZero():
				// It was cancelled before a router read it, so Postgres cannot say whether this is the same request.
				// The router will know: it reads both records.
			case k.State != "":
				states[chosen[j]] = k.State
			}
		}
	}
	if len(reused.Refusals) > 0 {
		return nil, &reused
	}
	if err := p.bindIDs(ctx, keys, prints, func(j int) { reused.addReused(chosen[j], keys[j]) }); err != nil {
		p.warnUnbound.Do(func() {
			p.logger.Warn("two processes may accept different requests under one id at the same time", "error", err)
		})
	}
	if len(reused.Refusals) > 0 {
		return nil, &reused
	}
	return states, nil
}

// bindIDs binds ids to fingerprints and calls onOther for those that are bound to another.
func (p *Producer) bindIDs(ctx context.Context, keys []task.Key, prints []task.Fingerprint, onOther func(j int)) error {
	if !p.bound.enabled() {
		return nil
	}
	return p.askRedis(ctx, func(ctx context.Context) error {
		other, err := p.bound.bind(ctx, keys, prints)
		for j, o := range other {
			if o {
				onOther(j)
			}
		}
		return err
	})
}

func (e *ReusedError) addReused(i int, k task.Key) {
	e.add(i, &task.FieldError{Field: "task_id", Problem: fmt.Sprintf("%q belongs to another request: endpoint, model, input, needs or degrade differ", k.ID),
		Remedy: "use an id of its own for each request"})
}
