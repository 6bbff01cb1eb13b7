package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/batchyard/batchyard/producer"
	"github.com/batchyard/batchyard/status"
	"github.com/batchyard/batchyard/task"
)

// Status is a task as it stands.
type Status struct {
	ID          string            `json:"id"`
	Tenant      string            `json:"tenant"`
	State       task.State        `json:"state" enum:"PENDING,ASSIGNED,RUNNING,SUCCESS,FAILED,CANCELLED,EXPIRED"`
	Model       string            `json:"model,omitempty"`
	Requested   string            `json:"requested_model,omitempty" doc:"The model asked for, when another answered."`
	Endpoint    string            `json:"endpoint,omitempty"`
	Priority    task.Priority     `json:"priority,omitempty" enum:"high,normal,low"`
	Job         string            `json:"job,omitempty"`
	CustomID    string            `json:"custom_id,omitempty"`
	TraceID     string            `json:"trace_id,omitempty"`
	Device      string            `json:"device,omitempty" doc:"Where it runs, or ran last."`
	Attempt     int               `json:"attempt" doc:"Number of the present or last attempt; 0 before the first."`
	Attempts    []task.Attempt    `json:"attempts,omitempty" doc:"What was tried, once the task has ended."`
	HTTPStatus  int               `json:"status,omitempty" doc:"Of the device's last answer."`
	Output      json.RawMessage   `json:"output,omitempty" doc:"The device's answer."`
	Error       *task.Error       `json:"error,omitempty"`
	Usage       *task.Usage       `json:"usage,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	SubmittedAt *time.Time        `json:"submitted_at,omitempty"`
	AssignedAt  *time.Time        `json:"assigned_at,omitempty"`
	StartedAt   *time.Time        `json:"started_at,omitempty"`
	FinishedAt  *time.Time        `json:"finished_at,omitempty"`
	Deadline    *time.Time        `json:"deadline,omitempty"`
	CallbackURL string            `json:"callback_url,omitempty"`
}

func timeOf(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func statusOfRow(r *status.TaskRow) Status {
	s := Status{
		ID: r.ID, Tenant: r.Tenant, State: r.State, Model: r.Model, Endpoint: r.Endpoint, Priority: r.Priority, Job: r.Job,
		CustomID: r.CustomID, TraceID: r.TraceID, Device: r.Device, Attempt: r.Attempt,
		SubmittedAt: timeOf(r.SubmittedAt), AssignedAt: timeOf(r.AssignedAt), StartedAt: timeOf(r.StartedAt),
		FinishedAt: timeOf(r.FinishedAt), Deadline: timeOf(r.Deadline), CallbackURL: r.CallbackURL,
	}
	if r.ErrorClass != task.ClassNone && (r.State == task.Failed || r.State == task.Cancelled || r.State == task.Expired) {
		s.Error = &task.Error{Class: r.ErrorClass, Message: r.ErrorMessage}
	}
	if res := r.Result; res != nil {
		s.Requested, s.Attempts, s.HTTPStatus, s.Error, s.Labels = res.Requested, res.Attempts, res.Status, res.Error, res.Labels
		if len(res.Output) > 0 {
			s.Output = json.RawMessage(res.Output)
		}
		if res.Usage != (task.Usage{}) {
			s.Usage = &res.Usage
		}
	}
	return s
}

func statusOfRecent(r *producer.Recent) Status {
	s := Status{
		ID: r.ID, Tenant: r.Tenant, State: task.Pending, Model: r.Model, Endpoint: r.Endpoint, Priority: r.Priority, Job: r.Job,
		CustomID: r.CustomID, TraceID: r.TraceID, Labels: r.Labels, SubmittedAt: timeOf(r.SubmittedAt), Deadline: timeOf(r.Deadline),
	}
	if r.Callback != nil {
		s.CallbackURL = r.Callback.URL
	}
	return s
}

type idParam struct {
	ID string `path:"id" doc:"Id of the task."`
}

type statusInput struct {
	request
	headerParams
	idParam
	Wait string `query:"wait" doc:"Wait for the end of the task, at most so long: 30s, or 30." example:"30s"`
}

type statusOutput struct{ Body Status }

type listInput struct {
	request
	headerParams
	State  string `query:"state" doc:"Only tasks in this state."`
	Job    string `query:"job" doc:"Only tasks of this job."`
	Limit  int    `query:"limit" default:"100" minimum:"1" maximum:"1000" doc:"How many at most."`
	Cursor string `query:"cursor" maxLength:"1024" doc:"The next of the page before."`
}

// List is a page of tasks.
type List struct {
	Tasks []Status `json:"tasks"`
	Next  string   `json:"next,omitempty" doc:"The cursor of the next page; missing on the last."`
}

type listOutput struct{ Body List }

// CancelAsked answers a request to cancel.
type CancelAsked struct {
	ID     string     `json:"id"`
	Tenant string     `json:"tenant"`
	State  task.State `json:"state" doc:"Before the cancel takes effect."`
}

type cancelInput struct {
	request
	headerParams
	idParam
}

type cancelOutput struct{ Body CancelAsked }

// TaskEvent is one line of a task's timeline.
type TaskEvent struct {
	Time       time.Time       `json:"time"`
	Action     task.Action     `json:"action"`
	Outcome    task.Outcome    `json:"outcome"`
	ActorType  task.ActorType  `json:"actor_type"`
	Actor      string          `json:"actor,omitempty"`
	Source     string          `json:"source,omitempty"`
	UserAgent  string          `json:"user_agent,omitempty"`
	ErrorClass task.ErrorClass `json:"error_class,omitempty"`
	Batch      string          `json:"batch,omitempty"`
	Device     string          `json:"device,omitempty"`
	Attempt    int             `json:"attempt,omitempty"`
	DurationMS float64         `json:"duration_ms,omitempty"`
	Detail     json.RawMessage `json:"detail,omitempty"`
}

// Timeline is what happened to a task, in order.
type Timeline struct {
	Events []TaskEvent `json:"events"`
}

type timelineOutput struct{ Body Timeline }

func (s *Server) routeStatus() {
	huma.Register(s.api, huma.Operation{OperationID: "get-task", Method: http.MethodGet, Path: "/v1/tasks/{id}", Tags: []string{"tasks"},
		Summary: "A task as it stands, with its result once it has one", Errors: []int{400, 404, 422, 503}}, s.status)
	huma.Register(s.api, huma.Operation{OperationID: "list-tasks", Method: http.MethodGet, Path: "/v1/tasks", Tags: []string{"tasks"},
		Summary: "Tasks, newest first; of one job: by id, the last first", Errors: []int{400, 422, 503}}, s.list)
	huma.Register(s.api, huma.Operation{OperationID: "cancel-task", Method: http.MethodPost, Path: "/v1/tasks/{id}/cancel", Tags: []string{"tasks"},
		Summary: "Ask for a task to be stopped", DefaultStatus: http.StatusAccepted,
		Description: "202 means that the task ends as CANCELLED, unless another result came first. 409 says how it has ended already.",
		Errors:      []int{400, 404, 409, 503}}, s.cancel)
	huma.Register(s.api, huma.Operation{OperationID: "task-events", Method: http.MethodGet, Path: "/v1/tasks/{id}/events", Tags: []string{"tasks"},
		Summary: "What happened to a task, in order", Errors: []int{400, 404, 503}}, s.events)
	s.routeRank()
	s.routeWhy()
}

// look tells how a task stands: by Postgres, else by what was submitted moments
// ago. row is nil in that case.
func (s *Server) look(ctx context.Context, key task.Key) (Status, *producer.Recent, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	row, err := s.deps.Store.Task(ctx, key)
	if err == nil {
		return statusOfRow(row), nil, nil
	}
	recent, ok, redisErr := s.deps.Producer.Recent(ctx, key)
	switch {
	case ok:
		return statusOfRecent(recent), recent, nil
	case !errors.Is(err, status.ErrNotFound):
		s.log.Warn("the status of a task is not known now", "trace_id", traceOf(ctx), "error", err)
		return Status{}, nil, later("the status is not known while Postgres does not answer; ask again in a moment")
	case redisErr != nil:
		s.log.Warn("the status of a task is not known now", "trace_id", traceOf(ctx), "error", redisErr)
		return Status{}, nil, later("Postgres has not heard of the task, and Redis, which would know of a new one, does not answer; ask again in a moment")
	}
	return Status{}, nil, problem(http.StatusNotFound, "there is no such task of this tenant")
}

func (s *Server) status(ctx context.Context, in *statusInput) (*statusOutput, error) {
	key, err := keyOf(in.r)
	if err != nil {
		return nil, err
	}
	wait, err := s.waitOf(in.Wait)
	if err != nil {
		return nil, err
	}
	st, _, err := s.look(ctx, key)
	if err != nil {
		return nil, err
	}
	if wait > 0 && !st.State.Terminal() {
		s.await(ctx, key, wait)
		if again, _, err := s.look(ctx, key); err == nil {
			st = again // otherwise what was known before is still an answer
		}
	}
	return &statusOutput{st}, nil
}

// await returns when the task has ended, the time is over, the client is gone
// or the server stops.
func (s *Server) await(ctx context.Context, key task.Key, wait time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	go func() {
		select {
		case <-s.stopping:
			cancel()
		case <-ctx.Done():
		}
	}()
	if _, err := s.deps.Store.WaitTask(ctx, key); err != nil && ctx.Err() == nil {
		// Postgres is away: there is nothing to wait on.
		s.log.Debug("waiting for a task", "trace_id", traceOf(ctx), "error", err)
	}
}

// waitOf reads ?wait=, which is a duration or seconds.
func (s *Server) waitOf(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		n, numErr := strconv.ParseFloat(text, 64)
		if numErr != nil || !(n >= 0 && n < 1e6) {
			d = -1
		} else {
			d = time.Duration(n * float64(time.Second))
		}
	}
	if d < 0 {
		p := problem(http.StatusUnprocessableEntity, "wait: it is no duration; send 30s, or 30")
		p.Errors = []ProblemError{{"wait", "it is no duration; send 30s, or 30"}}
		return 0, p
	}
	return min(d, s.cfg.MaxWait), nil
}

func (s *Server) list(ctx context.Context, in *listInput) (*listOutput, error) {
	tenant, _, err := tenantOf(in.r)
	if err != nil {
		return nil, err
	}
	f := status.Filter{Tenant: tenant, Job: in.Job, Limit: in.Limit, Cursor: in.Cursor}
	if in.State != "" {
		if f.State, err = task.ParseState(clipName(in.State)); err != nil {
			var fe *task.FieldError
			errors.As(err, &fe)
			return nil, fieldProblem(http.StatusUnprocessableEntity, []ProblemError{{"state", fe.Problem + "; " + fe.Remedy}}, 0)
		}
	}
	if in.Job != "" {
		if bad := badName(in.Job); bad != "" {
			return nil, nameProblem("job", bad)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	rows, next, err := s.deps.Store.Tasks(ctx, f)
	switch {
	case errors.Is(err, status.ErrBadCursor):
		return nil, fieldProblem(http.StatusUnprocessableEntity, []ProblemError{{"cursor", "it is none of ours; send the next of the page before, with the same filters"}}, 0)
	case err != nil:
		return nil, s.away(ctx, err)
	}
	out := &listOutput{List{Tasks: make([]Status, len(rows)), Next: next}}
	for i := range rows {
		out.Body.Tasks[i] = statusOfRow(&rows[i])
	}
	return out, nil
}

// clipName shortens a parameter that an error message may repeat.
func clipName(s string) string {
	if len(s) > 64 {
		return clip(s[:64])
	}
	return clip(s)
}

// away is the answer while Postgres is.
func (s *Server) away(ctx context.Context, err error) error {
	s.log.Warn("Postgres did not answer a question", "trace_id", traceOf(ctx), "error", err)
	return later("Postgres does not answer; ask again in a moment. Tasks are taken and run meanwhile")
}

func (s *Server) cancel(ctx context.Context, in *cancelInput) (*cancelOutput, error) {
	key, err := keyOf(in.r)
	if err != nil {
		return nil, err
	}
	st, recent, err := s.look(ctx, key)
	if err != nil {
		return nil, err
	}
	if st.State.Terminal() {
		p := problem(http.StatusConflict, "the task has ended already, as %s", st.State)
		p.State = st.State
		return nil, p
	}
	if recent == nil {
		// What was submitted moments ago is remembered with its callback and labels.
		if r, ok, err := s.deps.Producer.Recent(ctx, key); err == nil && ok {
			recent = r
		} else {
			recent = recentOfStatus(&st)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.SubmitTimeout)
	defer cancel()
	if err := s.deps.Producer.Cancel(ctx, recent, originOf(in.r, key.Tenant)); err != nil {
		s.log.Warn("a cancel was not answered by Kafka", "trace_id", traceOf(ctx), "error", err)
		return nil, later("the log did not answer in time, so it is not known whether the task is cancelled; ask again")
	}
	return &cancelOutput{CancelAsked{key.ID, key.Tenant, st.State}}, nil
}

func recentOfStatus(st *Status) *producer.Recent {
	r := &producer.Recent{ID: st.ID, Tenant: st.Tenant, Model: st.Model, Endpoint: st.Endpoint, Priority: st.Priority,
		Job: st.Job, CustomID: st.CustomID, TraceID: st.TraceID}
	if st.SubmittedAt != nil {
		r.SubmittedAt = *st.SubmittedAt
	}
	if st.Deadline != nil {
		r.Deadline = *st.Deadline
	}
	if st.CallbackURL != "" {
		r.Callback = &task.Callback{URL: st.CallbackURL}
	}
	return r
}

func (s *Server) events(ctx context.Context, in *cancelInput) (*timelineOutput, error) {
	key, err := keyOf(in.r)
	if err != nil {
		return nil, err
	}
	qctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	rows, err := s.deps.Store.Events(qctx, key)
	if err != nil && !errors.Is(err, status.ErrNotFound) {
		return nil, s.away(ctx, err)
	}
	if len(rows) == 0 {
		if _, _, err := s.look(ctx, key); err != nil {
			return nil, err
		}
	}
	out := &timelineOutput{Timeline{Events: make([]TaskEvent, len(rows))}}
	for i, e := range rows {
		out.Body.Events[i] = TaskEvent{
			Time: e.Time.UTC(), Action: e.Action, Outcome: e.Outcome, ActorType: e.ActorType, Actor: e.ActorID, Source: e.SourceAddr,
			UserAgent: e.UserAgent, ErrorClass: e.ErrorClass, Batch: e.Batch, Device: e.Device, Attempt: e.Attempt,
			DurationMS: float64(e.Duration) / float64(time.Millisecond), Detail: json.RawMessage(e.Detail),
		}
	}
	return out, nil
}
