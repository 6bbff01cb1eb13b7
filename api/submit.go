package api

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/producer"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// Accepted answers a submitted task.
type Accepted struct {
	ID     string     `json:"task_id"`
	Tenant string     `json:"tenant"`
	State  task.State `json:"state" doc:"PENDING, unless the same request was submitted before under this id: then the state it is in."`
}

// AcceptedList answers an array of tasks, in its order.
type AcceptedList struct {
	Tasks []Accepted `json:"tasks"`
}

// TaskIn describes a task to submit. It is for readers of the description: package
// task decodes and checks the body.
type TaskIn struct {
	ID          string            `json:"task_id,omitempty" maxLength:"128" doc:"An id of your own; a UUID without it. Tenant and id are the task's identity: submitting them again is the same task, not a second one."`
	Tenant      string            `json:"tenant,omitempty" maxLength:"128" doc:"The tenant; if the header X-Batchyard-Tenant is set too, both must agree."`
	Model       string            `json:"model" minLength:"1" maxLength:"256" doc:"The model that runs the task."`
	Endpoint    string            `json:"endpoint,omitempty" doc:"The endpoint of the device that gets the input."`
	Input       map[string]any    `json:"input" doc:"The body of the request to the device, nested at most 128 deep."`
	Priority    string            `json:"priority,omitempty" default:"normal"`
	Level       int               `json:"level,omitempty" minimum:"0" maximum:"9" default:"0" doc:"Level within the priority, 9 first."`
	Needs       []string          `json:"needs,omitempty" maxItems:"32" minLength:"1" maxLength:"256" doc:"Capability tags that the device must have."`
	DependsOn   []string          `json:"depends_on,omitempty" maxItems:"0" doc:"Dependencies are not supported yet: omit it. A task that has some is refused."`
	Session     string            `json:"session_id,omitempty" maxLength:"256" doc:"For policies that keep a session on one device."`
	Deadline    *time.Time        `json:"deadline,omitempty" doc:"A task that has not finished by then ends as EXPIRED."`
	NotBefore   *time.Time        `json:"not_before,omitempty" doc:"The task is not assigned before then."`
	MaxAttempts int               `json:"max_attempts,omitempty" minimum:"0" maximum:"20" doc:"Attempts before the task fails; 0 or nothing: as configured."`
	Degrade     bool              `json:"degrade,omitempty" doc:"Fall back to a smaller model when no device can run this one."`
	Callback    *task.Callback    `json:"callback,omitempty" doc:"When the task finishes, Batchyard POSTs its result to this URL."`
	Labels      map[string]string `json:"labels,omitempty" maxProperties:"16" doc:"Labels of your own, which the result repeats; each at most 512 characters."`
	Job         string            `json:"job_id,omitempty" maxLength:"128" doc:"Id of the job that the task belongs to."`
	CustomID    string            `json:"custom_id,omitempty" maxLength:"512" doc:"An id of your own within the job."`
	TraceID     string            `json:"trace_id,omitempty" doc:"W3C trace id, written in lower case; otherwise that of the traceparent header."`
	SubmittedAt *time.Time        `json:"submitted_at,omitempty" doc:"When the task was submitted. Batchyard sets it; a value from a client has no effect."`
}

type submitOutput struct {
	Location string `header:"Location"`
	Body     any
}

