package api

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/producer"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// Accepted answers a submitted task.
type Accepted struct {
	ID     string     `json:"id"`
	Tenant string     `json:"tenant"`
	State  task.State `json:"state" enum:"PENDING"`
}

// AcceptedList answers submitted tasks, in their order.
type AcceptedList struct {
	Tasks []Accepted `json:"tasks"`
}

// TaskIn describes a task to submit. Tasks are read by package task, which is
// stricter than a schema can say; this is for readers of the description.
type TaskIn struct {
	ID          string            `json:"id,omitempty" maxLength:"128" doc:"Your own id, or none. With the tenant it is the identity: submitting it again is the same task."`
	Tenant      string            `json:"tenant,omitempty" maxLength:"128" doc:"Whose task; the header says the same or nothing."`
	Model       string            `json:"model" maxLength:"256" doc:"The model that is to answer."`
	Endpoint    string            `json:"endpoint,omitempty" default:"/v1/chat/completions" enum:"/v1/chat/completions,/v1/completions,/v1/embeddings,/v1/responses,/v1/moderations"`
	Input       map[string]any    `json:"input" doc:"The body of the request to the device."`
	Priority    string            `json:"priority,omitempty" enum:"high,normal,low" default:"normal"`
	Level       int               `json:"level,omitempty" minimum:"0" maximum:"9" doc:"Within the priority, 9 first."`
	Needs       []string          `json:"needs,omitempty" maxItems:"32" doc:"Tags that the device must have."`
	DependsOn   []string          `json:"depends_on,omitempty" maxItems:"128" doc:"Kept, and not acted upon yet."`
	Session     string            `json:"session,omitempty" maxLength:"256" doc:"For policies that keep a session on one device."`
	Deadline    *time.Time        `json:"deadline,omitempty" doc:"Unfinished by then, the task ends as EXPIRED."`
	NotBefore   *time.Time        `json:"not_before,omitempty" doc:"Not run earlier."`
	MaxAttempts int               `json:"max_attempts,omitempty" minimum:"1" maximum:"20"`
	Degrade     bool              `json:"degrade,omitempty" doc:"A smaller model may answer when nothing else does."`
	Callback    *task.Callback    `json:"callback,omitempty" doc:"Where the result is posted."`
	Labels      map[string]string `json:"labels,omitempty" doc:"Yours to keep; at most 16."`
	Job         string            `json:"job,omitempty" maxLength:"128"`
	CustomID    string            `json:"custom_id,omitempty" maxLength:"512"`
	TraceID     string            `json:"trace_id,omitempty" doc:"32 hex digits; otherwise that of the traceparent header."`
}

type submitInput struct {
	request
	headerParams
	Traceparent string `header:"traceparent" doc:"W3C trace context; its trace id becomes that of the tasks."`
}

type submitOutput struct {
	Location string `header:"Location" doc:"Of the status, when one task was submitted."`
	Body     any
}

func (s *Server) routeTasks() {
	reg := s.api.OpenAPI().Components.Schemas
	one := reg.Schema(reflect.TypeFor[TaskIn](), true, "Task")
	accepted := &huma.Schema{OneOf: []*huma.Schema{
		reg.Schema(reflect.TypeFor[Accepted](), true, "Accepted"),
		reg.Schema(reflect.TypeFor[AcceptedList](), true, "AcceptedList"),
	}}
	huma.Register(s.api, huma.Operation{
		OperationID: "submit", Method: http.MethodPost, Path: "/v1/tasks", Summary: "Submit a task, or an array of tasks", Tags: []string{"tasks"},
		Description:   "All or nothing: when one task is wrong, none is taken. 202 means that all in-sync replicas have every task.",
		DefaultStatus: http.StatusAccepted,
		Responses: map[string]*huma.Response{"202": {Description: "Accepted: durable, and will end in one state.",
			Content: map[string]*huma.MediaType{"application/json": {Schema: accepted}}}},
		Errors: []int{400, 413, 415, 422, 503},
	}, s.submit)
	// Told afterwards: huma reads and checks the body of an operation that has one.
	s.api.OpenAPI().Paths["/v1/tasks"].Post.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{
		"application/json":    {Schema: &huma.Schema{OneOf: []*huma.Schema{one, {Type: huma.TypeArray, Items: one}}}},
		"application/msgpack": {Schema: one},
	}}
	s.routeStatus()
}

