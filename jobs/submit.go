package jobs

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/batchyard/batchyard/task"
)

// Submitter submits tasks: a producer, or a client of the API. It returns nil once they
// are durable. Submitting the same tasks again must be harmless.
type Submitter interface {
	Submit(ctx context.Context, tasks []*task.Task) error
}

// Submit submits the plan's tasks in chunks, several in flight. progress, if not nil, is
// called with the number of tasks in each chunk that was submitted, by one goroutine at a
// time. After an error some tasks have been submitted; submitting the plan again is safe.
func (p *Plan) Submit(ctx context.Context, to Submitter, progress func(tasks int)) error {
	cfg := p.options.Config
	// The group's context ends with the first error, and so does reading.
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(cfg.Concurrency)
	in := make(chan int, cfg.Concurrency)
	reported := make(chan struct{})
	go func() {
		defer close(reported)
		for n := range in {
			if progress != nil {
				progress(n)
			}
		}
	}()
	var chunk []*task.Task
	var size int64
	send := func() {
		tasks := chunk
		chunk, size = make([]*task.Task, 0, cfg.ChunkTasks), 0
		g.Go(func() error { // blocks while enough chunks are in flight
			if err := to.Submit(gctx, tasks); err != nil {
				return fmt.Errorf("submitting %d tasks of %s: %w", len(tasks), p.Path, err)
			}
			in <- len(tasks)
			return nil
		})
	}
	_, readErr := p.each(gctx, func(l lineAt, q parsed, err error) error {
		if p.skipped.has(l.number) {
			return nil
		}
		if err != nil || !p.tasks.has(l.number) {
			return fmt.Errorf("%s:%d: the line changed after it was checked; submit the file again", p.Path, l.number)
		}
		if n := int64(len(q.task.Input)); len(chunk) > 0 && (len(chunk) == cfg.ChunkTasks || size+n > cfg.ChunkBytes) {
			send()
		}
		chunk = append(chunk, q.task)
		size += int64(len(q.task.Input))
		return nil
	})
	if readErr == nil && len(chunk) > 0 {
		send()
	}
	err := g.Wait()
	close(in)
	<-reported
	if err != nil {
		return err
	}
	return readErr
}
