package api

import (
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/api/openai/plain"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

var placeholder = regexp.MustCompile(`\{([^}]*)\}`)

// faults lists what is wrong with the document.
func (d description) faults() (out []string) {
	fault := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	d.walk(d.doc, "", func(where string, o object) {
		if _, ok := o["$ref"]; ok && d.resolve(o) == nil {
			fault("%s: $ref %v leads nowhere", where, o["$ref"])
		}
	})
	operations := map[string]object{}
	d.each(func(name, _, _ string, op object) {
		id, _ := op["operationId"].(string)
		if id == "" || operations[id] != nil {
			fault("%s: operationId %q is missing or not unique", name, id)
		}
		operations[id] = op
	})
	d.each(func(name, path, _ string, op object) {
		var wanted, named []string
		for _, m := range placeholder.FindAllStringSubmatch(path, -1) {
			wanted = append(wanted, m[1])
		}
		for _, p := range list(op["parameters"]) {
			p := d.resolve(p)
			if p["in"] == "path" {
				named = append(named, fmt.Sprint(p["name"]))
				if p["required"] != true {
					fault("%s: path parameter %v is not required", name, p["name"])
				}
			}
			if at(p, "schema") == nil {
				fault("%s: parameter %v has no schema", name, p["name"])
			}
			d.examples(name+" parameter "+fmt.Sprint(p["name"]), p, fault)
		}
		slices.Sort(wanted)
		slices.Sort(named)
		if !slices.Equal(wanted, named) {
			fault("%s: path parameters %v, described are %v", name, wanted, named)
		}
		for kind, content := range objects(op, "requestBody", "content") {
			d.examples(name+" body "+kind, content.(object), fault)
		}
		d.responses(name, op, operations, fault)
	})
	return out
}

func (d description) responses(name string, op object, operations map[string]object, fault func(string, ...any)) {
	responses := objects(op, "responses")
	statuses := []string{"400", "406", "422", "431", "500"} // what any request may get
	for _, status := range statuses {
		if responses[status] == nil {
			fault("%s: %s is not described", name, status)
		}
	}
	for status, r := range responses {
		r := d.resolve(r)
		if at(r, "headers", "X-Trace-Id") == nil {
			fault("%s: %s does not describe X-Trace-Id", name, status)
		}
		content := objects(r, "content")
		for kind, c := range content {
			d.examples(name+" "+status+" "+kind, c.(object), fault)
			if at(c, "schema") == nil {
				fault("%s: %s %s has no schema", name, status, kind)
			}
		}
		if status == "503" && name == "GET /readyz" {
			continue // which of the dependencies it is
		}
		if status[0] == '4' || status[0] == '5' {
			kind, schema := problemType, "#/components/schemas/Problem"
			if slices.Contains(list(op["tags"]), any(plain.Tag)) {
				kind, schema = wire.ContentJSON, "#/components/schemas/ErrorEnvelope"
			}
			if at(content, kind, "schema", "$ref") != schema || len(content) != 1 {
				fault("%s: %s is not described as a problem", name, status)
			}
		}
		if status == "503" && at(r, "headers", "Retry-After") == nil {
			fault("%s: %s does not describe Retry-After", name, status)
		}
		for link, l := range objects(r, "links") {
			target := operations[fmt.Sprint(at(l, "operationId"))]
			if target == nil {
				fault("%s: link %s leads nowhere", name, link)
			}
			for p := range objects(l, "parameters") {
				if !slices.ContainsFunc(list(target["parameters"]), func(o any) bool { return d.resolve(o)["name"] == p }) {
					fault("%s: link %s sets %s, which its operation does not take", name, link, p)
				}
			}
		}
	}
}

func list(v any) []any {
	l, _ := v.([]any)
	return l
}

// examples checks the examples of a parameter or a body, and all in its schema.
func (d description) examples(where string, o object, fault func(string, ...any)) {
	if e, ok := o["example"]; ok {
		if err := d.fits(o["schema"], e); err != nil {
			fault("%s: example: %s", where, err)
		}
	}
	d.walk(o["schema"], where, func(where string, schema object) {
		values := list(schema["examples"])
		if v, ok := schema["default"]; ok {
			values = append(values, v)
		}
		for _, e := range values {
			if err := d.fits(schema, e); err != nil {
				fault("%s: example: %s", where, err)
			}
		}
	})
}

// walk calls f with v and every object in it.
func (d description) walk(v any, where string, f func(where string, o object)) {
	switch v := v.(type) {
	case object:
		f(where, v)
		for name, inner := range v {
			if name != "example" && name != "examples" {
				d.walk(inner, where+"/"+name, f)
			}
		}
	case []any:
		for i, inner := range v {
			d.walk(inner, where+"/"+strconv.Itoa(i), f)
		}
	}
}

func TestDescriptionIsSound(t *testing.T) {
	b := start(t, Config{})
	text := []byte(b.do(t, "GET", "/openapi.json", "").body)
	d := parseDescription(t, text)
	require.Empty(t, d.faults())
	for _, name := range []string{"task_id", "job_id", "device_id"} {
		require.Contains(t, string(text), "{"+name+"}")
	}
	// The same checks find each of these breaks.
	for what, c := range map[string]struct {
		damage func(doc object)
		fault  string
	}{
		"a path parameter that is not defined": {func(o object) { delete(objects(o, "paths", "/v1/tasks/{task_id}", "get"), "parameters") },
			"GET /v1/tasks/{task_id}: path parameters [task_id], described are []"},
		"a $ref to nothing": {func(o object) { delete(objects(o, "components", "responses"), "NotFound") }, "/paths/~v1~tasks"},
		"a status that is missing": {func(o object) { delete(objects(o, "paths", "/v1/devices", "get", "responses"), "431") },
			"GET /v1/devices: 431 is not described"},
		"another error model": {func(o object) {
			objects(o, "components", "responses", "Conflict", "content", problemType)["schema"] = object{"$ref": "#/components/schemas/Accepted"}
		}, "POST /v1/tasks/{task_id}/cancel: 409 is not described as a problem"},
		"an example that does not fit": {func(o object) { objects(o, "components", "parameters", "DeviceID")["example"] = "a b" },
			"POST /v1/devices/{device_id}/drain parameter device_id: example: a b breaks pattern"},
		"a body's example that does not fit": {func(o object) {
			objects(o, "paths", "/v1/router/policy", "put", "requestBody", "content", wire.ContentJSON)["example"] = object{"policy": "fifo", "preset": "edge"}
		}, "PUT /v1/router/policy body application/json: example: "},
		"a link to nothing": {func(o object) { objects(o, "paths", "/v1/tasks/{task_id}/why", "get")["operationId"] = "x" }, "POST /v1/tasks: link why leads nowhere"},
	} {
		broken := parseDescription(t, text)
		c.damage(broken.doc)
		require.Contains(t, strings.Join(broken.faults(), "\n"), strings.ReplaceAll(c.fault, "/paths/~v1~tasks", "/paths//v1/tasks"), what)
	}
}

// What is described as a problem is what is marshalled, and what is described as a
// task is what package task reads.
func TestDescriptionIsOfTheTypesThatAreSent(t *testing.T) {
	b := start(t, Config{})
	d := parseDescription(t, []byte(b.do(t, "GET", "/openapi.json", "").body))
	fields := func(v any) (names, required []string) {
		for f := range reflect.TypeOf(v).Fields() {
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name == "" || name == "-" {
				continue
			}
			names = append(names, name)
			if options == "" {
				required = append(required, name)
			}
		}
		slices.Sort(names)
		slices.Sort(required)
		return names, required
	}
	described := func(schema string) (names, required []string) {
		o := objects(d.doc, "components", "schemas", schema)
		for name := range objects(o, "properties") {
			names = append(names, name)
		}
		for _, name := range list(o["required"]) {
			required = append(required, name.(string))
		}
		slices.Sort(names)
		slices.Sort(required)
		return names, required
	}
	for schema, v := range map[string]any{"Problem": Problem{}, "ProblemError": ProblemError{}, "Result": task.Result{}, "Status": Status{}} {
		names, required := fields(v)
		gotNames, gotRequired := described(schema)
		require.Equal(t, names, gotNames, schema)
		require.Equal(t, required, gotRequired, schema)
	}
	names, required := fields(task.Task{})
	names = slices.DeleteFunc(names, func(n string) bool { return n == "progress" }) // Batchyard's own, and refused
	gotNames, gotRequired := described("TaskIn")
	require.Equal(t, names, gotNames)
	require.Equal(t, required, gotRequired)

	full, err := json.Marshal(&Problem{Title: "t", Status: 422, Detail: "d", State: task.Failed, TraceID: strings.Repeat("a", 32), Errors: []ProblemError{{"/a", "b"}}})
	require.NoError(t, err)
	var v any
	require.NoError(t, json.Unmarshal(full, &v))
	require.NoError(t, d.fits(object{"$ref": "#/components/schemas/Problem"}, v))
	v.(object)["type"] = "about:blank"
	require.Error(t, d.fits(object{"$ref": "#/components/schemas/Problem"}, v), "what is not sent is not described")
}

func TestRequestsThatNoOperationTakes(t *testing.T) {
	b := start(t, Config{MaxHeader: 4096})
	for name, c := range map[string]struct {
		method, path, body string
		headers            []string
		status             int
		pointer            string
	}{
		"unknown parameter":       {"GET", "/v1/jobs/j/results?limit=1", "", nil, 422, "limit"},
		"unknown on health":       {"GET", "/healthz?a=b", "", nil, 422, "a"},
		"repeated parameter":      {"GET", "/v1/tasks?limit=1&limit=2", "", nil, 422, "limit"},
		"empty parameter":         {"GET", "/v1/tasks?state=", "", nil, 422, "state"},
		"NUL":                     {"GET", "/v1/tasks?job_id=a%00", "", nil, 422, "job_id"},
		"not UTF-8":               {"GET", "/v1/tasks?job_id=%ff", "", nil, 422, "job_id"},
		"not encoded":             {"GET", "/v1/tasks?job_id=%zz", "", nil, 400, ""},
		"semicolons":              {"GET", "/v1/tasks?limit=1;state=FAILED", "", nil, 400, ""},
		"wait with a sign":        {"GET", "/v1/tasks/a?wait=-1", "", nil, 422, "wait"},
		"task id with NUL":        {"GET", "/v1/tasks/a%00", "", nil, 400, "task_id"},
		"job id not UTF-8":        {"GET", "/v1/jobs/%ff", "", nil, 400, "job_id"},
		"empty tenant":            {"GET", "/v1/tasks", "", []string{tenantHeader, ""}, 400, tenantHeader},
		"Accept of another":       {"GET", "/v1/tasks", "", []string{"Accept", "text/html"}, 406, ""},
		"Accept that excludes":    {"GET", "/v1/tasks", "", []string{"Accept", "*/*, application/json;q=0"}, 406, ""},
		"Accept of problems only": {"GET", "/v1/jobs/j/results", "", []string{"Accept", problemType}, 406, ""},
		"heartbeat as a form":     {"POST", "/v1/devices/d/heartbeat", "a=b", []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, ""},
		"policy in XML":           {"PUT", "/v1/router/policy", "<a/>", []string{"Content-Type", "text/xml"}, 415, ""},
		"priority as text":        {"PATCH", "/v1/tasks/a", "high", []string{"Content-Type", "text/plain"}, 415, ""},
		"no slots":                {"POST", "/v1/devices/d/heartbeat", `{"url":"http://h","models":["m"],"slots":0}`, nil, 422, "/slots"},
		"no weight":               {"POST", "/v1/devices/d/heartbeat", `{"url":"http://h","models":["m"],"weight":0}`, nil, 422, "/weight"},
		"less than no queue":      {"POST", "/v1/devices/d/heartbeat", `{"url":"http://h","models":["m"],"queue":-1}`, nil, 422, "/queue"},
		"leaving, and wrong":      {"POST", "/v1/devices/d/heartbeat", `{"leaving":true,"cpu":2}`, nil, 422, "/cpu"},
		"large headers":           {"GET", "/v1/tasks", "", []string{"X-Large", strings.Repeat("x", 4096)}, 431, ""},
		"long request line":       {"GET", "/v1/tasks?" + strings.Repeat("x", 4096), "", nil, 431, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := b.do(t, c.method, c.path, c.body, c.headers...).problem(t, c.status)
			if c.pointer != "" {
				require.NotEmpty(t, p.Errors)
				require.Equal(t, c.pointer, p.Errors[0].Pointer)
				require.Regexp(t, "send|use|leave it out", p.Errors[0].Detail, "every problem says what to do")
			}
		})
	}
	for _, accept := range []string{"*/*", "application/*", "application/json;q=0.1", "text/html, */*;q=0.8", "application/json; charset=utf-8", "text/html, nonsense, application/json"} {
		require.Equal(t, 200, b.do(t, "GET", "/v1/tasks", "", "Accept", accept).status, accept)
	}
	require.Equal(t, 200, b.do(t, "HEAD", "/v1/tasks", "").status)
	require.Equal(t, 200, b.do(t, "GET", "/metrics", "", "Accept", "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1").status)
	require.Equal(t, 200, b.do(t, "POST", "/v1/devices/d/heartbeat", `{"url":"http://h","models":["m"],"slots":4.0}`, "Content-Type", "application/json; charset=utf-8").status)
}
