package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
)

// Why says why a task is where it is, or why it still waits.
type Why struct {
	ID       string      `json:"id"`
	Tenant   string      `json:"tenant"`
	State    task.State  `json:"state"`
	Sentence string      `json:"sentence" doc:"All of it in words."`
	Waiting  *Waiting    `json:"waiting,omitempty" doc:"What it waits for, as of now, while it does."`
	Attempts []Placement `json:"attempts,omitempty" doc:"Where it went, and why there, in order."`
}

// Waiting is what a waiting task waits for, in figures.
type Waiting struct {
	Priority  task.Priority  `json:"priority"`
	Level     int            `json:"level"`
	Model     string         `json:"model"`
	Needs     []string       `json:"needs,omitempty"`
	Exclude   []string       `json:"exclude,omitempty" doc:"Devices that are not to be tried again."`
	Since     *time.Time     `json:"since,omitempty"`
	Read      bool           `json:"read" doc:"A router has read it; until then it waits in Kafka behind others."`
	Parked    string         `json:"parked,omitempty" doc:"Why a router set it aside in the log."`
	ParkedAt  *time.Time     `json:"parked_at,omitempty"`
	NotBefore *time.Time     `json:"not_before,omitempty"`
	Deadline  *time.Time     `json:"deadline,omitempty"`
	Devices   int            `json:"devices" doc:"That are known."`
	Able      int            `json:"able" doc:"Of these, that could run it."`
	Slots     int            `json:"slots" doc:"Of the able ones, together."`
	Used      int            `json:"used" doc:"Tasks that the able ones have now."`
	Merged    bool           `json:"merged,omitempty" doc:"Requests of its endpoint are merged: a slot takes many tasks at once."`
	Out       map[string]int `json:"out,omitempty" doc:"Why the others cannot: model, tags, silent, draining, breaker_open, throttled, excluded."`
}

// Placement is one device that a router chose for a task.
type Placement struct {
	Attempt    int             `json:"attempt"`
	Device     string          `json:"device"`
	At         time.Time       `json:"at"`
	WaitedMS   float64         `json:"waited_ms" doc:"In the router."`
	Policy     string          `json:"policy,omitempty"`
	Why        string          `json:"why,omitempty"`
	Of         int             `json:"of,omitempty" doc:"Devices that could have run it."`
	Candidates []ScoredDevice  `json:"candidates,omitempty" doc:"The best of them, the chosen one first."`
	Out        map[string]int  `json:"out,omitempty" doc:"Why the other devices could not."`
	Outcome    task.Outcome    `json:"outcome,omitempty" doc:"Of the attempt, once it has one."`
	Class      task.ErrorClass `json:"error_class,omitempty"`
	DurationMS float64         `json:"duration_ms,omitempty"`
}

// ScoredDevice is a device as the policy saw it.
type ScoredDevice struct {
	Device    string   `json:"device"`
	Score     *float64 `json:"score,omitempty" doc:"Lower is better."`
	Unit      string   `json:"unit,omitempty"`
	Used      int      `json:"used"`
	Slots     int      `json:"slots"`
	Limit     int      `json:"limit"`
	ServiceMS float64  `json:"service_ms,omitempty"`
}

type whyOutput struct{ Body Why }

func (s *Server) routeWhy() {
	huma.Register(s.api, huma.Operation{OperationID: "why-task", Method: http.MethodGet, Path: "/v1/tasks/{id}/why", Tags: []string{"tasks"},
		Summary: "Why a task waits, or went where it went", Errors: []int{400, 404, 503}}, s.why)
}

func (s *Server) why(ctx context.Context, in *cancelInput) (*whyOutput, error) {
	key, err := keyOf(in.r)
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
	if err != nil && !errors.Is(err, audit.ErrNotFound) && recent == nil {
		return nil, s.away(ctx, err) // of a new task more is known than Postgres knows
	}
	out := Why{ID: st.ID, Tenant: st.Tenant, State: st.State, Attempts: placements(rows)}
	if st.State == task.Pending {
		w := waitingOf(&st, rows)
		if recent != nil {
			w.Priority, w.Level = recent.Priority, recent.Level
		}
		if err := s.lookAround(qctx, key, st.Endpoint, &w); err != nil {
			s.log.Warn("why a task waits is not known now", "trace_id", traceOf(ctx), "error", err)
			return nil, later("the task waits; for what is not known while Redis does not answer. Ask again in a moment")
		}
		out.Waiting = &w
	}
	out.Sentence = sentence(&out, &st, time.Now())
	return &whyOutput{out}, nil
}

// waitingOf is what the events tell of what a task waits for.
func waitingOf(st *Status, rows []audit.EventRow) Waiting {
	w := Waiting{Priority: st.Priority, Model: st.Model, Since: st.SubmittedAt, Deadline: st.Deadline}
	for i := range rows {
		e := &rows[i]
		switch e.Action {
		case task.TaskAccepted, task.TaskQueued:
			wishes, _ := task.ReadWishes(e.Detail)
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
			w.Since, w.Read = timeOf(e.Time), false // a router has to read it anew
		}
	}
	return w
}

// lookAround fills in what only Redis knows: what the fleet is like now, and
// where the task ranks since somebody changed that.
func (s *Server) lookAround(ctx context.Context, key task.Key, endpoint string, w *Waiting) error {
	marks, err := s.deps.Marks.Marks(ctx, key)
	if err != nil {
		return err
	}
	if marks[0].Priority != "" {
		w.Priority = marks[0].Priority
	}
	if marks[0].Level >= 0 {
		w.Level = marks[0].Level
	}
	ds, err := s.deps.Registry.List(ctx)
	if err != nil {
		return err
	}
	_, healths, err := s.deps.Rates.Load(ctx)
	if err != nil {
		return err
	}
	class := device.ClassEach
	if task.Merged(endpoint) {
		class, w.Merged = device.ClassMerged, true
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

// placements are the devices that routers chose, with what came of each.
func placements(rows []audit.EventRow) []Placement {
	var out []Placement
	at := map[int]int{} // by attempt; of one that was assigned twice, the last
	for i := range rows {
		e := &rows[i]
		switch e.Action {
		case task.TaskAssigned:
			p := Placement{Attempt: e.Attempt, Device: e.Device, At: e.Time.UTC(), WaitedMS: float64(e.Duration) / float64(time.Millisecond)}
			var d struct {
				Policy     string
				Why        string
				Of         int
				Candidates []ScoredDevice
				Out        map[string]int
			}
			if json.Unmarshal(e.Detail, &d) == nil {
				p.Policy, p.Why, p.Of, p.Candidates, p.Out = d.Policy, d.Why, d.Of, d.Candidates, d.Out
			}
			at[e.Attempt] = len(out)
			out = append(out, p)
		case task.AttemptSucceeded, task.AttemptFailed:
			// Tries again on the same device are attempts without an assignment.
			j, ok := at[e.Attempt]
			if !ok {
				j = len(out)
				at[e.Attempt] = j
				out = append(out, Placement{Attempt: e.Attempt, Device: e.Device, At: e.Time.UTC(), Why: "it was tried there again"})
			}
			out[j].Outcome, out[j].Class, out[j].DurationMS = e.Outcome, e.ErrorClass, float64(e.Duration)/float64(time.Millisecond)
		}
	}
	return out
}
