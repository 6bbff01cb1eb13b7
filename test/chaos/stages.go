package chaos

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/test/chaos/check"
	"github.com/batchyard/batchyard/test/chaos/process"
)

// without ends both processes of a stage, calls do, and starts them again.
func (w *world) without(stage string, sig syscall.Signal, do func() error) error {
	var both []*process.Process
	for _, l := range Lanes {
		p := w.process(stage + "-" + l)
		p.Op.Lock()
		defer p.Op.Unlock()
		both = append(both, p)
	}
	var wg sync.WaitGroup
	for _, p := range both {
		wg.Go(func() {
			if _, hung := p.End(sig, 30*time.Second); hung {
				p.NoteHang()
			}
		})
	}
	wg.Wait()
	err := do()
	for _, p := range both {
		err = errors.Join(err, p.Start())
	}
	return err
}

// beAbsent lets a stage be absent: both of its processes are stopped or killed.
func (w *world) beAbsent(over context.Context, f Fault) error {
	sig := syscall.SIGTERM
	if int64(f.At/time.Millisecond/100)%2 == 0 {
		sig = syscall.SIGKILL
	}
	return w.without(f.Target, sig, func() error {
		from := time.Now()
		f.wait(over)
		w.removed.absent(check.Absence{Stage: f.Target, From: from, To: time.Now()})
		return nil
	})
}

// crowd starts so many processes of a stage that some get no partition.
func (w *world) crowd(over context.Context, f Fault) error {
	stage, _, _ := strings.Cut(f.Target, "-")
	var more []Fault
	for i := range partitions - len(Lanes) + 1 {
		one := f
		one.Target = fmt.Sprintf("%s-crowd%d", stage, i)
		one.With = map[string]string{"end": []string{"term", "kill"}[i%2]}
		more = append(more, one)
	}
	errs := make([]error, len(more))
	var wg sync.WaitGroup
	for i, one := range more {
		wg.Go(func() { errs[i] = w.runThird(over, one) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// deleteRecords deletes what a topic holds that its stage has not read, as an operator may do with a topic
// that he takes for one of another program, or a retention that is too short.
func (w *world) deleteRecords(ctx, over context.Context, f Fault) error {
	stage := reader(f.Target)
	return w.without(stage, syscall.SIGKILL, func() error {
		f.wait(over)
		ctx, cancel := context.WithTimeout(ctx, time.Minute) // Kafka may be away
		defer cancel()
		return process.Poll(ctx, 500*time.Millisecond, func() error { return w.deleteUnread(ctx, stage, f.Target) })
	})
}

func (w *world) deleteUnread(ctx context.Context, stage, topic string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	adm, name := kadm.NewClient(w.client), topicBase+topic
	next, err := w.positions(ctx, adm, stage, topic)
	if err != nil {
		return err
	}
	if err := w.tape.Await(ctx, adm, name); err != nil {
		return err
	}
	ends, err := adm.ListCommittedOffsets(ctx, name)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("asking Kafka for the end of %s: %w", topic, err)
	}
	upTo := kadm.Offsets{}
	var removed []check.Removal
	ends.Each(func(o kadm.ListedOffset) {
		at, known := next[o.Partition]
		if !known || at.offset >= o.Offset {
			return
		}
		upTo.AddOffset(name, o.Partition, o.Offset, -1)
		removed = append(removed, check.Removal{Hole: check.Hole{Topic: topic, Partition: o.Partition, First: at.offset, Last: o.Offset - 1}, Unread: at.metadata == ""})
	})
	if len(removed) == 0 {
		return nil
	}
	w.removed.add(removed...) // first: the request may succeed without an answer
	gone, err := adm.DeleteRecords(ctx, upTo)
	if err == nil {
		err = gone.Error()
	}
	if err != nil {
		return fmt.Errorf("deleting records of %s: %w", topic, err)
	}
	for _, r := range removed {
		w.say("deleted %s/%d %d to %d", r.Topic, r.Partition, r.First, r.Last)
	}
	return nil
}

// removals are records that were deleted before they were read, and the absences of stages.
type removals struct {
	mu       sync.Mutex
	list     []check.Removal
	absences []check.Absence
}

func (r *removals) absent(a check.Absence) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.absences = append(r.absences, a)
}

func (r *removals) add(some ...check.Removal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, some...)
}

func (r *removals) into(h *check.History) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h.Removed, h.Absences = append(h.Removed, r.list...), append(h.Absences, r.absences...)
}

