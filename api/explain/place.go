package explain

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/internal/waiting"
	"github.com/batchyard/batchyard/status"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// Place is the stage that has a task, or from whose topic it has not been read yet.
type Place struct {
	Stage  string         `json:"stage" enum:"router,batcher,workers,audit"`
	Since  *time.Time     `json:"since,omitempty"`
	Reason waiting.Reason `json:"reason" doc:"Why it waits there, as in the metric batchyard_stage_oldest_seconds."`
	Means  string         `json:"means" doc:"The reason in words."`
	Remedy string         `json:"remedy" doc:"What makes it move."`
}

// lookAside finds out whether a router has read a task although no event says so: if it keeps up with the task's
// partition, it has, and has set the task aside.
func (d Deps) lookAside(ctx context.Context, t *Task, w *Waiting) error {
	if w.Read || w.Since == nil {
		return nil
	}
	read, err := d.read(ctx, stream.TasksTopic(w.Priority), t.Key.ID)
	if err != nil {
		return err
	}
	if read.Until.After(*w.Since) {
		w.Read, w.Aside = true, true
	}
	return nil
}

func (d Deps) read(ctx context.Context, topic, key string) (store.Read, error) {
	if d.Presence == nil {
		return store.Read{}, nil
	}
	return d.Presence.Read(ctx, topic, key)
}

// locate says which stage has a task, and why it waits there.
func (d Deps) locate(ctx context.Context, t *Task, rows []status.EventRow, w *Why) (*Place, error) {
	if w.Waiting != nil {
		read, err := d.read(ctx, stream.TasksTopic(w.Waiting.Priority), t.Key.ID)
		if err != nil {
			return nil, err
		}
		return placed("router", w.Waiting.Since, w.Waiting.reason(clock.Now()), read), nil
	}
	stage, since, reason := atDevice(t.State, rows)
	topic := ""
	switch stage {
	case "batcher":
		topic = stream.Assignments
	case "workers":
		topic = stream.Batches
	}
	if topic == "" || reason != waiting.Unread {
		return placed(stage, since, reason, store.Read{Now: true}), nil
	}
	read, err := d.read(ctx, topic, deviceOf(t, rows))
	if err != nil {
		return nil, err
	}
	if since != nil && read.Until.After(*since) {
		reason = waiting.Busy
	}
	return placed(stage, since, reason, read), nil
}

// placed explains a reason. A stage that reads the topic of a task, but not yet the task, is behind.
func placed(stage string, since *time.Time, reason waiting.Reason, read store.Read) *Place {
	e := reason.Explain()
	p := &Place{Stage: stage, Since: since, Reason: reason, Means: e.Means, Remedy: e.Remedy}
	if reason == waiting.Unread && read.Now {
		p.Means, p.Remedy = "it is in Kafka, behind others that the stage reads first", "nothing while these move; more processes of the stage help"
	}
	return p
}

// reason says why a waiting task waits.
func (w *Waiting) reason(now time.Time) waiting.Reason {
	switch {
	case w.NotBefore != nil && w.NotBefore.After(now):
		return waiting.Later
	case !w.Read:
		return waiting.Unread
	case w.Able > 0:
		return waiting.Busy
	}
	nearest := device.ModelNotServed
	for why := nearest; why < device.ReasonCount; why++ { // in the order in which less and less is wrong
		if w.Out[why.String()] > 0 {
			nearest = why
		}
	}
	return nearest.Waiting()
}

// atDevice says where the task is that was sent to a device, by the last of its events that says so.
func atDevice(state task.State, rows []status.EventRow) (stage string, since *time.Time, reason waiting.Reason) {
	stage, reason = "batcher", waiting.Unread
	if state == task.Running { // its events may not be recorded yet
		stage, reason = "workers", waiting.Running
	}
	for i := range rows {
		at := timeOf(rows[i].Time)
		switch rows[i].Action {
		case task.TaskAssigned:
			stage, since, reason = "batcher", at, waiting.Unread
		case task.BatchClosed:
			stage, since, reason = "workers", at, waiting.Unread
		case task.AttemptStarted:
			stage, since, reason = "workers", at, waiting.Running
		case task.AttemptFailed:
			stage, since, reason = "workers", at, waiting.Later
		case task.AttemptSucceeded:
			stage, since, reason = "audit", at, waiting.Unread
		}
	}
	return stage, since, reason
}

// deviceOf returns the device that a task was sent to last.
func deviceOf(t *Task, rows []status.EventRow) string {
	id := t.DeviceID
	for i := range rows {
		if rows[i].Action == task.TaskAssigned {
			id = rows[i].DeviceID
		}
	}
	return id
}

// sentence puts the place into words.
func (p *Place) sentence(now time.Time) string {
	age := ""
	if p.Since != nil {
		age = fmt.Sprintf(" for %s", max(0, now.Sub(*p.Since)).Round(100*time.Millisecond))
	}
	return fmt.Sprintf(" It is with the stage %s%s (%s): %s. What helps: %s.", p.Stage, age, p.Reason, strings.ReplaceAll(p.Means, "`", ""), strings.ReplaceAll(p.Remedy, "`", ""))
}
