// Package explain says why a task waits, or went where it went: from its events, the fleet as
// it is now, and what operators changed. The HTTP API answers with it for one task and for a
// whole job, so both give the same reasons.
package explain

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/status"
	"github.com/batchyard/batchyard/task"
)

// Why explains where a task is and how it came there.
type Why struct {
	ID       string      `json:"task_id"`
	Tenant   string      `json:"tenant"`
	State    task.State  `json:"state"`
	Sentence string      `json:"sentence" doc:"The whole explanation in words."`
	Waiting  *Waiting    `json:"waiting,omitempty" doc:"What the task waits for now, while it does."`
	Attempts []Placement `json:"attempts,omitempty" doc:"The devices it went to, and why, oldest first."`
	Place    *Place      `json:"place,omitempty" doc:"The stage that has the task, while it has not ended."`
}

// Waiting is what a waiting task waits for, in figures.
type Waiting struct {
	Priority  task.Priority  `json:"priority"`
	Level     int            `json:"level"`
	Model     string         `json:"model"`
	Needs     []string       `json:"needs,omitempty"`
	Exclude   []string       `json:"exclude,omitempty" doc:"Devices that failed the task and do not get it again."`
	Declined  []string       `json:"declined,omitempty" doc:"Devices that have refused the task."`
	Since     *time.Time     `json:"since,omitempty"`
	Read      bool           `json:"read" doc:"A router has read the task; before that it waits in Kafka behind others."`
	Aside     bool           `json:"aside,omitempty" doc:"The router has no room for the task now, and reads it again when its turn comes."`
	Parked    string         `json:"parked,omitempty" doc:"Why a router parked the task."`
	ParkedAt  *time.Time     `json:"parked_at,omitempty"`
	NotBefore *time.Time     `json:"not_before,omitempty"`
	Deadline  *time.Time     `json:"deadline,omitempty"`
	Devices   int            `json:"devices" doc:"Known devices."`
	Able      int            `json:"able" doc:"Devices of these that could run the task."`
	Slots     int            `json:"slots" doc:"Slots of the able devices together."`
	Used      int            `json:"used" doc:"Tasks at the able devices now."`
	Batched   bool           `json:"batched,omitempty" doc:"The endpoint is batched: a slot takes many tasks at once."`
	Out       map[string]int `json:"out,omitempty" doc:"Why the other devices cannot run the task, with their number: model, tags, declined, declines, silent, down, draining, unserved, breaker_open, throttled, excluded."`
	Models    []string       `json:"models,omitempty" doc:"The models that the devices serve, at most ten, if none of them serves that of the task."`
	Nearest   string         `json:"nearest,omitempty" doc:"The one of the devices' models that is probably meant, if none of them serves that of the task."`
	Fleet     []FleetDevice  `json:"fleet,omitempty" doc:"The devices, at most twenty, those first that could run the task."`
}

// Placement is an assignment to a device, and how the attempt went.
type Placement struct {
	Attempt    int             `json:"attempt"`
	DeviceID   string          `json:"device_id"`
	At         time.Time       `json:"at"`
	WaitedMS   float64         `json:"waited_ms" doc:"Time in the router."`
	Policy     string          `json:"policy,omitempty"`
	Why        string          `json:"why,omitempty"`
	Of         int             `json:"of,omitempty" doc:"Devices that could have run the task."`
	Candidates []ScoredDevice  `json:"candidates,omitempty" doc:"The best of these, the chosen one first."`
	Out        map[string]int  `json:"out,omitempty" doc:"Why the other devices could not, with their number."`
	Outcome    task.Outcome    `json:"outcome,omitempty" doc:"How the attempt went, once it has ended."`
	Class      task.ErrorClass `json:"error_class,omitempty"`
	DurationMS float64         `json:"duration_ms,omitempty"`
}

