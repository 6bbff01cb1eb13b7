package api

import (
	"context"
	"errors"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/batchyard/batchyard/api/explain"
	"github.com/batchyard/batchyard/producer"
	"github.com/batchyard/batchyard/status"
	"github.com/batchyard/batchyard/task"
)

// Why explains where a task is and how it came there.
type Why = explain.Why

type whyOutput struct{ Body *Why }

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
	w, err := s.explain(ctx, key)
	if err != nil {
		return nil, err
	}
	return &whyOutput{w}, nil
}

// explain explains a task; the error is a problem.
func (s *Server) explain(ctx context.Context, key task.Key) (*Why, error) {
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
	fleet := explain.Deps{Registry: s.deps.Registry, Presence: s.deps.Presence, Overrides: s.deps.Overrides, Rates: s.deps.Rates, Credits: s.deps.Credits}
	w, err := fleet.Of(qctx, toExplain(&st, recent), rows)
	if err != nil {
		s.log.Warn("explaining a waiting task failed", "trace_id", traceOf(ctx), "error", err)
		return nil, later("the task waits; for what is unknown while Redis does not answer. Try again in a moment")
	}
	return w, nil
}

// toExplain returns what is known of a task; recent is nil unless it was submitted moments ago.
func toExplain(st *Status, recent *producer.Recent) *explain.Task {
	t := &explain.Task{
		Key: task.Key{Tenant: st.Tenant, ID: st.ID}, State: st.State, Model: st.Model, Endpoint: st.Endpoint, Priority: st.Priority,
		DeviceID: st.DeviceID, Error: st.Error, SubmittedAt: st.SubmittedAt, Deadline: st.Deadline,
	}
	if recent != nil {
		t.Priority, t.Level, t.LevelKnown = recent.Priority, recent.Level, true
	}
	return t
}
