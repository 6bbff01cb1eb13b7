package ledger

import (
	"context"
	"fmt"
	"hash/maphash"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder/clean"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// way lists the topics in the order of a task's path, with the stage whose group reads
// them; the recorder keeps its offsets in Postgres.
var way = []struct{ topic, stage string }{
	{stream.TasksHigh, "router"}, {stream.TasksNormal, "router"}, {stream.TasksLow, "router"},
	{stream.TasksParked, "router"}, {stream.Assignments, "batcher"}, {stream.Batches, "workers"},
	{stream.Results, ""}, {stream.Events, ""},
}

// back lists the topics to which a task may be written back.
var back = []string{stream.TasksHigh, stream.TasksNormal, stream.TasksLow, stream.TasksParked}

// seed makes digests comparable within this process.
var seed = maphash.MakeSeed()

// look is one pass over Kafka and Postgres.
type look struct {
	log    *stream.Client
	pool   *pgxpool.Pool
	o      Options
	r      *Report
	before *Report // of the previous pass; nil in the first
	facts  *facts

	recorded offsets
	holes    map[audit.TopicPartition][]*hole
	replaced map[audit.TopicPartition]int64 // first row of the topic that there is now, if it was replaced
	stands   map[string][]stream.PartitionOffsets
	tails    map[string][]stream.PartitionOffsets
	since    map[string]int64 // by topic: since when it is complete, in microseconds; 0: from its start
	begins   map[string]int64 // by topic of tasks: time of its first record, in microseconds
	gone     [5]gone          // by topic, as indexes in back; the last: unknown
	cut      time.Time        // older audit rows may be gone
	earliest time.Time        // time of an event or result that was read
}

func lookOnce(ctx context.Context, log *stream.Client, pool *pgxpool.Pool, o Options, before *Report) (*Report, error) {
	l := &look{log: log, pool: pool, o: o, r: newReport(o.Problems), before: before, facts: newFacts(o.Dir, o.Memory),
		stands: map[string][]stream.PartitionOffsets{}, tails: map[string][]stream.PartitionOffsets{}, since: map[string]int64{}, begins: map[string]int64{},
		holes: map[audit.TopicPartition][]*hole{}, replaced: map[audit.TopicPartition]int64{}}
	defer l.facts.close()
	for _, step := range []func(context.Context) error{l.readTables, l.standStill, l.readDead, l.readTasks, l.readWay, l.readResultsTopic, l.readEvents} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	l.o.Progress(fmt.Sprintf("comparing %d facts of tasks", l.facts.tasks.count))
	if err := l.judgeTasks(); err != nil {
		return nil, err
	}
	l.judgeGone()
	l.judgeHoles()
	if err := l.readRows(ctx); err != nil {
		return nil, err
	}
	l.o.Progress(fmt.Sprintf("comparing %d facts of events", l.facts.positions.count))
	return l.r, l.judgePositions()
}

// standStill reads all offsets, in the order that misses no task: see the package comment.
func (l *look) standStill(ctx context.Context) error {
	l.o.Progress("reading the offsets of all topics")
	stand := func(into map[string][]stream.PartitionOffsets, group, topic string) (err error) {
		if into[topic], err = l.log.Offsets(ctx, group, topic); err == nil {
			err = stream.CheckReadable(topic, into[topic]) // a task behind an open transaction would count as missing
		}
		if err != nil {
			return fmt.Errorf("reading the offsets of topic %s: %w", topic, err)
		}
		return nil
	}
	for _, w := range way {
		if err := stand(l.stands, w.stage, w.topic); err != nil {
			return err
		}
	}
	for _, topic := range back {
		if err := stand(l.tails, "", topic); err != nil {
			return err
		}
	}
	if err := stand(l.stands, "", stream.DLQ); err != nil {
		return err
	}
	for _, w := range way {
		if err := l.reach(ctx, w.topic); err != nil {
			return err
		}
	}
	return l.reach(ctx, stream.DLQ)
}

// reach finds out since when a topic is complete, and reports its size.
func (l *look) reach(ctx context.Context, topic string) error {
	out := TopicReach{Topic: topic, Complete: true}
	for _, s := range l.stands[topic] {
		out.Records += s.End - s.First
		next := s.Committed()
		if topic == stream.Results || topic == stream.Events {
			next = l.recorded.of(topic, s.Partition)
			l.checkOffsets(topic, &s, next)
		}
		if topic != stream.DLQ {
			out.Lag += max(0, s.End-max(next, s.First))
		}
		if s.First == 0 {
			if l.since[topic] > 0 { // the topic was replaced then
				out.Complete = false
			}
			continue
		}
		out.Complete = false
		at := l.r.At // the partition is empty: all its records are gone
		if s.First < s.End {
			err := l.log.ScanRange(ctx, topic, s.Partition, s.First, s.First+1, func(r *stream.Record) error {
				at = r.Time
				return nil
			})
			if err != nil {
				return err
			}
		}
		l.since[topic] = max(l.since[topic], at.UnixMicro())
	}
	if !out.Complete {
		t := time.UnixMicro(l.since[topic]).UTC()
		out.Since = &t
	}
	l.r.Topics = append(l.r.Topics, out)
	return nil
}

// checkOffsets compares the recorder's offset with those of the partition.
func (l *look) checkOffsets(topic string, s *stream.PartitionOffsets, next int64) {
	at := fmt.Sprintf("%s/%d", topic, s.Partition)
	if next > s.End {
		l.r.wrong(l.before, Problem{Kind: OffsetsBeyond, At: at, What: fmt.Sprintf("recorded up to offset %d, but the partition ends at %d", next, s.End)})
	}
	if s.First > max(next, 0) {
		l.r.wrong(l.before, Problem{Kind: RecordsGone, At: at, What: fmt.Sprintf("recorded up to offset %d, but the partition begins at %d", max(next, 0), s.First)})
	}
}

func (l *look) firstOf(topic string, partition int) int64 {
	if all := l.stands[topic]; partition < len(all) {
		return all[partition].First
	}
	return 0
}

// scan reads a topic up to the end that standStill found.
func (l *look) scan(ctx context.Context, topic string, fn func(*stream.PartitionOffsets, *stream.Record) error) error {
	l.o.Progress("reading topic " + topic)
	for i := range l.stands[topic] {
		s := &l.stands[topic][i]
		if err := l.log.ScanRange(ctx, topic, s.Partition, s.First, s.End, func(r *stream.Record) error { return fn(s, r) }); err != nil {
			return err
		}
	}
	return nil
}

func positionOf(r *stream.Record) position {
	i, _ := topicIndex(r.Topic)
	return position{i, uint32(r.Partition), uint64(r.Offset)}
}

// taskOf returns the task of a record in tasks.*, with the defaults that the router sets.
func taskOf(r *stream.Record) (task.Run, bool) {
	if r.Topic == stream.TasksParked && !r.Ours() {
		return task.Run{}, false
	}
	t, err := wire.DecodeOwnTask(r.Value, r.Header(wire.HeaderContentType))
	if err != nil {
		return task.Run{}, false
	}
	k := t.Run()
	if k.ID == "" {
		k.ID = records.TaskID(r)
	}
	if k.Tenant == "" {
		k.Tenant = task.DefaultTenant
	}
	return k, nameable(k)
}

// readTasks reads the accepted tasks.
func (l *look) readTasks(ctx context.Context) error {
	for _, topic := range back {
		kind := byte(factRecord)
		if topic == stream.TasksParked {
			kind = factParked
		}
		one := func(r *stream.Record, flags byte) error {
			l.noteBegin(topic, r.Time)
			k, ok := taskOf(r)
			switch {
			case ok:
				return l.facts.add(k, fact{kind: kind, flags: flags, where: positionOf(r)})
			case flags == 0:
				return l.facts.note(note{where: positionOf(r), kind: noteUnreadable})
			}
			l.r.Accepted++ // the router will read it, and make a dead letter of it
			l.r.InFlight++
			l.r.Where["router"]++
			return nil
		}
		err := l.scan(ctx, topic, func(s *stream.PartitionOffsets, r *stream.Record) error {
			if s.Unfinished(r.Offset) {
				return one(r, flagUnfinished)
			}
			return one(r, 0)
		})
		if err != nil {
			return err
		}
		for i := range l.tails[topic] {
			tail, from := &l.tails[topic][i], int64(0)
			if i < len(l.stands[topic]) {
				from = l.stands[topic][i].End
			}
			from = max(from, tail.First)
			if from >= tail.End {
				continue
			}
			if err := l.log.ScanRange(ctx, topic, tail.Partition, from, tail.End, func(r *stream.Record) error { return one(r, flagWentBack) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// readWay reads the tasks in unfinished assignments and batches.
func (l *look) readWay(ctx context.Context) error {
	for _, topic := range []string{stream.Assignments, stream.Batches} {
		l.o.Progress("reading topic " + topic)
		for i := range l.stands[topic] {
			s := &l.stands[topic][i]
			if s.Committed() >= s.End {
				continue
			}
			err := l.log.ScanRange(ctx, topic, s.Partition, s.Committed(), s.End, func(r *stream.Record) error {
				if !s.Unfinished(r.Offset) || !r.Ours() {
					return nil
				}
				return l.addAll(keysOf(topic, r), fact{kind: factOnTheWay, where: positionOf(r)})
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *look) addAll(keys []task.Run, f fact) error {
	for _, k := range keys {
		if !nameable(k) {
			continue
		}
		if err := l.facts.add(k, f); err != nil {
			return err
		}
	}
	return nil
}

// keysOf returns the tasks in a record of a topic; nil if it is unreadable.
func keysOf(topic string, r *stream.Record) (keys []task.Run) {
	switch topic {
	case stream.Assignments:
		as, err := wire.DecodeFrame[task.Assignment](wire.FrameAssignments, r.Value)
		if err != nil {
			return nil
		}
		for i := range as {
			keys = append(keys, as[i].Task.Run())
		}
	case stream.Batches:
		bs, err := wire.DecodeFrame[task.Batch](wire.FrameBatches, r.Value)
		if err != nil {
			return nil
		}
		for i := range bs {
			for j := range bs[i].Assignments {
				keys = append(keys, bs[i].Assignments[j].Task.Run())
			}
		}
	case stream.Results:
		if res, err := wire.DecodeResult(r.Value, r.Header(wire.HeaderContentType)); err == nil {
			keys = append(keys, res.Run())
		}
	}
	return keys
}

// readDead reads the dead letters.
func (l *look) readDead(ctx context.Context) error {
	return l.scan(ctx, stream.DLQ, func(_ *stream.PartitionOffsets, r *stream.Record) error {
		topic := r.Header(records.HeaderDLQTopic)
		partition, perr := strconv.ParseUint(r.Header(records.HeaderDLQPartition), 10, 31)
		offset, oerr := strconv.ParseUint(r.Header(records.HeaderDLQOffset), 10, 63)
		i, ok := topicIndex(topic)
		if ok = ok && perr == nil && oerr == nil; !ok {
			return nil // Batchyard did not write it
		}
		n := note{where: position{i, uint32(partition), offset}, kind: noteDead, digest: maphash.Bytes(seed, r.Value)}
		if topic == stream.Results {
			n.n = 1 // it would have become an audit row, if another result came first
		}
		if topic == stream.Events {
			if events, err := wire.DecodeFrame[task.Event](wire.FrameEvents, r.Value); err == nil {
				n.n = uint32(len(events))
			}
			return l.facts.note(n)
		}
		if err := l.facts.note(n); err != nil {
			return err
		}
		if r.Header(records.HeaderDLQReason) == records.ReasonNotOurs {
			return nil // it may claim to hold any task
		}
		if r.Header(records.HeaderDLQReason) == records.ReasonIDReused {
			return nil // the task with this id is another one, and has to be somewhere else
		}
		keys := keysOf(topic, r)
		if keys == nil {
			k, ok, err := l.taskOfDead(ctx, r, topic, int(partition), int64(offset))
			if err != nil || !ok {
				return err
			}
			keys = []task.Run{k}
		}
		return l.addAll(keys, fact{kind: factDead, where: positionOf(r)})
	})
}

// taskOfDead returns the task of a dead letter from tasks.*. A task without an id gets it
// from the original record, which may be gone.
func (l *look) taskOfDead(ctx context.Context, r *stream.Record, topic string, partition int, offset int64) (k task.Run, ok bool, err error) {
	t, err := wire.DecodeOwnTask(r.Value, r.Header(wire.HeaderContentType))
	if err != nil {
		return k, false, nil //nolint:nilerr // unreadable: it counts by its position
	}
	if t.ID != "" {
		k, ok = taskOf(r)
		return k, ok, nil
	}
	stands := l.stands[topic]
	if partition >= len(stands) || offset < stands[partition].First || offset >= stands[partition].End {
		return k, false, nil
	}
	err = l.log.ScanRange(ctx, topic, partition, offset, offset+1, func(original *stream.Record) error {
		k, ok = taskOf(original)
		return nil
	})
	return k, ok, err
}

// resultOf returns the result of a record, if the recorder takes it.
func resultOf(r *stream.Record) (*task.Result, error) {
	if err := records.CheckOurs(r); err != nil {
		return nil, err
	}
	res, err := wire.DecodeResult(r.Value, r.Header(wire.HeaderContentType))
	if err == nil {
		err = clean.Result(res, r.Time)
	}
	return res, err
}

// readResultsTopic reads the results in the topic.
func (l *look) readResultsTopic(ctx context.Context) error {
	return l.scan(ctx, stream.Results, func(s *stream.PartitionOffsets, r *stream.Record) error {
		l.seenAt(r.Time.Add(-time.Hour)) // a duplicate has an audit row of about this time
		later := r.Offset >= l.recorded.of(stream.Results, s.Partition)
		res, err := resultOf(r)
		if err != nil || !nameable(res.Run()) {
			if later || l.inHole(stream.Results, s.Partition, r.Offset) {
				return nil
			}
			return l.facts.note(note{where: positionOf(r), kind: noteUnreadable})
		}
		f := fact{kind: factOffered, where: positionOf(r), end: end{stateIndex(res.State), uint32(res.Attempt()), res.FinishedAt.UnixMicro()}}
		switch {
		case later:
			f.flags = flagLater
		case l.inHole(stream.Results, s.Partition, r.Offset):
			f.flags = flagMissed
		}
		return l.facts.add(res.Run(), f)
	})
}

// readEvents reads how many audit rows each record of events should have.
func (l *look) readEvents(ctx context.Context) error {
	l.o.Progress("reading topic " + stream.Events)
	for _, s := range l.stands[stream.Events] {
		upTo := min(l.recorded.of(stream.Events, s.Partition), s.End)
		if upTo <= s.First {
			continue
		}
		err := l.log.ScanRange(ctx, stream.Events, s.Partition, s.First, upTo, func(r *stream.Record) error {
			l.r.Events.Records++
			events, err := wire.DecodeFrame[task.Event](wire.FrameEvents, r.Value)
			if err != nil || !r.Ours() {
				if l.inHole(stream.Events, s.Partition, r.Offset) {
					return nil
				}
				return l.facts.note(note{where: positionOf(r), kind: noteUnreadable})
			}
			n := note{where: positionOf(r), kind: noteExpected, n: uint32(len(events))}
			if l.inHole(stream.Events, s.Partition, r.Offset) {
				n.kind = noteAtMost
			}
			for i := range events {
				if clean.Event(&events[i], r.Time) != nil {
					continue // it must be a dead letter
				}
				if events[i].Time.Before(l.cut) {
					n.kind = noteAtMost
				}
				l.seenAt(events[i].Time)
			}
			return l.facts.note(n)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *look) seenAt(t time.Time) {
	if l.earliest.IsZero() || t.Before(l.earliest) {
		l.earliest = t
	}
}
