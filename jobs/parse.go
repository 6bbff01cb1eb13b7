package jobs

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/batchyard/batchyard/task"
)

// idDigits is the number of digits of a line number in a task's id, so that ids sort like
// lines.
const idDigits = 10

// maxJobID leaves room for the line number.
const maxJobID = task.MaxIDLength - idDigits - 1

// TaskID returns the task id of a line without an id.
func TaskID(job string, line int) string { return fmt.Sprintf("%s-%0*d", job, idDigits, line) }

// LineOf is the inverse of [TaskID]; ok is false for other ids.
func LineOf(job, id string) (line int, ok bool) {
	digits, found := strings.CutPrefix(id, job+"-")
	if !found || len(digits) != idDigits {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 31)
	return int(n), err == nil && n > 0
}

// openAILine is a line in OpenAI's batch format.
type openAILine struct {
	CustomID string     `json:"custom_id"`
	Method   string     `json:"method"`
	URL      string     `json:"url"`
	Body     task.Input `json:"body"`
}

// bodyHead is the part of the body that Batchyard needs.
type bodyHead struct {
	Model  *string          `json:"model"`
	Stream *json.RawMessage `json:"stream"`
}

// parsed is a parsed line.
type parsed struct {
	task   *task.Task
	openAI bool
	ownID  bool
}

// parseLine parses a line into a valid task, normalized except for trace id and time. The
// error is a *task.FieldError.
func parseLine(line []byte, number int, job string, o *Options) (parsed, error) {
	p, err := decodeLine(line)
	if err != nil {
		return parsed{}, err
	}
	t := p.task
	if t.Progress != nil {
		return parsed{}, fieldErr("progress", "omit it", "it is set by Batchyard")
	}
	if t.Job != "" && t.Job != job {
		return parsed{}, fieldErr("job_id", "omit it: the file is one job", "it names another job")
	}
	p.ownID = t.ID != ""
	if !p.ownID {
		t.ID = TaskID(job, number)
	} else if _, ours := LineOf(job, t.ID); ours {
		return parsed{}, fieldErr("task_id", "choose another, or omit it", "it looks like the generated id of a line of this job")
	}
	t.Job = job
	if err := fill(t, &o.Defaults); err != nil {
		return parsed{}, err
	}
	return p, t.Validate(o.Limits)
}

// decodeLine decodes a line in either format. DecodeTask finds invalid JSON itself, so only
// what it refuses is checked again, for an error about the line.
func decodeLine(line []byte) (p parsed, err error) {
	task.Members(line, func(key string, _ []byte) bool { // the formats differ in these
		p.openAI = key == "method" || key == "url" || key == "body"
		return !p.openAI
	})
	if !p.openAI && line[0] == '{' {
		if p.task, err = task.DecodeTask(line, task.ContentJSON); err == nil {
			return p, nil
		}
	}
	switch invalid := task.CheckJSON(line); {
	case invalid != nil:
		return p, fieldErr("", "put one JSON object on each line", "%s", invalid)
	case line[0] != '{':
		return p, fieldErr("", "put one JSON object on each line", "it is not a JSON object")
	case p.openAI:
		p.task, err = parseOpenAI(line)
	}
	return p, err
}

// fill sets what the line omits to the job's defaults.
func fill(t, d *task.Task) error {
	tenant := d.Tenant
	if tenant == "" {
		tenant = task.DefaultTenant
	}
	if t.Tenant != "" && t.Tenant != tenant {
		return fieldErr("tenant", "omit it: a file belongs to one tenant", "it differs from the tenant of the job")
	}
	t.Tenant = tenant
	if t.Priority == "" {
		t.Priority = d.Priority
	}
	if t.Priority == "" {
		t.Priority = task.Normal
	}
	if t.Endpoint == "" {
		t.Endpoint = task.EndpointChat
	}
	t.Level = cmp.Or(t.Level, d.Level)
	t.MaxAttempts = cmp.Or(t.MaxAttempts, d.MaxAttempts)
	t.Deadline = cmp.Or(t.Deadline, d.Deadline)
	t.Degrade = t.Degrade || d.Degrade
	if t.Callback == nil {
		t.Callback = d.Callback
	}
	return nil
}

func parseOpenAI(line []byte) (*task.Task, error) {
	var l openAILine
	if err := task.Unmarshal(line, &l); err != nil {
		return nil, jsonError(err)
	}
	switch {
	case l.CustomID == "":
		return nil, fieldErr("custom_id", "give each line its own", "it is missing")
	case l.Method != "POST":
		return nil, fieldErr("method", `write "POST"`, "it is not supported")
	case l.URL == "":
		return nil, fieldErr("url", "use one of "+strings.Join(task.Endpoints, ", "), "it is missing")
	case len(l.Body) == 0:
		return nil, fieldErr("body", "send the request as a JSON object", "it is missing")
	case l.Body[0] != '{':
		return nil, fieldErr("body", "send the request as a JSON object", "it is not a JSON object")
	}
	var head bodyHead
	if err := json.Unmarshal(l.Body, &head); err != nil {
		var fe *task.FieldError
		if errors.As(jsonError(err), &fe) && fe.Field != "" {
			fe.Field = "body." + fe.Field
			return nil, fe
		}
		return nil, fieldErr("body", "send the request as a JSON object", "%s", clip(err.Error()))
	}
	if head.Model == nil || *head.Model == "" {
		return nil, fieldErr("body.model", "set it", "it is missing")
	}
	if head.Stream != nil && string(*head.Stream) == "true" {
		return nil, fieldErr("body.stream", "omit it", "answers of a job are not streamed")
	}
	return &task.Task{CustomID: l.CustomID, Model: *head.Model, Endpoint: l.URL, Input: l.Body}, nil
}

// jsonError names the field but does not repeat the input.
func jsonError(err error) error {
	var typeErr *json.UnmarshalTypeError
	if errors.As(err, &typeErr) {
		return fieldErr(typeErr.Field, "check the format of the file", "a JSON %s does not fit", clip(typeErr.Value))
	}
	var fe *task.FieldError
	if errors.As(err, &fe) && fe.Field != "" {
		return fieldErr(clip(fe.Field), "remove it: a line has custom_id, method, url and body", "%s", fe.Problem)
	}
	return fieldErr("", "put one JSON object on each line", "%s", clip(err.Error()))
}

func fieldErr(field, remedy, problem string, args ...any) *task.FieldError {
	return &task.FieldError{Field: field, Problem: fmt.Sprintf(problem, args...), Remedy: remedy}
}

// clip shortens untrusted text for an error message.
func clip(s string) string {
	const most = 64
	if len(s) <= most {
		return strings.ToValidUTF8(s, "�")
	}
	for cut := most; ; cut-- {
		if utf8.RuneStart(s[cut]) {
			return strings.ToValidUTF8(s[:cut], "�") + "…"
		}
	}
}
