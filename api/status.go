package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/batchyard/batchyard/producer"
	"github.com/batchyard/batchyard/status"
	"github.com/batchyard/batchyard/task"
)

// Status is the state of a task, with its result once it has one. Times are UTC.
type Status struct {
	ID          string            `json:"task_id"`
	Tenant      string            `json:"tenant"`
	State       task.State        `json:"state"`
	Model       string            `json:"model,omitempty"`
	Requested   string            `json:"requested_model,omitempty" doc:"The model asked for, if another answered."`
	Endpoint    string            `json:"endpoint,omitempty"`
	Priority    task.Priority     `json:"priority,omitempty"`
	JobID       string            `json:"job_id,omitempty"`
	CustomID    string            `json:"custom_id,omitempty"`
	TraceID     string            `json:"trace_id,omitempty"`
	DeviceID    string            `json:"device_id,omitempty" doc:"The device it runs on, or ran on last."`
	Generation  int               `json:"generation,omitempty" minimum:"0" doc:"Which run of the task this is: missing for the first, n for the nth retry on request."`
	Attempt     int               `json:"attempt" minimum:"0" doc:"Number of the current or last attempt; 0 before the first."`
	Attempts    []task.Attempt    `json:"attempts,omitempty" doc:"Every attempt, once the task has finished."`
	HTTPStatus  int               `json:"status,omitempty" doc:"HTTP status of the device's last answer."`
	Output      json.RawMessage   `json:"output,omitempty" doc:"The device's answer, as it came."`
	Error       *task.Error       `json:"error,omitempty"`
	LastError   *task.Error       `json:"last_error,omitempty" doc:"Why the last attempt failed, while the task has not ended."`
	Usage       *task.Usage       `json:"usage,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	SubmittedAt *time.Time        `json:"submitted_at,omitempty"`
	AssignedAt  *time.Time        `json:"assigned_at,omitempty"`
	StartedAt   *time.Time        `json:"started_at,omitempty"`
	FinishedAt  *time.Time        `json:"finished_at,omitempty"`
	Deadline    *time.Time        `json:"deadline,omitempty"`
	CallbackURL string            `json:"callback_url,omitempty"`
}

// timeOf returns the time in UTC, nil for the zero time.
func timeOf(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func statusOfRow(r *status.TaskRow) Status {
	s := Status{
		ID: r.ID, Tenant: r.Tenant, State: r.State, Model: r.Model, Endpoint: r.Endpoint, Priority: r.Priority, JobID: r.Job,
		CustomID: r.CustomID, TraceID: r.TraceID, DeviceID: r.Device, Generation: r.Generation, Attempt: r.Attempt,
		SubmittedAt: timeOf(r.SubmittedAt), AssignedAt: timeOf(r.AssignedAt), StartedAt: timeOf(r.StartedAt),
		FinishedAt: timeOf(r.FinishedAt), Deadline: timeOf(r.Deadline), CallbackURL: r.CallbackURL,
	}
	switch {
	case r.ErrorClass == task.ClassNone:
	case r.State == task.Failed || r.State == task.Cancelled || r.State == task.Expired:
		s.Error = &task.Error{Class: r.ErrorClass, Message: r.ErrorMessage}
	case !r.State.Terminal():
		s.LastError = &task.Error{Class: r.ErrorClass, Message: r.ErrorMessage}
	}
	if res := r.Result; res != nil {
		s.Requested, s.Attempts, s.HTTPStatus, s.Error, s.Labels = res.RequestedModel, res.Attempts, res.Status, res.Error, res.Labels
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
		ID: r.ID, Tenant: r.Tenant, State: task.Pending, Model: r.Model, Endpoint: r.Endpoint, Priority: r.Priority, JobID: r.Job,
		CustomID: r.CustomID, TraceID: r.TraceID, Labels: r.Labels, Generation: r.Generation, SubmittedAt: timeOf(r.SubmittedAt), Deadline: timeOf(r.Deadline),
	}
	if r.Callback != nil {
		s.CallbackURL = r.Callback.URL
	}
	return s
}

type statusOutput struct{ Body Status }

// List is a page of tasks.
type List struct {
	Tasks []Status `json:"tasks"`
	Next  string   `json:"next,omitempty" doc:"The cursor of the next page; missing on the last."`
}

type listOutput struct{ Body List }

// CancelRequested answers a request to cancel a task.
type CancelRequested struct {
	ID     string     `json:"task_id"`
	Tenant string     `json:"tenant"`
	State  task.State `json:"state" doc:"Before the cancel takes effect."`
}

type cancelOutput struct{ Body CancelRequested }

// TaskEvent is one event of a task. An id that does not apply is missing.
type TaskEvent struct {
	Time       time.Time       `json:"time"`
	Action     task.Action     `json:"action"`
	Outcome    task.Outcome    `json:"outcome"`
	ActorType  task.ActorType  `json:"actor_type"`
	ActorID    string          `json:"actor_id,omitempty"`
	SourceAddr string          `json:"source_addr,omitempty" doc:"Where the request came from."`
	UserAgent  string          `json:"user_agent,omitempty"`
	ErrorClass task.ErrorClass `json:"error_class,omitempty"`
	BatchID    string          `json:"batch_id,omitempty"`
	DeviceID   string          `json:"device_id,omitempty"`
	Attempt    int             `json:"attempt,omitempty"`
	DurationMS float64         `json:"duration_ms,omitempty"`
	Detail     json.RawMessage `json:"detail,omitempty" doc:"A JSON object whose members depend on the action."`
}

// Timeline lists the events of a task, oldest first.
type Timeline struct {
	Events []TaskEvent `json:"events"`
}

type timelineOutput struct{ Body Timeline }

// defaultLimit is how many tasks a page has unless the client says otherwise.
const defaultLimit = 100

// waits are the values of ?wait=: seconds, or a duration as Go writes it, of which
// the description knows the same pattern.
const waits = `^([0-9]{1,6}(\.[0-9]{1,6})?|([0-9]{1,4}h)?([0-9]{1,4}m)?([0-9]{1,5}(\.[0-9]{1,9})?s)?([0-9]{1,6}(\.[0-9]{1,9})?(ms|us|µs|ns))?)$`

var waitPattern = regexp.MustCompile(waits)

func (s *Server) routeStatus() {
	const one = "/v1/tasks/{task_id}"
	tags := []string{"tasks"}
	huma.Register(s.api, answering(huma.Operation{OperationID: "get-task", Method: http.MethodGet, Path: one, Tags: tags,
		Summary: "Get the state of a task, with its result once it has one",
		Parameters: append(params(taskParam, tenantParam), &huma.Param{Name: "wait", In: "query", Example: "30s",
			Description: fmt.Sprintf("Wait for the task to finish, for at most this long: 30s, or 30. Capped at %s; when the time is over, the state is that of the moment.", s.cfg.MaxWait),
			Schema:      &huma.Schema{Type: huma.TypeString, MinLength: ptr(1), Pattern: waits}})},
		http.StatusNotFound, http.StatusServiceUnavailable), s.status)
	huma.Register(s.api, answering(huma.Operation{OperationID: "list-tasks", Method: http.MethodGet, Path: "/v1/tasks", Tags: tags,
		Summary: "List tasks, without their results", Description: "Newest first; those of a job by id, the last first.",
		Parameters: append(params(tenantParam),
			&huma.Param{Name: "state", In: "query", Description: "Only tasks in this state; small letters will do.", Schema: &huma.Schema{Type: huma.TypeString, Enum: anys(task.States...)}, Example: string(task.Failed)},
			&huma.Param{Name: "job_id", In: "query", Description: "Only tasks of this job.", Schema: idSchema(), Example: "nightly-7"},
			&huma.Param{Name: "limit", In: "query", Description: "Tasks a page.", Schema: &huma.Schema{Type: huma.TypeInteger, Minimum: ptr(1.0), Maximum: ptr(float64(status.MaxLimit)), Default: defaultLimit}, Example: 20},
			&huma.Param{Name: "cursor", In: "query", Description: "The `next` of the previous page, to go with the same filters.", Schema: &huma.Schema{Type: huma.TypeString, MinLength: ptr(1), MaxLength: ptr(1024), Pattern: `^[A-Za-z0-9_-]+$`}})},
		http.StatusServiceUnavailable), s.list)
	huma.Register(s.api, answering(huma.Operation{OperationID: "cancel-task", Method: http.MethodPost, Path: one + "/cancel", Tags: tags,
		Summary: "Cancel a task", DefaultStatus: http.StatusAccepted,
		Description: "202 means that the task ends as CANCELLED, unless another result comes first. 409 means that it has finished already.",
		Parameters:  params(taskParam, tenantParam)},
		http.StatusNotFound, http.StatusConflict, http.StatusServiceUnavailable), s.cancel)
	huma.Register(s.api, answering(huma.Operation{OperationID: "list-task-events", Method: http.MethodGet, Path: one + "/events", Tags: tags,
		Summary: "List what happened to a task, oldest first", Parameters: params(taskParam, tenantParam)},
		http.StatusNotFound, http.StatusServiceUnavailable), s.events)
	s.routePriority()
	s.routeRetry()
	s.routeWhy()
}

// look returns the state of a task: from Postgres, or, while Postgres does not have
// it yet, from what was submitted moments ago, which is then returned as well.
func (s *Server) look(ctx context.Context, key task.Key) (Status, *producer.Recent, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	row, err := s.deps.Store.Task(ctx, key)
	if err == nil && !row.State.Terminal() {
		return statusOfRow(row), nil, nil
	}
	// A finished task may have been retried a moment ago.
	recent, ok, redisErr := s.deps.Producer.Recent(ctx, key)
	switch {
	case err == nil && (!ok || recent.Generation <= row.Generation):
		return statusOfRow(row), nil, nil
	case ok:
		return statusOfRecent(recent), recent, nil
	case !errors.Is(err, status.ErrNotFound):
		s.log.Warn("reading the status of a task failed", "trace_id", traceOf(ctx), "error", err)
		return Status{}, nil, later("the state of the task is unknown while Postgres does not answer; try again in a moment")
	case redisErr != nil:
		s.log.Warn("reading the status of a task failed", "trace_id", traceOf(ctx), "error", redisErr)
		return Status{}, nil, later("the task is not in Postgres, and Redis, which has the newest tasks, does not answer; try again in a moment")
	}
	return Status{}, nil, problem(http.StatusNotFound, "this tenant has no such task")
}

func (s *Server) status(ctx context.Context, in *request) (*statusOutput, error) {
	key, err := taskOf(in.r)
	if err != nil {
		return nil, err
	}
	wait, err := s.waitOf(in.query("wait"))
	if err != nil {
		return nil, err
	}
	st, _, err := s.look(ctx, key)
	if err != nil {
		return nil, err
	}
	if wait > 0 && !st.State.Terminal() {
		s.await(ctx, task.Run{Key: key, Generation: st.Generation}, wait)
		if again, _, err := s.look(ctx, key); err == nil {
			st = again // if not, what was known before is still an answer
		}
	}
	if !st.State.Terminal() && st.Attempt > 0 && (st.LastError == nil || st.LastError.Message == "") {
		s.lastError(ctx, key, &st)
	}
	return &statusOutput{st}, nil
}

// lastError finds out in the audit log why the last attempt of a task failed. Its row says so only while it waits for a
// router. Without Postgres, what is known of it is an answer.
func (s *Server) lastError(ctx context.Context, key task.Key, st *Status) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	rows, err := s.deps.Store.Events(ctx, key)
	if err != nil {
		return
	}
	for _, e := range slices.Backward(rows) {
		switch e.Action {
		case task.TaskRetried: // what was before is another run
			return
		case task.AttemptFailed:
			var d struct{ Message string }
			_ = json.Unmarshal(e.Detail, &d) // the class is enough
			st.LastError = &task.Error{Class: e.ErrorClass, Message: d.Message}
			return
		}
	}
}

// await returns when the run has finished, the time is over, the client is gone or
// the server drains.
func (s *Server) await(ctx context.Context, run task.Run, wait time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	go func() {
		select {
		case <-s.stopping:
			cancel()
		case <-ctx.Done():
		}
	}()
	if _, err := s.deps.Store.WaitTask(ctx, run); err != nil && ctx.Err() == nil {
		// Postgres is down: there is nothing to wait for.
		s.log.Debug("waiting for a task failed", "trace_id", traceOf(ctx), "error", err)
	}
}

// waitOf reads ?wait=: a duration, or seconds.
func (s *Server) waitOf(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	if !waitPattern.MatchString(text) {
		return 0, queryProblem("wait", "not a duration: send 30s, or 30 for seconds")
	}
	if strings.Trim(text, "0123456789.") == "" {
		text += "s"
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, queryProblem("wait", "not a duration: send 30s, or 30 for seconds")
	}
	return min(d, s.cfg.MaxWait), nil
}

// queryProblem refuses one query parameter.
func queryProblem(name, detail string) *Problem {
	return fieldProblem(http.StatusUnprocessableEntity, []ProblemError{{name, detail}}, 0)
}

// filterOf reads the query of a list.
func filterOf(in *request) (status.Filter, error) {
	tenant, _, err := tenantOf(in.r)
	if err != nil {
		return status.Filter{}, err
	}
	f := status.Filter{Tenant: tenant, Job: in.query("job_id"), Cursor: in.query("cursor"), Limit: defaultLimit}
	if state := in.query("state"); state != "" {
		if f.State, err = task.ParseState(clipName(state)); err != nil {
			var fe *task.FieldError
			errors.As(err, &fe)
			return f, queryProblem("state", fe.Problem+"; "+fe.Remedy)
		}
	}
	if f.Job != "" {
		if bad := badName(f.Job); bad != "" {
			return f, queryProblem("job_id", bad+": send 1 to 128 printable characters")
		}
	}
	if limit := in.query("limit"); limit != "" {
		f.Limit, err = strconv.Atoi(limit)
		if err != nil || f.Limit < 1 || f.Limit > status.MaxLimit {
			return f, queryProblem("limit", fmt.Sprintf("not a number from 1 to %d: send one, or leave it out for %d", status.MaxLimit, defaultLimit))
		}
	}
	return f, nil
}

func (s *Server) list(ctx context.Context, in *request) (*listOutput, error) {
	f, err := filterOf(in)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	rows, next, err := s.deps.Store.Tasks(ctx, f)
	switch {
	case errors.Is(err, status.ErrBadCursor):
		return nil, queryProblem("cursor", "invalid cursor: send the `next` of the previous page, with the same filters")
	case err != nil:
		return nil, s.postgresDown(ctx, err)
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

// postgresDown is the answer while Postgres does not answer.
func (s *Server) postgresDown(ctx context.Context, err error) error {
	s.log.Warn("querying Postgres failed", "trace_id", traceOf(ctx), "error", err)
	return later("Postgres does not answer; try again in a moment. Tasks are still accepted and run")
}

func (s *Server) cancel(ctx context.Context, in *request) (*cancelOutput, error) {
	key, err := taskOf(in.r)
	if err != nil {
		return nil, err
	}
	st, recent, err := s.look(ctx, key)
	if err != nil {
		return nil, err
	}
	if st.State.Terminal() {
		p := problem(http.StatusConflict, "the task has already finished as %s", st.State)
		p.State = st.State
		return nil, p
	}
	if err := s.cancelTask(ctx, in.r, &st, recent); err != nil {
		return nil, err
	}
	return &cancelOutput{CancelRequested{key.ID, key.Tenant, st.State}}, nil
}

// cancelTask cancels an unfinished task; the error is a problem. recent is nil if it is not known.
func (s *Server) cancelTask(ctx context.Context, r *http.Request, st *Status, recent *producer.Recent) error {
	key := task.Key{Tenant: st.Tenant, ID: st.ID}
	if recent == nil {
		// What was submitted moments ago is remembered with its callback and labels,
		// which the result then carries.
		if found, ok, err := s.deps.Producer.Recent(ctx, key); err == nil && ok {
			recent = found
		} else {
			recent = recentOfStatus(st)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.SubmitTimeout)
	defer cancel()
	if err := s.deps.Producer.Cancel(ctx, recent, originOf(r, key.Tenant)); err != nil {
		s.log.Warn("writing a cancel to Kafka failed", "trace_id", traceOf(ctx), "error", err)
		return later("Kafka did not answer in time: the task may or may not be cancelled; send the request again")
	}
	return nil
}

func recentOfStatus(st *Status) *producer.Recent {
	r := &producer.Recent{ID: st.ID, Tenant: st.Tenant, Model: st.Model, Endpoint: st.Endpoint, Priority: st.Priority,
		Job: st.JobID, CustomID: st.CustomID, TraceID: st.TraceID, Generation: st.Generation}
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

func (s *Server) events(ctx context.Context, in *request) (*timelineOutput, error) {
	key, err := taskOf(in.r)
	if err != nil {
		return nil, err
	}
	qctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	rows, err := s.deps.Store.Events(qctx, key)
	if err != nil && !errors.Is(err, status.ErrNotFound) {
		return nil, s.postgresDown(ctx, err)
	}
	if len(rows) == 0 {
		if _, _, err := s.look(ctx, key); err != nil {
			return nil, err
		}
	}
	out := &timelineOutput{Timeline{Events: make([]TaskEvent, len(rows))}}
	for i, e := range rows {
		out.Body.Events[i] = TaskEvent{
			Time: e.Time.UTC(), Action: e.Action, Outcome: e.Outcome, ActorType: e.ActorType, ActorID: e.ActorID, SourceAddr: e.SourceAddr,
			UserAgent: e.UserAgent, ErrorClass: e.ErrorClass, BatchID: e.BatchID, DeviceID: e.DeviceID, Attempt: e.Attempt,
			DurationMS: float64(e.Duration) / float64(time.Millisecond), Detail: json.RawMessage(e.Detail),
		}
	}
	return out, nil
}
