package api

import (
	"context"
	"errors"
	"net/http"
	"reflect"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"github.com/batchyard/batchyard/producer"
	"github.com/batchyard/batchyard/task"
)

// maxReason bounds what a user may say about a retry, in characters.
const maxReason = 500

// RetryIn says why a task is to run again.
type RetryIn struct {
	Reason string `json:"reason,omitempty" maxLength:"500" doc:"Why. It goes into the audit log, with who asked."`
}

// Retried answers a request to run a task again.
type Retried struct {
	ID         string     `json:"task_id"`
	Tenant     string     `json:"tenant"`
	State      task.State `json:"state" enum:"PENDING"`
	Generation int        `json:"generation" minimum:"1" doc:"Of the new run: 1 for the first retry."`
	Previous   task.State `json:"previous_state" doc:"How the earlier run ended. Its result stays in the table results."`
}

type retryOutput struct{ Body Retried }

func (s *Server) routeRetry() {
	const path = "/v1/tasks/{task_id}/retry"
	huma.Register(s.api, answering(huma.Operation{OperationID: "retry-task", Method: http.MethodPost, Path: path, Tags: []string{"tasks"},
		Summary: "Run a finished task again", DefaultStatus: http.StatusAccepted,
		Description: "202 means that a new generation of the task runs: its result becomes the answer, and is sent to the task's callback. " +
			"The earlier results stay in the history. 409 means that the task has not finished yet; 410 that Kafka no longer has the request.",
		Parameters: params(taskParam, tenantParam)},
		http.StatusNotFound, http.StatusConflict, http.StatusGone, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusServiceUnavailable), s.retry)
	s.takesJSON(http.MethodPost, path, reflect.TypeFor[RetryIn](), map[string]any{"reason": "the model was loaded with the wrong template"})
	s.api.OpenAPI().Paths[path].Post.RequestBody.Required = false
	s.api.OpenAPI().Components.Schemas.Map()["RetryIn"].Properties["reason"].Pattern = plainText
}

// check returns what is wrong, as a *task.FieldError, or nil.
func (in *RetryIn) check() error {
	switch bad := badText(in.Reason); {
	case bad != "":
		return &task.FieldError{Field: "reason", Problem: bad, Remedy: "send printable text"}
	case utf8.RuneCountInString(in.Reason) > maxReason:
		return &task.FieldError{Field: "reason", Problem: "it is too long", Remedy: "send at most 500 characters"}
	}
	return nil
}

func (s *Server) retry(ctx context.Context, in *request) (*retryOutput, error) {
	key, err := taskOf(in.r)
	if err != nil {
		return nil, err
	}
	var body RetryIn
	if in.r.ContentLength != 0 { // -1: unknown
		if err := s.readObject(in, &body); err != nil {
			return nil, err
		}
		if err := body.check(); err != nil {
			return nil, unfit(err)
		}
	}
	r, previous, err := s.retryOf(ctx, key)
	if err != nil {
		return nil, err
	}
	r.Reason = body.Reason
	ctx, cancel := context.WithTimeout(ctx, s.cfg.SubmitTimeout)
	defer cancel()
	var refused *producer.RefusedError
	switch err := s.deps.Producer.Retry(ctx, r, originOf(in.r, key.Tenant)); {
	case errors.Is(err, producer.ErrRecordGone):
		return nil, problem(http.StatusGone, "Kafka no longer has the request of this task; submit it under another id")
	case errors.Is(err, producer.ErrNoRedis):
		return nil, later("Redis does not answer, and may remember that the task was cancelled; try again in a moment")
	case errors.As(err, &refused):
		return nil, fieldProblem(http.StatusUnprocessableEntity, []ProblemError{fieldError("", refused.Refusals[0].Err)}, 0)
	case err != nil:
		s.log.Warn("writing a retry to Kafka failed", "trace_id", traceOf(ctx), "error", err)
		return nil, later("Kafka did not answer in time: the task may or may not run again; send the request again")
	}
	return &retryOutput{Retried{key.ID, key.Tenant, task.Pending, r.Generation, previous}}, nil
}

// retryOf returns what a retry of a task needs, and the state in which its last run ended.
func (s *Server) retryOf(ctx context.Context, key task.Key) (producer.Retry, task.State, error) {
	st, _, err := s.look(ctx, key)
	if err != nil {
		return producer.Retry{}, "", err
	}
	if !st.State.Terminal() {
		p := problem(http.StatusConflict, "the task has not finished: it is %s; wait for it, or cancel it first", st.State)
		p.State = st.State
		return producer.Retry{}, "", p
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	known, err := s.deps.Store.Known(ctx, []task.Key{key})
	if err != nil {
		return producer.Retry{}, "", s.postgresDown(ctx, err)
	}
	places, err := s.deps.Store.Records(ctx, key)
	if err != nil {
		return producer.Retry{}, "", s.postgresDown(ctx, err)
	}
	r := producer.Retry{Key: key, Generation: known[0].Generation + 1, Fingerprint: known[0].Fingerprint}
	for _, p := range places {
		r.Records = append(r.Records, producer.Position(p))
	}
	return r, st.State, nil
}