func (s *Server) submit(ctx context.Context, in *submitInput) (*submitOutput, error) {
	tenant, sent, err := tenantOf(in.r)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.SubmitTimeout)
	defer cancel()
	limits := s.deps.Producer.Config()
	body, release, err := s.budget.readBody(in.w, in.r, limits.MaxBody)
	defer release()
	if err != nil {
		return nil, s.refuse(ctx, in.r, tenant, asProblem(err))
	}
	endless(in.w)
	tasks, array, refused := decodeTasks(body, in.r.Header.Get("Content-Type"), limits.MaxTasks)
	if refused != nil {
		return nil, s.refuse(ctx, in.r, tenant, refused)
	}
	for i, t := range tasks {
		if t.Tenant != "" && sent && t.Tenant != tenant {
			p := fieldProblem(http.StatusBadRequest, []ProblemError{{at(array, i) + "/tenant",
				"it is not what the header " + tenantHeader + " says; send one of them, or the same in both"}}, 0)
			return nil, s.refuse(ctx, in.r, tenant, p)
		}
		t.Tenant = cmp.Or(t.Tenant, tenant)
		t.TraceID = cmp.Or(t.TraceID, traceOf(ctx))
	}
	if err := s.deps.Producer.Submit(ctx, tasks, originOf(in.r, tenant)); err != nil {
		return nil, s.notTaken(ctx, in.r, tenant, array, err)
	}
	fault.At("api.before_answer")
	list := AcceptedList{Tasks: make([]Accepted, len(tasks))}
	for i, t := range tasks {
		list.Tasks[i] = Accepted{t.ID, t.Tenant, task.Pending}
	}
	if array {
		return &submitOutput{Body: list}, nil
	}
	return &submitOutput{Location: "/v1/tasks/" + url.PathEscape(tasks[0].ID), Body: list.Tasks[0]}, nil
}

// at is the pointer to a task of the body.
func at(array bool, i int) string {
	if !array {
		return ""
	}
	return fmt.Sprintf("/%d", i)
}

// notTaken turns a producer's error into an answer.
func (s *Server) notTaken(ctx context.Context, r *http.Request, tenant string, array bool, err error) error {
	var refused *producer.RefusedError
	var large *stream.TooLargeError
	switch {
	case errors.As(err, &refused):
		errs := make([]ProblemError, len(refused.Refusals))
		for i, f := range refused.Refusals {
			errs[i] = fieldError(at(array, f.Index), f.Err)
		}
		return s.refuse(ctx, r, tenant, fieldProblem(http.StatusUnprocessableEntity, errs, refused.More))
	case errors.As(err, &large):
		return s.refuse(ctx, r, tenant, problem(http.StatusRequestEntityTooLarge, "a task is larger than Kafka takes; send less"))
	case errors.Is(err, producer.ErrClosed):
		return later("this process is stopping; send the tasks again")
	}
	s.log.Warn("a submit was not answered by Kafka", "trace_id", traceOf(ctx), "error", err)
	return later("the log did not answer in time, so it is not known whether the tasks are in; send them again with the same ids")
}

// refuse records that somebody's submit was refused, at a bounded rate.
func (s *Server) refuse(ctx context.Context, r *http.Request, tenant string, p *Problem) error {
	if p.Status >= 500 {
		return p
	}
	if !s.refused.take() {
		s.deps.Metrics.API.RefusedQuiet.Inc()
		return p
	}
	o := originOf(r, tenant)
	s.record(ctx, task.Event{
		Action: task.TaskRefused, Outcome: task.OutcomeRefused, Tenant: tenant, ActorType: task.ActorUser, ActorID: o.Actor,
		SourceAddr: o.Addr, UserAgent: o.UserAgent, ResourceType: "task", ErrorClass: task.ClassInvalid, TraceID: traceOf(ctx),
	}, map[string]any{"status": p.Status, "errors": pointers(p)})
	return p
}

