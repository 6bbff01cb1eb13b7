package explain

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/internal/waiting"
	"github.com/batchyard/batchyard/status"
	"github.com/batchyard/batchyard/task"
)

// fleet is what Redis knows.
type fleet struct {
	devices []device.Device
	read    map[string]store.Read // by topic
	asked   string                // key
}

func (f *fleet) List(context.Context) ([]device.Device, error) { return f.devices, nil }
func (f *fleet) Mark(context.Context, []device.Device) error   { return nil }
func (f *fleet) Used(context.Context, []string) ([]int, error) { return make([]int, 10), nil }
func (f *fleet) Get(_ context.Context, _ ...task.Key) ([]device.Override, error) {
	return []device.Override{{PriorityChange: device.PriorityChange{Level: -1}}}, nil
}
func (f *fleet) Load(context.Context) (map[device.RateKey]device.Rate, map[string]device.Health, error) {
	return nil, nil, nil
}
func (f *fleet) Read(_ context.Context, topic, key string) (store.Read, error) {
	f.asked = key
	return f.read[topic], nil
}

// explained is the explanation of a task with these events.
func explained(t *testing.T, f *fleet, tk *Task, actions ...task.Action) *Why {
	t.Helper()
	var rows []status.EventRow
	for i, a := range actions {
		rows = append(rows, status.EventRow{Event: task.Event{Action: a, DeviceID: "d", Attempt: 1, Time: clock.Now().Add(time.Duration(i-len(actions)) * time.Second)}})
	}
	d := Deps{Registry: f, Presence: f, Overrides: f, Rates: f, Credits: f}
	w, err := d.Of(t.Context(), tk, rows)
	require.NoError(t, err)
	return w
}

// A task that was set aside before any event says so was read if a router keeps up with its partition.
func TestATaskThatWasSetAsideWasRead(t *testing.T) {
	t.Parallel()
	submitted := clock.Now().Add(-time.Minute)
	tk := &Task{Key: task.Key{Tenant: "a", ID: "t"}, State: task.Pending, Priority: task.Low, Model: "m", SubmittedAt: &submitted}
	f := &fleet{devices: []device.Device{{ID: "d", Models: []string{"m"}, Slots: 1}}, read: map[string]store.Read{}}
	w := explained(t, f, tk)
	require.False(t, w.Waiting.Read)
	require.Equal(t, waiting.Unread, w.Place.Reason)
	require.Equal(t, "start the stage, or see its log", w.Place.Remedy)

	f.read["tasks.low"] = store.Read{Until: submitted.Add(-time.Second), Now: true} // a router is there, and behind
	w = explained(t, f, tk)
	require.False(t, w.Waiting.Read)
	require.Equal(t, "nothing while these move; more processes of the stage help", w.Place.Remedy)

	f.read["tasks.low"] = store.Read{Until: submitted.Add(time.Second), Now: true}
	w = explained(t, f, tk)
	require.True(t, w.Waiting.Read)
	require.True(t, w.Waiting.Aside)
	require.Equal(t, "t", f.asked)
	require.Contains(t, w.Sentence, "a router has read it and set it aside")
	require.Contains(t, w.Sentence, "It is with the stage router for 1m0s (busy)")
	require.NotContains(t, w.Sentence, "no router has read it")
}

// Every unfinished task is with a stage, which says why.
func TestThePlaceOfATask(t *testing.T) {
	t.Parallel()
	read := func(topic string) map[string]store.Read {
		return map[string]store.Read{topic: {Until: clock.Now(), Now: true}}
	}
	for name, c := range map[string]struct {
		state   task.State
		actions []task.Action
		read    map[string]store.Read
		device  device.Device
		stage   string
		reason  waiting.Reason
	}{
		"no device":         {state: task.Pending, actions: []task.Action{task.TaskQueued}, device: device.Device{ID: "d"}, stage: "router", reason: waiting.NoDevice},
		"a silent device":   {state: task.Pending, actions: []task.Action{task.TaskQueued}, device: device.Device{ID: "d", Models: []string{"m"}, Silent: true}, stage: "router", reason: waiting.Silent},
		"a drained device":  {state: task.Pending, actions: []task.Action{task.TaskQueued}, device: device.Device{ID: "d", Models: []string{"m"}, Draining: true}, stage: "router", reason: waiting.Draining},
		"busy":              {state: task.Pending, actions: []task.Action{task.TaskQueued}, device: device.Device{ID: "d", Models: []string{"m"}}, stage: "router", reason: waiting.Busy},
		"no batcher":        {state: task.Assigned, actions: []task.Action{task.TaskQueued, task.TaskAssigned}, stage: "batcher", reason: waiting.Unread},
		"a batcher":         {state: task.Assigned, actions: []task.Action{task.TaskQueued, task.TaskAssigned}, read: read("assignments"), stage: "batcher", reason: waiting.Busy},
		"no worker":         {state: task.Assigned, actions: []task.Action{task.TaskAssigned, task.BatchClosed}, read: read("assignments"), stage: "workers", reason: waiting.Unread},
		"a worker":          {state: task.Assigned, actions: []task.Action{task.TaskAssigned, task.BatchClosed}, read: read("batches"), stage: "workers", reason: waiting.Busy},
		"running":           {state: task.Running, actions: []task.Action{task.TaskAssigned, task.BatchClosed, task.AttemptStarted}, stage: "workers", reason: waiting.Running},
		"running, no event": {state: task.Running, stage: "workers", reason: waiting.Running},
		"between attempts":  {state: task.Running, actions: []task.Action{task.TaskAssigned, task.AttemptStarted, task.AttemptFailed}, stage: "workers", reason: waiting.Later},
		"not recorded":      {state: task.Running, actions: []task.Action{task.TaskAssigned, task.AttemptStarted, task.AttemptSucceeded}, stage: "audit", reason: waiting.Unread},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := &fleet{devices: []device.Device{c.device}, read: c.read}
			w := explained(t, f, &Task{Key: task.Key{Tenant: "a", ID: "t"}, State: c.state, Model: "m", DeviceID: "d"}, c.actions...)
			require.Equal(t, c.stage, w.Place.Stage)
			require.Equal(t, c.reason, w.Place.Reason)
			require.NotEmpty(t, w.Place.Remedy)
			require.Contains(t, w.Sentence, "What helps: ")
			require.NotContains(t, w.Sentence, "..")
		})
	}
	w := explained(t, &fleet{}, &Task{State: task.Success}, task.TaskSucceeded)
	require.Nil(t, w.Place)
}
