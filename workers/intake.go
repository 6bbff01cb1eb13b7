package workers

import (
	"context"
	"errors"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
	"github.com/batchyard/batchyard/workers/payload"
)

// intake decodes the batches of one partition and hands them to their devices' runners. Records that
// are not ours or cannot be decoded become dead letters.
func (s *Workers) intake(ctx context.Context, recs []*stream.Record) {
	for _, rec := range recs {
		batches, tasks, err := decode(rec)
		if err != nil {
			letter := records.Letter{Record: rec, Reason: records.ReasonOf(err, records.ReasonUnreadable), Cause: err}
			s.logStopped(s.deadLetters.Put(context.WithoutCancel(s.life), letter))
			continue
		}
		ack := records.NewAck(rec, tasks)
		for i := range batches {
			s.start(ctx, &batches[i], rec, ack)
		}
	}
}

// decode returns the batches of a record, and how many tasks they hold. A forged record would make a
// worker send requests anywhere.
func decode(rec *stream.Record) (batches []task.Batch, tasks int, err error) {
	if err := records.CheckOurs(rec); err != nil {
		return nil, 0, err
	}
	batches, err = wire.DecodeFrame[task.Batch](wire.FrameBatches, rec.Value)
	for i := range batches {
		tasks += len(batches[i].Assignments)
	}
	if err == nil && tasks == 0 {
		err = errors.New("the frame is empty")
	}
	return batches, tasks, err
}

// start submits a batch to the runner of its device.
func (s *Workers) start(ctx context.Context, b *task.Batch, rec *stream.Record, ack *records.Ack) {
	works, now := make([]*work, 0, len(b.Assignments)), time.Now()
	marks := s.finished.of(ctx, rec)
	for i := range b.Assignments {
		mark := store.Mark{Partition: rec.Partition, Offset: rec.Offset, Batch: b.ID, Index: i}
		if marks.Has(&mark) { // by a worker that died before it could commit that
			ack.Release()
			continue
		}
		w := newWork(s.life, b.Assignments[i], b.ID, ack)
		w.read, w.mark = now, mark
		s.leases.Hold(w.assignment.Lease)
		s.tasks.add(w)
		works = append(works, w)
	}
	if len(works) == 0 {
		return
	}
	fault.At("workers.after_read")
	s.stopCancelled(ctx, works)
	calls := s.callsOf(b, works)
	s.mu.RLock()
	r := s.runners[b.Device.ID]
	if r != nil { // under the lock, so that it is not retired meanwhile
		r.submit(b.Device, calls...)
		s.mu.RUnlock()
		return
	}
	s.mu.RUnlock()
	known := s.healthOf(ctx, b.Device.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	r = s.runners[b.Device.ID]
	if r == nil {
		r = newRunner(s, b.Device, rec.Partition)
		r.inherit(&known)
		s.runners[b.Device.ID] = r
		s.checkFleetSoon()
	}
	r.submit(b.Device, calls...)
}

// healthOf reads what an earlier owner of the device has learned: a pause that the device asked for then is
// still to be kept. Without Redis, nothing is known.
func (s *Workers) healthOf(ctx context.Context, id string) device.Health {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	h, err := s.deps.Rates.Health(ctx, id)
	if err != nil {
		s.deps.Logger.Debug("what is known of a device was not read; it will be learned", "device_id", id, "error", err)
	}
	return h
}

// stopCancelled stops the tasks that were cancelled on their way here. It is best effort: a
// cancelled task that runs after all still has only one result.
func (s *Workers) stopCancelled(ctx context.Context, works []*work) {
	keys := make([]task.Key, len(works))
	for i, w := range works {
		keys[i] = w.task().Key()
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	marked, err := s.deps.Cancels.Cancelled(ctx, keys...)
	if err != nil {
		return
	}
	for i, w := range works {
		if marked[i] {
			w.stop(errCancelled)
		}
	}
}

// callsOf makes requests of a batch: as few as possible for a batched endpoint, else one per task.
func (s *Workers) callsOf(b *task.Batch, works []*work) []*call {
	if task.Batched(b.Endpoint) {
		return batchedCalls(works, s.cfg.MaxBatchedTasks)
	}
	return singleCalls(works)
}

// batchedCalls makes as few requests of tasks for a batched endpoint as possible, of at most most items each.
func batchedCalls(works []*work, most int) (calls []*call) {
	if len(works) == 1 {
		return singleCalls(works)
	}
	groups, singles := payload.Groups(works[0].task().Endpoint, works[0].ownModel(), tasksOf(works), most)
	for _, g := range groups {
		c := &call{group: g}
		for _, at := range g.Tasks() {
			c.works = append(c.works, works[at])
		}
		if len(c.works) == 1 {
			c.group = nil
		}
		calls = append(calls, c)
	}
	for _, at := range singles {
		calls = append(calls, singleCalls(works[at:at+1])...)
	}
	return calls
}

func tasksOf(works []*work) []*task.Task {
	out := make([]*task.Task, len(works))
	for i, w := range works {
		out[i] = w.task()
	}
	return out
}

func singleCalls(works []*work) (calls []*call) {
	for _, w := range works {
		calls = append(calls, &call{works: []*work{w}})
	}
	return calls
}
