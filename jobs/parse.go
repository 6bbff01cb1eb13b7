package jobs

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
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

// parsed is a parsed line.
type parsed struct {
	task   *task.Task
	openAI bool
	ownID  bool
}

// parseLine parses a line into a valid task, normalized except for trace id and time. The
// error is a *task.FieldError, or a *formatError that wraps one.
func parseLine(line []byte, number int, job string, o *Options) (parsed, error) {
	p, err := decodeLine(line, &o.Defaults)
	if err != nil {
		return parsed{}, err
	}
	t := p.task
	if o.Endpoint != "" {
		if err := p.fits(o.Endpoint); err != nil {
			return parsed{}, err
		}
	}
	if t.JobID != "" && t.JobID != job {
		return parsed{}, fieldErr("job_id", "omit it: the file is one job", "it names another job")
	}
	p.ownID = t.ID != ""
	if !p.ownID {
		t.ID = TaskID(job, number)
	} else if _, ours := LineOf(job, t.ID); ours {
		return parsed{}, fieldErr("task_id", "choose another, or omit it", "it looks like the generated id of a line of this job")
	}
	t.JobID = job
	if err := fill(t, &o.Defaults); err != nil {
		return parsed{}, err
	}
	if err := t.Validate(o.Limits); err != nil {
		if p.openAI {
			return parsed{}, asInLine(err)
		}
		return parsed{}, err
	}
	return p, nil
}

// fits returns why a line is not one of OpenAI's format for an endpoint.
func (p *parsed) fits(endpoint string) error {
	switch {
	case !p.openAI:
		return fieldErr("url", "write custom_id, method, url and body", "the line is not in OpenAI's batch format")
	case p.task.Endpoint != "" && p.task.Endpoint != endpoint:
		return fieldErr("url", "use "+endpoint+", the endpoint of the batch, in every line", "it is another endpoint")
	}
	return nil
}

// decodeLine decodes a line in either format. DecodeTask finds invalid JSON itself, so only
// what it refuses is checked again, for an error about the line.
func decodeLine(line []byte, defaults *task.Task) (p parsed, err error) {
	wire.Members(line, func(key string, _ []byte) bool { // the formats differ in these
		p.openAI = key == "method" || key == "url" || key == "body"
		return !p.openAI
	})
	if !p.openAI && line[0] == '{' {
		if p.task, err = wire.DecodeTask(line, wire.ContentJSON); err == nil {
			return p, nil
		}
	}
	if format := foreign(line); format != nil {
		return p, format
	}
	switch invalid := task.CheckJSON(line); {
	case invalid != nil:
		return p, fieldErr("", "put one JSON object on each line", "%s", invalid)
	case line[0] != '{':
		return p, fieldErr("", "put one JSON object on each line", "it is not a JSON object")
	case p.openAI:
		p.task, err = parseOpenAI(line, defaults)
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
	t.Model = cmp.Or(t.Model, d.Model)
	t.Endpoint = cmp.Or(t.Endpoint, d.Endpoint, task.EndpointChat)
	t.TraceID = strings.ToLower(t.TraceID)
	t.Level = cmp.Or(t.Level, d.Level)
	t.MaxAttempts = cmp.Or(t.MaxAttempts, d.MaxAttempts)
	t.Deadline = cmp.Or(t.Deadline, d.Deadline)
	t.Degrade = t.Degrade || d.Degrade
	if t.Callback == nil {
		t.Callback = d.Callback
	}
	return nil
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
