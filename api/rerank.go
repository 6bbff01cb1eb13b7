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

// RankIn is what may be changed of a task that waits.
type RankIn struct {
	Priority task.Priority `json:"priority,omitempty" enum:"high,normal,low" doc:"Left out: as it is."`
	Level    *int          `json:"level,omitempty" minimum:"0" maximum:"9" doc:"Within the priority, 9 first. Left out: as it is."`
}

// Reranked answers a change of priority.
type Reranked struct {
	ID     string            `json:"id"`
	Tenant string            `json:"tenant"`
	State  task.State        `json:"state" doc:"As far as is known. A task that goes to a device meanwhile goes as it was."`
	From   producer.Standing `json:"from"`
	To     producer.Standing `json:"to"`
}

type rankOutput struct{ Body Reranked }

func (s *Server) routeRank() {
	const path = "/v1/tasks/{id}"
	in := s.api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[RankIn](), true, "Rank")
	huma.Register(s.api, huma.Operation{OperationID: "patch-task", Method: http.MethodPatch, Path: path, Tags: []string{"tasks"},
		Summary: "Change the priority of a task that waits", DefaultStatus: http.StatusAccepted,
		Description: "202 means that routers rank it anew: at once the one that holds it, or, while it is still unread in Kafka, the one that reads it. " +
			"409 says that it has ended, or that it is at a device already.",
		Errors: []int{400, 404, 409, 413, 422, 503}}, s.rerank)
	s.api.OpenAPI().Paths[path].Patch.RequestBody = &huma.RequestBody{ // afterwards: see routeTasks
		Required: true, Content: map[string]*huma.MediaType{"application/json": {Schema: in}},
	}
}

func (in *RankIn) check() error {
	switch {
	case in.Priority == "" && in.Level == nil:
		return &task.FieldError{Problem: "there is nothing to change", Remedy: "send priority, level or both"}
	case in.Priority != "" && !slices.Contains(task.Priorities, in.Priority):
		names := make([]string, len(task.Priorities))
		for i, p := range task.Priorities {
			names[i] = string(p)
		}
		return &task.FieldError{Field: "priority", Problem: fmt.Sprintf("%q is not a priority", clipName(string(in.Priority))), Remedy: "use " + strings.Join(names, ", ")}
	case in.Level != nil && (*in.Level < 0 || *in.Level > task.MaxLevel):
		return &task.FieldError{Field: "level", Problem: fmt.Sprintf("%d is out of range", *in.Level), Remedy: fmt.Sprintf("use 0 to %d, %d first", task.MaxLevel, task.MaxLevel)}
	}
	return nil
}

func (s *Server) rerank(ctx context.Context, in *cancelInput) (*rankOutput, error) {
	key, err := keyOf(in.r)
	if err != nil {
		return nil, err
	}
	var want RankIn
	if err := s.readObject(&in.request, &want); err != nil {
		return nil, err
	}
	if err := want.check(); err != nil {
		return nil, unfit(err)
	}
	st, recent, err := s.look(ctx, key)
	if err != nil {
		return nil, err
	}
	if p := settled(&st); p != nil {
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
	change := device.Repriority{Priority: want.Priority, Level: -1}
	if want.Level != nil {
		change.Level = *want.Level
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.SubmitTimeout)
	defer cancel()
	switch err := s.deps.Producer.Rerank(ctx, recent, from, change, originOf(in.r, key.Tenant)); {
	case errors.Is(err, producer.ErrNoRedis):
		s.log.Warn("a priority was not changed", "trace_id", traceOf(ctx), "error", err)
		return nil, later("Redis does not answer, so the priority is not changed; send the request again in a moment")
	case err != nil:
		s.log.Warn("a change of priority was not answered by Kafka", "trace_id", traceOf(ctx), "error", err)
		return nil, later("the log did not answer in time, so it is not known whether the priority is changed; send the request again")
	}
	return &rankOutput{Reranked{key.ID, key.Tenant, st.State, from, from.With(change)}}, nil
}

// settled says why a task cannot be ranked anew; nil when it waits.
func settled(st *Status) *Problem {
	var p *Problem
	switch {
	case st.State.Terminal():
		p = problem(http.StatusConflict, "the task has ended already, as %s; there is nothing to go earlier", st.State)
	case st.State == task.Assigned:
		p = problem(http.StatusConflict, "the task is at device %s already; what is there is not ranked any more", st.Device)
	case st.State == task.Running:
		p = problem(http.StatusConflict, "the task runs already, on device %s", st.Device)
	default:
		return nil
	}
	p.State = st.State
	return p
}

// standing is how a waiting task ranks, as far as anybody knows: by its submit,
// by the events of its arrival, and by the last change.
func (s *Server) standing(ctx context.Context, st *Status, recent *producer.Recent) (producer.Standing, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	key := task.Key{Tenant: st.Tenant, ID: st.ID}
	out := producer.Standing{Priority: cmp.Or(st.Priority, task.Normal)}
	if recent != nil {
		out.Priority, out.Level = cmp.Or(recent.Priority, out.Priority), recent.Level
	} else if rows, err := s.deps.Store.Events(ctx, key); err == nil {
		for i := range rows {
			if a := rows[i].Action; a == task.TaskAccepted || a == task.TaskQueued {
				w, _ := task.ReadWishes(rows[i].Detail)
				out.Level = w.Level
			}
		}
	}
	marks, err := s.deps.Marks.Marks(ctx, key)
	if err != nil {
		s.log.Warn("a priority was not changed", "trace_id", traceOf(ctx), "error", err)
		return out, later("Redis does not answer, so the priority is not changed; send the request again in a moment")
	}
	if marks[0].Cancelled {
		return out, problem(http.StatusConflict, "somebody has asked to cancel the task")
	}
	out.Priority = cmp.Or(marks[0].Priority, out.Priority)
	if marks[0].Level >= 0 {
		out.Level = marks[0].Level
	}
	return out, nil
}