// pointers names the fields and nothing that was in them.
func pointers(p *Problem) []string {
	var out []string
	for _, e := range p.Errors {
		out = append(out, clip(e.Pointer))
	}
	return out
}

// record writes an event; without Kafka it is lost, which is logged, because the
// request must be answered all the same.
func (s *Server) record(ctx context.Context, e task.Event, detail map[string]any) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := s.deps.Producer.Record(ctx, e, detail); err != nil {
		s.log.Warn("an event is not in the audit log", "action", e.Action, "error", err)
	}
}

// decodeTasks reads one task or an array of them.
func decodeTasks(body []byte, contentType string, most int) (tasks []*task.Task, array bool, refused *Problem) {
	kind := contentType
	if kind == "" {
		kind = task.ContentJSON
	}
	kind, _, err := mime.ParseMediaType(kind)
	switch {
	case err != nil, kind != task.ContentJSON && kind != task.ContentMsgpack && kind != "application/x-msgpack" && kind != "application/vnd.msgpack":
		return nil, false, problem(http.StatusUnsupportedMediaType, "send application/json, or application/msgpack for a single task")
	case kind != task.ContentJSON:
		kind = task.ContentMsgpack
	}
	trimmed := bytes.TrimLeft(body, " \t\r\n")
	switch {
	case len(trimmed) == 0:
		return nil, false, problem(http.StatusBadRequest, "the body is empty; send a task, or an array of tasks")
	case kind == task.ContentJSON && trimmed[0] == '[':
		tasks, refused = decodeArray(trimmed, most)
		return tasks, true, refused
	}
	t, err := task.DecodeTask(body, kind)
	if err != nil {
		return nil, false, decodeProblem([]ProblemError{decodeError("", err)}, 0)
	}
	return []*task.Task{t}, false, nil
}

func decodeArray(body []byte, most int) ([]*task.Task, *Problem) {
	var tasks []*task.Task
	var errs []ProblemError
	var refused *Problem
	n, more := 0, 0
	whole := task.Elements(body, func(raw []byte) bool {
		if n == most {
			refused = problem(http.StatusRequestEntityTooLarge, "the array holds more than %d tasks; send them in several submits", most)
			return false
		}
		t, err := task.DecodeTask(raw, task.ContentJSON)
		if err != nil && !json.Valid(raw) {
			refused = brokenArray(n)
			return false
		}
		switch {
		case err == nil:
			tasks = append(tasks, t)
		case len(errs) < maxProblemErrors:
			errs = append(errs, decodeError(fmt.Sprintf("/%d", n), err))
		default:
			more++
		}
		n++
		return true
	})
	switch {
	case refused != nil:
		return nil, refused
	case !whole && json.Valid(body[:bytes.LastIndexByte(body, ']')+1]):
		return nil, problem(http.StatusBadRequest, "something follows the array; send one task, or one array of tasks")
	case !whole:
		return nil, brokenArray(n)
	case len(errs) > 0:
		return nil, decodeProblem(errs, more)
	case len(tasks) == 0:
		return nil, problem(http.StatusBadRequest, "the array is empty; send at least one task")
	}
	return tasks, nil
}

func brokenArray(i int) *Problem {
	p := problem(http.StatusBadRequest, "the body is not valid JSON at element %d of the array; send one task, or one array of tasks", i)
	p.Errors = []ProblemError{{fmt.Sprintf("/%d", i), "it is not valid JSON"}}
	return p
}

func decodeError(prefix string, err error) ProblemError {
	var fe *task.FieldError
	if !errors.As(err, &fe) {
		fe = &task.FieldError{Problem: clip(err.Error())}
	}
	return fieldError(prefix, fe)
}

func decodeProblem(errs []ProblemError, more int) *Problem {
	return fieldProblem(http.StatusUnprocessableEntity, errs, more)
}