func (s *Server) routeTasks() {
	const path = "/v1/tasks"
	reg := s.api.OpenAPI().Components.Schemas
	accepted := &huma.Schema{OneOf: []*huma.Schema{
		reg.Schema(reflect.TypeFor[Accepted](), true, "Accepted"),
		reg.Schema(reflect.TypeFor[AcceptedList](), true, "AcceptedList"),
	}}
	link := func(operation string) *huma.Link {
		return &huma.Link{OperationID: operation, Parameters: map[string]any{"task_id": "$response.body#/task_id"}, Description: "For a single task."}
	}
	traceparent := &huma.Param{Name: "traceparent", In: "header", Description: "W3C trace context; its trace id becomes that of the tasks. One that is malformed is ignored, as W3C Trace Context asks.",
		Schema: &huma.Schema{Type: huma.TypeString}, Example: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
	op := answering(huma.Operation{
		OperationID: "submit-tasks", Method: http.MethodPost, Path: path, Summary: "Submit a task, or an array of tasks", Tags: []string{"tasks"},
		Description: "All or nothing: if one task is wrong, none is accepted. An id stands for one request: the same request again is the same task, in the state it is in; another request under a known id is refused with 409. 202 means that every in-sync replica of Kafka has every task. " +
			"After any response but 202 and 4xx the tasks may have been accepted; submitting them again with the same ids is safe.",
		DefaultStatus: http.StatusAccepted, Parameters: append(params(tenantParam), traceparent),
		Responses: map[string]*huma.Response{"202": {Description: "Accepted: the tasks are durable, and each ends in one terminal state.",
			Content: map[string]*huma.MediaType{wire.ContentJSON: {Schema: accepted}},
			Links:   map[string]*huma.Link{"status": link("get-task"), "cancel": link("cancel-task"), "events": link("list-task-events"), "why": link("explain-task"), "priority": link("reprioritize-task"), "retry": link("retry-task")}}},
	}, http.StatusConflict, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusServiceUnavailable)
	huma.Register(s.api, op, s.submit)
	op.Responses["202"].Headers["Location"] = &huma.Param{Description: "Path of the task's status; only for a single task.", Schema: &huma.Schema{Type: huma.TypeString, Format: "uri-reference"}}
	one := reg.Schema(reflect.TypeFor[TaskIn](), true, "")
	s.acceptNull(one)
	s.describeTask()
	example := map[string]any{"model": "demo-chat", "input": map[string]any{"messages": []map[string]string{{"role": "user", "content": "Say hello."}}}}
	// Described after the registration: huma would read and check the body itself.
	s.describeBody(http.MethodPost, path, &huma.RequestBody{Required: true, Description: "In MessagePack a time may be a timestamp or Unix seconds as well, and the input the JSON text.",
		Content: map[string]*huma.MediaType{
			wire.ContentJSON: {Example: example, Schema: &huma.Schema{OneOf: []*huma.Schema{one,
				{Type: huma.TypeArray, Items: one, MinItems: ptr(1), MaxItems: ptr(s.deps.Producer.Config().MaxTasks)}}}},
			wire.ContentMsgpack: {Schema: one},
		}})
	s.routeStatus()
}

// describeTask adds what tags of a struct cannot say.
func (s *Server) describeTask() {
	parts := s.api.OpenAPI().Components.Schemas.Map()
	t := parts["TaskIn"].Properties
	// Many clients write a value that is missing as "" or null: both mean the default.
	t["endpoint"].Enum, t["endpoint"].Default = append(anys(task.Endpoints...), "", nil), task.EndpointChat
	t["priority"].Enum = append(anys(task.Priorities...), "", nil)
	for _, p := range t {
		text := p
		if p.Type == huma.TypeArray {
			text = p.Items
		}
		switch {
		case text.Type != huma.TypeString || len(text.Enum) > 0:
		case text.Format == "date-time":
			text.Pattern = instants
		default:
			text.Pattern = plainText
		}
	}
	t["trace_id"].Pattern, t["trace_id"].Not = traceIDs, &huma.Schema{Type: huma.TypeString, Pattern: "^0+$"} // which W3C Trace Context rules out
	describeLabels(t["labels"])
	callback := parts["Callback"].Properties["url"]
	callback.Pattern, callback.MaxLength = webURL, ptr(task.MaxURLLength)
}

// describeLabels says what names and values of labels may be.
func describeLabels(labels *huma.Schema) {
	labels.AdditionalProperties = &huma.Schema{Type: huma.TypeString, Nullable: true, MaxLength: ptr(512), Pattern: plainText}
	labels.Extensions = map[string]any{"propertyNames": &huma.Schema{MinLength: ptr(1), MaxLength: ptr(64), Pattern: plainText}}
}

func (s *Server) submit(ctx context.Context, in *request) (*submitOutput, error) {
	tenant, sent, err := tenantOf(in.r)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.SubmitTimeout)
	defer cancel()
	limits := s.deps.Producer.Config()
	body, release, err := s.readBody(in.w, in.r, limits.MaxBody)
	defer release()
	if err != nil {
		return nil, asProblem(err)
	}
	endless(in.w)
	tasks, form, refused := decodeTasks(body, in.r.Header.Get("Content-Type"), limits.MaxTasks)
	if refused != nil {
		return nil, refused
	}
	for i, t := range tasks {
		if t.Tenant != "" && sent && t.Tenant != tenant {
			p := fieldProblem(http.StatusBadRequest, []ProblemError{{pointerAt(form, i) + "/tenant",
				"conflicts with the header " + tenantHeader + ": set one of them, or both to the same tenant"}}, 0)
			return nil, p
		}
		t.Tenant = cmp.Or(t.Tenant, tenant)
		t.TraceID = cmp.Or(t.TraceID, traceOf(ctx))
	}
	states, err := s.deps.Producer.Accept(ctx, tasks, originOf(in.r, tenant))
	if err != nil {
		return nil, s.notTaken(ctx, in.r, tenant, form, err)
	}
	fault.At("api.before_answer")
	list := AcceptedList{Tasks: make([]Accepted, len(tasks))}
	for i, t := range tasks {
		list.Tasks[i] = Accepted{t.ID, t.Tenant, states[i]}
	}
	if form == taskArray {
		return &submitOutput{Body: list}, nil
	}
	return &submitOutput{Location: "/v1/tasks/" + url.PathEscape(tasks[0].ID), Body: list.Tasks[0]}, nil
}

