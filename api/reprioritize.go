package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/producer"
	"github.com/batchyard/batchyard/task"
)

// PriorityIn is a change of a waiting task's priority.
type PriorityIn struct {
	Priority task.Priority `json:"priority,omitempty" enum:"high,normal,low" doc:"Leave it out to keep it."`
	Level    *int          `json:"level,omitempty" minimum:"0" maximum:"9" doc:"Level within the priority, 9 first. Leave it out to keep it."`
}

// Reprioritized answers a change of priority.
type Reprioritized struct {
	ID     string                 `json:"task_id"`
	Tenant string                 `json:"tenant"`
	State  task.State             `json:"state" doc:"As far as is known. A task that is assigned in the meantime keeps its old priority."`
	From   producer.PriorityLevel `json:"from"`
	To     producer.PriorityLevel `json:"to"`
}

type priorityOutput struct{ Body Reprioritized }

func (s *Server) routePriority() {
	const path = "/v1/tasks/{task_id}"
	huma.Register(s.api, answering(huma.Operation{OperationID: "reprioritize-task", Method: http.MethodPatch, Path: path, Tags: []string{"tasks"},
		Summary: "Change the priority of a waiting task", DefaultStatus: http.StatusAccepted,
		Description: "202 means that the task moves: at once in the router that holds it, or when a router reads it from Kafka. " +
			"409 means that it has finished, or is at a device already.",
		Parameters: params(taskParam, tenantParam)},
		http.StatusNotFound, http.StatusConflict, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusServiceUnavailable), s.reprioritize)
	s.takesJSON(http.MethodPatch, path, reflect.TypeFor[PriorityIn](), map[string]any{"priority": "high", "level": 7})
	in := s.api.OpenAPI().Components.Schemas.Map()["PriorityIn"]
	in.Properties["priority"].Enum = append(anys(task.Priorities...), "", nil)
	given := func(name string) *huma.Schema {
		return &huma.Schema{Required: []string{name}, Properties: map[string]*huma.Schema{name: {Not: &huma.Schema{Enum: []any{nil, ""}}}}}
	}
	in.AnyOf = []*huma.Schema{given("priority"), given("level")}
}

// check returns what is wrong, as a *task.FieldError, or nil.
func (in *PriorityIn) check() error {
	switch {
	case in.Priority == "" && in.Level == nil:
		return &task.FieldError{Problem: "nothing to change", Remedy: "send priority, level or both"}
	case in.Priority != "" && !slices.Contains(task.Priorities, in.Priority):
		names := make([]string, len(task.Priorities))
		for i, p := range task.Priorities {
			names[i] = string(p)
		}
		return &task.FieldError{Field: "priority", Problem: fmt.Sprintf("unknown priority %q", clipName(string(in.Priority))), Remedy: "use " + strings.Join(names, ", ")}
	case in.Level != nil && (*in.Level < 0 || *in.Level > task.MaxLevel):
		return &task.FieldError{Field: "level", Problem: fmt.Sprintf("%d is out of range", *in.Level), Remedy: fmt.Sprintf("use 0 to %d, %d first", task.MaxLevel, task.MaxLevel)}
	}
	return nil
}

func (s *Server) reprioritize(ctx context.Context, in *request) (*priorityOutput, error) {
	key, err := taskOf(in.r)
	if err != nil {
		return nil, err
	}
	var want PriorityIn
	if err := s.readObject(in, &want); err != nil {
		return nil, err
	}
	if err := want.check(); err != nil {
		return nil, unfit(err)
	}
	st, recent, err := s.look(ctx, key)
	if err != nil {
		return nil, err
	}
	if p := tooLate(&st); p != nil {
		return nil, p
	}
	if recent == nil {
		if r, ok, err := s.deps.Producer.Recent(ctx, key); err == nil && ok {
			recent = r
		}
	}
	from, err := s.standing(ctx, &st, recent)
	if err != nil {
		return nil, err
	}
	if recent == nil {
		recent = recentOfStatus(&st)
	}
	change := device.PriorityChange{Priority: want.Priority, Level: -1}
	if want.Level != nil {
		change.Level = *want.Level
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.SubmitTimeout)
	defer cancel()
	switch err := s.deps.Producer.Reprioritize(ctx, recent, from, change, originOf(in.r, key.Tenant)); {
	case errors.Is(err, producer.ErrNoRedis):
		s.log.Warn("changing the priority of a task failed", "trace_id", traceOf(ctx), "error", err)
		return nil, later("Redis does not answer: the priority is unchanged; send the request again in a moment")
	case err != nil:
		s.log.Warn("writing a change of priority to Kafka failed", "trace_id", traceOf(ctx), "error", err)
		return nil, later("Kafka did not answer in time: the priority may or may not be changed; send the request again")
	}
	return &priorityOutput{Reprioritized{key.ID, key.Tenant, st.State, from, from.With(change)}}, nil
}

// tooLate says why the priority of a task cannot change; nil if it still waits.
func tooLate(st *Status) *Problem {
	var p *Problem
	switch {
	case st.State.Terminal():
		p = problem(http.StatusConflict, "the task has already finished as %s", st.State)
	case st.State == task.Assigned:
		p = problem(http.StatusConflict, "the task is already at device %s, which runs its tasks in the order it got them", st.DeviceID)
	case st.State == task.Running:
		p = problem(http.StatusConflict, "the task is already running on device %s", st.DeviceID)
	default:
		return nil
	}
	p.State = st.State
	return p
}

// standing returns the priority and level of a waiting task: those of its submit, or
// of the events of its arrival, with the last change on top.
func (s *Server) standing(ctx context.Context, st *Status, recent *producer.Recent) (producer.PriorityLevel, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	key := task.Key{Tenant: st.Tenant, ID: st.ID}
	out := producer.PriorityLevel{Priority: cmp.Or(st.Priority, task.Normal)}
	if recent != nil {
		out.Priority, out.Level = cmp.Or(recent.Priority, out.Priority), recent.Level
	} else if rows, err := s.deps.Store.Events(ctx, key); err == nil {
		for i := range rows {
			if a := rows[i].Action; a == task.TaskAccepted || a == task.TaskQueued {
				w, _ := task.ReadConstraints(rows[i].Detail)
				out.Level = w.Level
			}
		}
	}
	overrides, err := s.deps.Overrides.Get(ctx, key)
	if err != nil {
		s.log.Warn("changing the priority of a task failed", "trace_id", traceOf(ctx), "error", err)
		return out, later("Redis does not answer: the priority is unchanged; send the request again in a moment")
	}
	if overrides[0].Cancelled {
		return out, problem(http.StatusConflict, "the task has been cancelled")
	}
	out.Priority = cmp.Or(overrides[0].Priority, out.Priority)
	if overrides[0].Level >= 0 {
		out.Level = overrides[0].Level
	}
	return out, nil
}
