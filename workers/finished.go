package workers

import (
	"context"
	"sync"
	"time"

	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/stream"
)

// finished writes marks of what is finished, and knows those that earlier owners of partitions have left.
type finished struct {
	store *store.Finished // nil: nothing is remembered
	queue chan store.Mark

	mu sync.Mutex
	by map[int]*store.Marks // by partition, of the records that are read now
}

// maxMarks bounds the marks that wait to be written, and those of one round trip.
const maxMarks = 4096

func newFinished(s *store.Finished) *finished {
	return &finished{store: s, queue: make(chan store.Mark, maxMarks), by: map[int]*store.Marks{}}
}

// add marks a piece of work. If Redis does not keep up it is left out: should this process die, the task runs again.
func (f *finished) add(m store.Mark) {
	if f.store == nil {
		return
	}
	select {
	case f.queue <- m:
	default:
	}
}

// run writes marks as soon as the round trip before has ended.
func (f *finished) run(ctx context.Context) {
	if f.store == nil {
		return
	}
	for {
		var marks []store.Mark
		select {
		case <-ctx.Done():
			return
		case m := <-f.queue:
			marks = append(marks, m)
		}
		for len(marks) < maxMarks && len(f.queue) > 0 {
			marks = append(marks, <-f.queue)
		}
		timed, cancel := context.WithTimeout(ctx, time.Second)
		_ = f.store.Mark(timed, marks) // it is counted; see add
		cancel()
	}
}

// of returns the marks that a record may have. Redis is asked once for many records in a row, and not again as long as this
// process has the partition: what it finishes itself it does not read again.
func (f *finished) of(ctx context.Context, rec *stream.Record) *store.Marks {
	if f.store == nil {
		return nil
	}
	f.mu.Lock()
	known := f.by[rec.Partition]
	f.mu.Unlock()
	if known.Cover(rec.Partition, rec.Offset) {
		return known
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	marks, err := f.store.Load(ctx, rec.Partition, rec.Offset)
	if err != nil {
		return nil // the tasks run, perhaps again
	}
	f.mu.Lock()
	f.by[rec.Partition] = marks
	f.mu.Unlock()
	return marks
}

// forget forgets a partition that another worker has now: it may come back with other marks.
func (f *finished) forget(partition int) {
	f.mu.Lock()
	delete(f.by, partition)
	f.mu.Unlock()
}
