package tape

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
	"github.com/batchyard/batchyard/test/chaos/check"
	"github.com/batchyard/batchyard/test/harness"
)

// notes is what was ever in the topics, part of which Kafka may have deleted since.
type notes struct {
	prefix string // of topics
	h      check.History
}

// into adds what was noted to a history.
func (n *notes) into(h *check.History) {
	h.Events, h.Topic, h.Dead, h.Queued, h.Reused, h.Cancelled = n.h.Events, n.h.Topic, n.h.Dead, n.h.Queued, n.h.Reused, n.h.Cancelled
	h.Records, h.Reruns, h.Announced = n.h.Records, n.h.Reruns, n.h.Announced
}

// take notes a record.
func (n *notes) take(r *kgo.Record) error {
	h, topic := &n.h, strings.TrimPrefix(r.Topic, n.prefix)
	var runs []task.Run
	var err error
	switch topic {
	case stream.Events:
		return n.events(r)
	case stream.DLQ:
		return n.dead(r)
	case stream.Results:
		var res *task.Result
		if res, err = wire.DecodeResult(r.Value, harness.Header(r, wire.HeaderContentType)); err == nil {
			h.Topic = append(h.Topic, check.Row{Run: res.Run(), State: res.State, Output: sha256.Sum256(res.Output), Partition: r.Partition, Offset: r.Offset})
			runs = []task.Run{res.Run()}
		}
	case stream.Assignments:
		var all []task.Assignment
		all, err = wire.DecodeFrame[task.Assignment](wire.FrameAssignments, r.Value)
		for i := range all {
			runs = append(runs, all[i].Task.Run())
		}
	case stream.Batches:
		var all []task.Batch
		all, err = wire.DecodeFrame[task.Batch](wire.FrameBatches, r.Value)
		for i := range all {
			for j := range all[i].Assignments {
				runs = append(runs, all[i].Assignments[j].Task.Run())
			}
		}
	default: // clients write what they like to the topics of tasks
		if t, e := wire.DecodeOwnTask(r.Value, harness.Header(r, wire.HeaderContentType)); e == nil {
			runs = []task.Run{t.Run()}
		}
	}
	h.Records = append(h.Records, check.Carried{Topic: topic, Partition: r.Partition, Offset: r.Offset, At: r.Timestamp, Runs: runs})
	return err
}

func (n *notes) events(r *kgo.Record) error {
	events, err := wire.DecodeFrame[task.Event](wire.FrameEvents, r.Value)
	for i := range events {
		e := &events[i]
		queued(&n.h, e)
		if e.Action == task.TaskCancelled && len(e.Fingerprint) > 0 {
			c := check.Reused{Key: e.Key()}
			copy(c.Print[:], e.Fingerprint)
			n.h.Cancelled = append(n.h.Cancelled, c)
		}
		if e.Action == task.TaskRequeued && e.ErrorClass == task.ClassLost {
			n.h.Reruns = append(n.h.Reruns, task.Run{Key: e.Key(), Generation: e.Generation})
		}
		place := check.Place{Partition: r.Partition, Offset: r.Offset, Index: i}
		if e.Action == task.RecordsMissed {
			var hole check.Hole
			if json.Unmarshal(e.Detail, &hole) == nil {
				n.h.Announced = append(n.h.Announced, check.Announced{Place: place, Hole: hole})
			}
		}
		n.h.Events = append(n.h.Events, check.Event{Place: place, Action: string(e.Action), Key: task.Key{Tenant: e.Tenant, ID: e.TaskID}, At: r.Timestamp})
	}
	return err
}

func (n *notes) dead(r *kgo.Record) error {
	partition, err := strconv.ParseInt(harness.Header(r, records.HeaderDLQPartition), 10, 32)
	offset, err2 := strconv.ParseInt(harness.Header(r, records.HeaderDLQOffset), 10, 64)
	n.h.Dead = append(n.h.Dead, check.Poison{Topic: harness.Header(r, records.HeaderDLQTopic), Partition: int32(partition), Offset: offset}) //nolint:gosec // 32 bits
	reused(&n.h, r)
	return errors.Join(err, err2)
}

// queued notes that a router let a task in.
func queued(h *check.History, e *task.Event) {
	if e.Action != task.TaskQueued {
		return
	}
	var how task.Constraints
	_ = json.Unmarshal(e.Detail, &how) // there is no detail if there is nothing to say
	q := check.Queued{Run: task.Run{Key: e.Key(), Generation: e.Generation}, At: e.Time, Unchecked: how.Unchecked}
	copy(q.Print[:], e.Fingerprint)
	h.Queued = append(h.Queued, q)
}

// reused notes a dead letter whose id belongs to another request: a task, or a result of one that ran.
func reused(h *check.History, r *kgo.Record) {
	if harness.Header(r, records.HeaderDLQReason) != records.ReasonIDReused {
		return
	}
	if harness.Header(r, records.HeaderDLQTopic) == stream.Results {
		if res, err := wire.DecodeResult(r.Value, harness.Header(r, wire.HeaderContentType)); err == nil {
			h.Reused = append(h.Reused, check.Reused{Key: res.Key(), Print: res.Request()})
		}
		return
	}
	t, err := wire.DecodeOwnTask(r.Value, harness.Header(r, wire.HeaderContentType))
	if err != nil {
		return // the submit that it belongs to will be found missing
	}
	t.Normalize(time.Now())
	h.Reused = append(h.Reused, check.Reused{Key: t.Key(), Print: t.Fingerprint()})
}