// bodyForm is what a body holds.
type bodyForm int

// The forms of a body.
const (
	singleTask bodyForm = iota
	taskArray
)

// pointerAt is the pointer to a task of the body.
func pointerAt(form bodyForm, i int) string {
	if form == taskArray {
		return fmt.Sprintf("/%d", i)
	}
	return ""
}

// notTaken turns a producer's error into a problem.
func (s *Server) notTaken(ctx context.Context, r *http.Request, tenant string, form bodyForm, err error) error {
	var refused *producer.RefusedError
	var reused *producer.ReusedError
	var large *stream.TooLargeError
	code := http.StatusUnprocessableEntity
	if errors.As(err, &reused) {
		refused, code = &reused.RefusedError, http.StatusConflict
	}
	switch {
	case refused != nil, errors.As(err, &refused):
		errs := make([]ProblemError, len(refused.Refusals))
		for i, f := range refused.Refusals {
			errs[i] = fieldError(pointerAt(form, f.Index), f.Err)
		}
		return fieldProblem(code, errs, refused.More)
	case errors.As(err, &large):
		return problem(http.StatusRequestEntityTooLarge, "a task is larger than a Kafka record may be; shorten its input")
	case errors.Is(err, producer.ErrClosed):
		return later("the server is stopping; send the tasks again")
	}
	s.log.Warn("writing submitted tasks to Kafka failed", "trace_id", traceOf(ctx), "error", err)
	return later("Kafka did not answer in time: the tasks may or may not be accepted; send them again with the same ids")
}

// record writes an event. While Kafka does not answer the event is lost, which the
// log says: the request has to be answered all the same.
func (s *Server) record(ctx context.Context, e task.Event, detail map[string]any) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	err := s.deps.Producer.Record(ctx, e, detail)
	if err != nil {
		s.log.Warn("writing an event to Kafka failed; it may be missing in the audit log", "action", e.Action, "error", err)
	}
	return err
}

// decodeTasks reads a task, or an array of at most most tasks; form says which.
func decodeTasks(body []byte, contentType string, most int) (tasks []*task.Task, form bodyForm, refused *Problem) {
	kind, ok := wire.Format(contentType)
	if !ok {
		return nil, singleTask, problem(http.StatusUnsupportedMediaType, "unsupported Content-Type: send application/json, or application/msgpack for a single task")
	}
	body, err := wire.Content(body)
	if err != nil {
		return nil, singleTask, decodeProblem([]ProblemError{decodeError("", err)}, 0)
	}
	trimmed := bytes.TrimLeft(body, " \t\r\n")
	switch {
	case len(trimmed) == 0:
		return nil, singleTask, problem(http.StatusBadRequest, "the body is empty; send a task, or an array of tasks")
	case kind != wire.ContentMsgpack && trimmed[0] == '[':
		tasks, refused = decodeArray(trimmed, most)
		return tasks, taskArray, refused
	}
	t, err := decodeTask(body, kind)
	if err != nil {
		return nil, singleTask, decodeProblem([]ProblemError{decodeError("", err)}, 0)
	}
	return []*task.Task{t}, singleTask, nil
}

// decodeTask is task.DecodeTask that takes 5.0 for an integer.
func decodeTask(body []byte, kind string) (*task.Task, error) {
	t, err := wire.DecodeTask(body, kind)
	if err != nil && kind != wire.ContentMsgpack {
		if whole := wire.WholeNumbers(body, &task.Task{}); whole != nil {
			return wire.DecodeTask(whole, kind)
		}
	}
	return t, err
}

func decodeArray(body []byte, most int) ([]*task.Task, *Problem) {
	var tasks []*task.Task
	var errs []ProblemError
	var refused *Problem
	n, more := 0, 0
	whole := wire.Elements(body, func(raw []byte) bool {
		if n == most {
			refused = problem(http.StatusRequestEntityTooLarge, "the array has more than %d tasks; send them in several submits", most)
			return false
		}
		t, err := decodeTask(raw, wire.ContentJSON)
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
		return nil, problem(http.StatusBadRequest, "data after the array; send one task, or one array of tasks")
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
	p.Errors = []ProblemError{{fmt.Sprintf("/%d", i), "not valid JSON"}}
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