// collectHoles reads the holes that Batchyard names, and notes what retention has deleted.
func (w *world) collectHoles(ctx context.Context, h *check.History) error {
	if w.profile.retention > 0 {
		starts, err := kadm.NewClient(w.client).ListStartOffsets(ctx, w.taped()...)
		if err != nil {
			return fmt.Errorf("asking Kafka for the beginnings of topics: %w", err)
		}
		starts.Each(func(o kadm.ListedOffset) {
			h.Removed = append(h.Removed, check.Removal{Hole: check.Hole{Topic: strings.TrimPrefix(o.Topic, topicBase), Partition: o.Partition, Last: o.Offset - 1}})
		})
	}
	return w.each(ctx, "SELECT topic, partition, first_offset, coalesce(last_offset, -1) FROM stream_breaks WHERE kind = 'records_missed'", func(scan func(...any) error) error {
		var hole check.Hole
		err := scan(&hole.Topic, &hole.Partition, &hole.First, &hole.Last)
		h.Holes = append(h.Holes, hole)
		return err
	})
}

// grow gives a topic more partitions.
func (w *world) grow(ctx context.Context, f Fault) error {
	ctx, cancel := context.WithTimeout(ctx, recreateMost)
	defer cancel()
	return process.Poll(ctx, time.Second, func() error {
		got, err := kadm.NewClient(w.client).UpdatePartitions(ctx, grownTo, topicBase+f.Target)
		if err != nil {
			return fmt.Errorf("adding partitions to %s: %w", f.Target, err)
		}
		if one := got[topicBase+f.Target]; one.Err != nil && !strings.Contains(one.Err.Error(), "INVALID_PARTITIONS") { // an earlier try
			return fmt.Errorf("adding partitions to %s: %w", f.Target, one.Err)
		}
		return nil
	})
}

// slowKafka makes Kafka's disk look slow. While an append or a flush is slow, the requests of its partition queue
// behind it, and soon those of others, because the same threads serve them. So the whole process is stopped for a
// part of each half second. That simulates a disk whose writes stall for so long at a time. It doesn't simulate one
// with slow reads and fast writes.
func (w *world) slowKafka(over context.Context, f Fault) error {
	stop := time.Duration(f.number("stop")) * time.Millisecond
	end := time.After(f.For)
	for {
		err := w.kafka.Freeze(stop)
		select {
		case <-time.After(500*time.Millisecond - stop):
		case <-end:
			return err
		case <-over.Done():
			return err
		}
		if err != nil {
			return err
		}
	}
}

// slowPostgres makes each flush of Postgres' log to the disk take a tenth of a second longer (commit_delay).
// That simulates a disk with slow fsync. Reads, and writes before their commit, are as fast as ever.
func (w *world) slowPostgres(ctx, over context.Context, f Fault) error {
	err := w.set(ctx, "commit_siblings", "0")
	err = errors.Join(err, w.set(ctx, "commit_delay", "100000"))
	f.wait(over)
	return errors.Join(err, w.set(ctx, "commit_delay", "0"))
}

// position is how far a stage has come in a partition.
type position struct {
	offset   int64
	metadata string // which records after it are finished
}

// positions returns how far a stage has come in the partitions of a topic.
func (w *world) positions(ctx context.Context, adm *kadm.Client, stage, topic string) (map[int32]position, error) {
	out := map[int32]position{}
	if stage == "audit" {
		return out, w.each(ctx, "SELECT partition, greatest(next_offset, 0) FROM stream_offsets WHERE topic = '"+topic+"'", func(scan func(...any) error) error {
			var p int32
			var n int64
			err := scan(&p, &n)
			out[p] = position{offset: n}
			return err
		})
	}
	got, err := adm.FetchOffsets(ctx, groupOf(stage, topic))
	if err != nil {
		return nil, fmt.Errorf("asking Kafka how far %s is in %s: %w", stage, topic, err)
	}
	got.Each(func(o kadm.OffsetResponse) {
		if o.Topic == topicBase+topic {
			out[o.Partition] = position{max(o.At, 0), finishedOf(o.Metadata)}
		}
	})
	return out, nil
}

// groupOf returns the consumer group in which a stage reads a topic.
func groupOf(stage, topic string) string { return topicBase + "batchyard." + stage + "." + topic }

// readers lists the topics that consumer groups read, with their stages.
var readers = []struct{ stage, topic string }{
	{"router", stream.TasksHigh}, {"router", stream.TasksNormal}, {"router", stream.TasksLow}, {"router", stream.TasksParked},
	{"batcher", stream.Assignments}, {"workers", stream.Batches},
}

// finishedOf returns the part of a commit's metadata that says which records after its offset are finished.
func finishedOf(metadata string) string {
	if strings.HasPrefix(metadata, "topic=") {
		_, metadata, _ = strings.Cut(metadata, ";")
	}
	return metadata
}