// ScoredDevice is a device as the policy saw it.
type ScoredDevice struct {
	DeviceID  string   `json:"device_id"`
	Score     *float64 `json:"score,omitempty" doc:"Lower is better."`
	Unit      string   `json:"unit,omitempty"`
	Used      int      `json:"used"`
	Slots     int      `json:"slots"`
	Limit     int      `json:"limit"`
	ServiceMS float64  `json:"service_ms,omitempty"`
}

// Task is what is known about the task to explain.
type Task struct {
	Key         task.Key
	State       task.State
	Model       string
	Endpoint    string
	Priority    task.Priority
	Level       int  // with LevelKnown
	LevelKnown  bool // Priority and Level are those of the submit
	DeviceID    string
	Error       *task.Error
	SubmittedAt *time.Time
	Deadline    *time.Time
}

// Deps is what an explanation needs beside the events: the fleet as it is now, and what
// operators changed.
type Deps struct {
	Registry interface {
		List(ctx context.Context) ([]device.Device, error)
	}
	Presence interface { // nil: all devices are served
		Mark(ctx context.Context, devices []device.Device) error
		Read(ctx context.Context, topic, key string) (store.Read, error)
	}
	Overrides interface {
		Get(ctx context.Context, keys ...task.Key) ([]device.Override, error)
	}
	Rates interface {
		Load(ctx context.Context) (map[device.RateKey]device.Rate, map[string]device.Health, error)
	}
	Credits interface {
		Used(ctx context.Context, pools []string) ([]int, error)
	}
}

// Of explains a task from its events, oldest first. An error means that Redis does not answer,
// which only a waiting task needs.
func (d Deps) Of(ctx context.Context, t *Task, rows []status.EventRow) (*Why, error) {
	out := &Why{ID: t.Key.ID, Tenant: t.Key.Tenant, State: t.State, Attempts: placements(rows)}
	if t.State == task.Pending {
		w := waitingOf(t, rows)
		if t.LevelKnown {
			w.Priority, w.Level = t.Priority, t.Level
		}
		if err := d.lookAround(ctx, t, &w); err != nil {
			return nil, err
		}
		out.Waiting = &w
	}
	if !t.State.Terminal() {
		at, err := d.locate(ctx, t, rows, out)
		if err != nil {
			return nil, err
		}
		out.Place = at
	}
	out.Sentence = sentence(out, t, clock.Now())
	return out, nil
}

// waitingOf returns what the events say about what a task waits for.
func waitingOf(st *Task, rows []status.EventRow) Waiting {
	w := Waiting{Priority: st.Priority, Model: st.Model, Since: st.SubmittedAt, Deadline: st.Deadline}
	for i := range rows {
		e := &rows[i]
		switch e.Action {
		case task.TaskAccepted, task.TaskQueued:
			wishes, _ := task.ReadConstraints(e.Detail)
			w.Needs, w.Exclude, w.Declined, w.Level, w.NotBefore = wishes.Needs, wishes.Exclude, wishes.Declined, wishes.Level, timeOf(wishes.NotBefore)
			w.Read = w.Read || e.Action == task.TaskQueued
			if e.Action == task.TaskQueued {
				w.Parked, w.ParkedAt, w.Since = "", nil, timeOf(e.Time)
			}
		case task.TaskParked:
			var d struct{ Reason string }
			if json.Unmarshal(e.Detail, &d) == nil {
				w.Parked = d.Reason
			}
			w.ParkedAt = timeOf(e.Time)
		case task.TaskRequeued:
			w.Since, w.Read = timeOf(e.Time), false // a router has to read it again
		}
	}
	return w
}

