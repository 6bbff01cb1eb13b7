package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/batchyard/batchyard/device"
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
}

// Waiting is what a waiting task waits for, in figures.
type Waiting struct {
	Priority  task.Priority  `json:"priority"`
	Level     int            `json:"level"`
	Model     string         `json:"model"`
	Needs     []string       `json:"needs,omitempty"`
	Exclude   []string       `json:"exclude,omitempty" doc:"Devices that failed the task and do not get it again."`
	Since     *time.Time     `json:"since,omitempty"`
	Read      bool           `json:"read" doc:"A router has read the task; before that it waits in Kafka behind others."`
	Parked    string         `json:"parked,omitempty" doc:"Why a router parked the task."`
	ParkedAt  *time.Time     `json:"parked_at,omitempty"`
	NotBefore *time.Time     `json:"not_before,omitempty"`
	Deadline  *time.Time     `json:"deadline,omitempty"`
	Devices   int            `json:"devices" doc:"Known devices."`
	Able      int            `json:"able" doc:"Devices of these that could run the task."`
	Slots     int            `json:"slots" doc:"Slots of the able devices together."`
	Used      int            `json:"used" doc:"Tasks at the able devices now."`
	Batched   bool           `json:"batched,omitempty" doc:"The endpoint is batched: a slot takes many tasks at once."`
	Out       map[string]int `json:"out,omitempty" doc:"Why the other devices cannot run the task, with their number: model, tags, silent, draining, breaker_open, throttled, excluded."`
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

type whyOutput struct{ Body Why }

func (s *Server) routeWhy() {
	huma.Register(s.api, answering(huma.Operation{OperationID: "explain-task", Method: http.MethodGet, Path: "/v1/tasks/{task_id}/why", Tags: []string{"tasks"},
		Summary: "Explain why a task waits, or went where it went", Parameters: params(taskParam, tenantParam)},
		http.StatusNotFound, http.StatusServiceUnavailable), s.why)
}

func (s *Server) why(ctx context.Context, in *request) (*whyOutput, error) {
	key, err := taskOf(in.r)
	if err != nil {
		return nil, err
	}
	st, recent, err := s.look(ctx, key)
	if err != nil {
		return nil, err
	}
	qctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	rows, err := s.deps.Store.Events(qctx, key)
	if err != nil && !errors.Is(err, status.ErrNotFound) && recent == nil {
		return nil, s.postgresDown(ctx, err) // a new task is explained without Postgres
	}
	out := Why{ID: st.ID, Tenant: st.Tenant, State: st.State, Attempts: placements(rows)}
	if st.State == task.Pending {
		w := waitingOf(&st, rows)
		if recent != nil {
			w.Priority, w.Level = recent.Priority, recent.Level
		}
		if err := s.lookAround(qctx, key, st.Endpoint, &w); err != nil {
			s.log.Warn("explaining a waiting task failed", "trace_id", traceOf(ctx), "error", err)
			return nil, later("the task waits; for what is unknown while Redis does not answer. Try again in a moment")
		}
		out.Waiting = &w
	}
	out.Sentence = sentence(&out, &st, time.Now())
	return &whyOutput{out}, nil
}

// waitingOf returns what the events say about what a task waits for.
func waitingOf(st *Status, rows []status.EventRow) Waiting {
	w := Waiting{Priority: st.Priority, Model: st.Model, Since: st.SubmittedAt, Deadline: st.Deadline}
	for i := range rows {
		e := &rows[i]
		switch e.Action {
		case task.TaskAccepted, task.TaskQueued:
			wishes, _ := task.ReadConstraints(e.Detail)
			w.Needs, w.Exclude, w.Level, w.NotBefore = wishes.Needs, wishes.Exclude, wishes.Level, timeOf(wishes.NotBefore)
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
func (s *Server) lookAround(ctx context.Context, key task.Key, endpoint string, w *Waiting) error {
	overrides, err := s.deps.Overrides.Get(ctx, key)
	if err != nil {
		return err
	}
	if overrides[0].Priority != "" {
		w.Priority = overrides[0].Priority
	}
	if overrides[0].Level >= 0 {
		w.Level = overrides[0].Level
	}
	ds, err := s.deps.Registry.List(ctx)
	if err != nil {
		return err
	}
	_, healths, err := s.deps.Rates.Load(ctx)
	if err != nil {
		return err
	}
	class := device.ClassSingle
	if task.Batched(endpoint) {
		class, w.Batched = device.ClassBatched, true
	}
	now := time.Now()
	fleet, known := make([]*device.Device, len(ds)), make([]*device.Health, len(ds))
	for i := range ds {
		h := healths[ds[i].ID]
		fleet[i], known[i] = &ds[i], &h
	}
	gates := device.Gates(fleet, known, now)
	want := device.Requirement{Model: w.Model, Needs: w.Needs, Exclude: w.Exclude}
	var pools []string
	w.Devices, w.Out = len(ds), map[string]int{}
	for i, d := range fleet {
		if why := device.Eligible(d, known[i], gates[i], &want, now); why != device.CanRun {
			w.Out[why.String()]++
			continue
		}
		w.Able++
		w.Slots += d.Slots
		pools = append(pools, device.Pool(d.ID, class))
	}
	used, err := s.deps.Credits.Used(ctx, pools)
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