// lookAround fills in what only Redis has: the fleet as it is now, and the priority
// that an operator gave the task.
func (d Deps) lookAround(ctx context.Context, t *Task, w *Waiting) error {
	if err := d.lookAside(ctx, t, w); err != nil {
		return err
	}
	overrides, err := d.Overrides.Get(ctx, t.Key)
	if err != nil {
		return err
	}
	if overrides[0].Priority != "" {
		w.Priority = overrides[0].Priority
	}
	if overrides[0].Level >= 0 {
		w.Level = overrides[0].Level
	}
	ds, err := d.Registry.List(ctx)
	if err != nil {
		return err
	}
	if d.Presence != nil {
		if err := d.Presence.Mark(ctx, ds); err != nil {
			return err
		}
	}
	_, healths, err := d.Rates.Load(ctx)
	if err != nil {
		return err
	}
	class := device.ClassSingle
	if task.Batched(t.Endpoint) {
		class, w.Batched = device.ClassBatched, true
	}
	now := clock.Now()
	fleet, known := make([]*device.Device, len(ds)), make([]*device.Health, len(ds))
	for i := range ds {
		h := healths[ds[i].ID]
		fleet[i], known[i] = &ds[i], &h
	}
	gates := device.Gates(fleet, known, now)
	want := device.Requirement{Endpoint: t.Endpoint, Model: w.Model, Needs: w.Needs, Exclude: w.Exclude, Declined: w.Declined}
	var pools []string
	verdicts := make([]verdict, 0, len(fleet))
	w.Devices, w.Out = len(ds), map[string]int{}
	for i, one := range fleet {
		why := device.Eligible(one, known[i], gates[i], &want, now)
		verdicts = append(verdicts, verdict{one, known[i], why})
		if why != device.CanRun {
			w.Out[why.String()]++
			continue
		}
		w.Able++
		w.Slots += one.Slots
		pools = append(pools, device.Pool(one.ID, class))
	}
	if w.Able == 0 && w.Out[device.ModelNotServed.String()] == w.Devices {
		w.Models = modelsOf(fleet...)
	}
	if w.Able == 0 && !slices.ContainsFunc(fleet, func(d *device.Device) bool { return d.Serves(w.Model) }) {
		w.Nearest = device.NearestModel(w.Model, namesOf(fleet))
	}
	w.Fleet = named(verdicts, &want, now)
	used, err := d.Credits.Used(ctx, pools)
	if err != nil {
		return err
	}
	for _, n := range used {
		w.Used += n
	}
	return nil
}

// placements returns the assignments of a task, with how each attempt went.
func placements(rows []status.EventRow) []Placement {
	var out []Placement
	at := map[int]int{} // index by attempt; of an attempt assigned twice, the last
	for i := range rows {
		e := &rows[i]
		switch e.Action {
		case task.TaskAssigned:
			p := Placement{Attempt: e.Attempt, DeviceID: e.DeviceID, At: e.Time.UTC(), WaitedMS: float64(e.Duration) / float64(time.Millisecond)}
			explain(&p, e.Detail)
			at[e.Attempt] = len(out)
			out = append(out, p)
		case task.AttemptSucceeded, task.AttemptFailed:
			// A retry on the same device is an attempt without an assignment.
			j, ok := at[e.Attempt]
			if !ok {
				j = len(out)
				at[e.Attempt] = j
				out = append(out, Placement{Attempt: e.Attempt, DeviceID: e.DeviceID, At: e.Time.UTC(), Why: "it was retried there"})
			}
			out[j].Outcome, out[j].Class, out[j].DurationMS = e.Outcome, e.ErrorClass, float64(e.Duration)/float64(time.Millisecond)
		}
	}
	return out
}

// explain fills in what the router wrote into the event of an assignment.
func explain(p *Placement, detail []byte) {
	var d struct {
		Policy     string
		Why        string
		Of         int
		Candidates []struct {
			ScoredDevice
			Device string
		}
		Out map[string]int
	}
	if json.Unmarshal(detail, &d) != nil {
		return
	}
	p.Policy, p.Why, p.Of, p.Out = d.Policy, d.Why, d.Of, d.Out
	for _, c := range d.Candidates {
		c.DeviceID = cmp.Or(c.DeviceID, c.Device)
		p.Candidates = append(p.Candidates, c.ScoredDevice)
	}
}

// timeOf returns the time in UTC, nil for the zero time.
func timeOf(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}
