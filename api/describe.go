package api

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/batchyard/batchyard/api/openai/plain"
	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// Patterns of texts, as the description has them. The server checks with the same
// rules, so a client that validates against the description is never surprised.
const (
	// plainText is any text without control characters, which no log, terminal or
	// database should have to hold.
	plainText = `^[^\x00-\x1f\x7f]*$`
	// headerText is what a header field can carry safely: printable ASCII, without
	// spaces at the ends, which HTTP strips.
	headerText = `^[!-~]([ -~]*[!-~])?$`
	deviceID   = `^[A-Za-z0-9._:@-]+$`
	traceIDs   = `^([0-9A-Fa-f]{32})?$`
	// webURL is a callback's URL: no credentials. Host names with other letters are
	// written in Punycode.
	webURL = `^https?://` + host + `([/?#]([!-$&-~]|%[0-9A-Fa-f]{2})*)?$`
	// baseURL is a device's URL: no credentials, query or fragment.
	baseURL = `^https?://` + host + `(/([!-"$&->@-~]|%[0-9A-Fa-f]{2})*)?$`
	// host is a name or address, with or without a port.
	host = `([A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|\[(([0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}|([0-9A-Fa-f]{1,4}:){1,6}:[0-9A-Fa-f]{1,4}|::[0-9A-Fa-f]{1,4})\])(:[0-9]{1,5})?`
	// instants are RFC 3339 times between the years 1971 and 9998.
	instants = `^(19[7-9][1-9]|19[89]0|[2-8][0-9]{3}|9[0-8][0-9]{2}|99[0-8][0-9]|999[0-8])-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])` +
		`T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$`
)

// Names of what the operations share in the description.
const (
	tenantParam, taskParam, jobParam, deviceParam = "Tenant", "TaskID", "JobID", "DeviceID"
	traceHeader, retryHeader, allowHeader         = "TraceID", "RetryAfter", "Allow"
)

// problems are the answers that are problem documents, by status.
var problems = map[int]struct{ name, text string }{
	http.StatusBadRequest:                  {"BadRequest", "The request is malformed: a body that breaks off or is not JSON, a header or an id that cannot be one, a query that is not percent-encoded UTF-8."},
	http.StatusNotFound:                    {"NotFound", "The tenant has no such task or job, or the device is not known."},
	http.StatusMethodNotAllowed:            {"MethodNotAllowed", "The path does not take the method; Allow lists those it takes. Every path of this description answers other methods so."},
	http.StatusNotAcceptable:               {"NotAcceptable", "The Accept header excludes every content type that the operation can send."},
	http.StatusConflict:                    {"Conflict", "The state of the task or job rules the change out, and `state` says which it is; or an id belongs to another request, and `errors` names it; or the name of a job belongs to another file."},
	http.StatusGone:                        {"Gone", "Kafka no longer has the record of the task."},
	http.StatusRequestEntityTooLarge:       {"ContentTooLarge", "The body is larger, or the array longer, than this server takes."},
	http.StatusUnsupportedMediaType:        {"UnsupportedMediaType", "The Content-Type of the body is not one that the operation takes."},
	http.StatusUnprocessableEntity:         {"UnprocessableContent", "A field of the body or a query parameter is wrong; `errors` names each."},
	http.StatusRequestHeaderFieldsTooLarge: {"HeadersTooLarge", "The request line and headers are larger than api.max_header_bytes."},
	http.StatusInternalServerError:         {"InternalServerError", "A fault of the server, which its log has under the trace id."},
	http.StatusServiceUnavailable:          {"ServiceUnavailable", "Kafka, Redis or Postgres does not answer, or the server is at a limit: send the same request again after Retry-After."},
}

func (s *Server) describe() {
	c := huma.DefaultConfig("Batchyard", s.deps.Version)
	c.Info.Description = "Submit inference tasks, follow them, and read their results.\n\n" +
		"Every error is a problem document (RFC 9457): `detail` says what is wrong and what to do, `errors` names each wrong field or parameter, " +
		"and `trace_id` finds the request in the logs. Problem documents are sent whatever the Accept header says. " +
		"A request that is not valid HTTP/1.1 is answered in text/plain before it reaches an operation.\n\n" +
		"The header X-Batchyard-Tenant names the tenant; without it the tenant is \"default\". A W3C traceparent header sets the trace id, " +
		"which every response repeats as X-Trace-Id. Every operation that takes GET takes HEAD."
	c.Servers = []*huma.Server{{URL: "/"}}
	c.Tags = []*huma.Tag{
		{Name: "tasks", Description: "Submit tasks and follow them."},
		{Name: "jobs", Description: "Tasks that were submitted together."},
		{Name: "devices", Description: "The servers that run tasks."},
		{Name: plain.Tag, Description: "Requests as OpenAI's SDKs send them, answered by the devices; errors have OpenAI's form."},
		{Name: "operation", Description: "Routing policy, health and metrics."},
		{Name: "openai", Description: "OpenAI's API, for its SDKs. Errors have the shape that these expect."},
	}
	// huma serves no documentation pages and no schemas, and the description comes
	// from serveDescription: the library's own handler has a race.
	c.OpenAPIPath, c.DocsPath, c.SchemasPath, c.CreateHooks = "", "", "", nil
	c.Formats = map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat}
	c.Transformers = []huma.Transformer{withTrace}
	s.api = humago.New(s.mux, c)
	s.describeShared()
}

// describeShared describes the parameters, headers and problems that operations refer to.
func (s *Server) describeShared() {
	parts := s.api.OpenAPI().Components
	parts.Parameters = map[string]*huma.Param{
		tenantParam: {Name: tenantHeader, In: "header", Description: "The tenant whose tasks are meant; \"default\" without it.",
			Schema: &huma.Schema{Type: huma.TypeString, MinLength: ptr(1), MaxLength: ptr(task.MaxIDLength), Pattern: headerText, Default: task.DefaultTenant}, Example: "acme"},
		taskParam: {Name: "task_id", In: "path", Required: true, Description: "Id of the task.", Schema: idSchema(), Example: "hello-1"},
		jobParam:  {Name: "job_id", In: "path", Required: true, Description: "Id of the job.", Schema: idSchema(), Example: "nightly-7"},
		deviceParam: {Name: "device_id", In: "path", Required: true, Description: "Id of the device: letters, digits and . _ - : @",
			Schema: &huma.Schema{Type: huma.TypeString, MinLength: ptr(1), MaxLength: ptr(device.MaxIDLength), Pattern: deviceID}, Example: "gpu-1"},
	}
	parts.Headers = map[string]*huma.Header{
		traceHeader: {Description: "Trace id of the request, as in the logs.", Schema: &huma.Schema{Type: huma.TypeString, Pattern: `^[0-9a-f]{32}$`}},
		retryHeader: {Description: "Seconds to wait before sending the request again.", Schema: &huma.Schema{Type: huma.TypeInteger, Minimum: ptr(1.0)}},
		allowHeader: {Description: "The methods that the path takes.", Schema: &huma.Schema{Type: huma.TypeString}},
	}
	schema := parts.Schemas.Schema(reflect.TypeFor[Problem](), true, "Problem")
	parts.Responses = map[string]*huma.Response{}
	for status, p := range problems {
		example := problem(status, "%s", p.text)
		example.TraceID = "0af7651916cd43dd8448eb211c80319c"
		r := &huma.Response{Description: p.text, Headers: traced(), Content: map[string]*huma.MediaType{problemType: {Schema: schema, Example: example}}}
		switch status {
		case http.StatusServiceUnavailable:
			r.Headers["Retry-After"] = &huma.Param{Ref: "#/components/headers/" + retryHeader}
		case http.StatusMethodNotAllowed:
			r.Headers["Allow"] = &huma.Param{Ref: "#/components/headers/" + allowHeader}
		}
		parts.Responses[p.name] = r
	}
}

func ptr[T any](v T) *T { return &v }

func idSchema() *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, MinLength: ptr(1), MaxLength: ptr(task.MaxIDLength), Pattern: plainText}
}

func traced() map[string]*huma.Param {
	return map[string]*huma.Param{"X-Trace-Id": {Ref: "#/components/headers/" + traceHeader}}
}

// params refers to shared parameters.
func params(names ...string) []*huma.Param {
	out := make([]*huma.Param, len(names))
	for i, n := range names {
		out[i] = &huma.Param{Ref: "#/components/parameters/" + n}
	}
	return out
}

// answering completes the description of an operation with the problems it may
// answer: those of every operation, and statuses.
func answering(op huma.Operation, statuses ...int) huma.Operation {
	statuses = append(statuses, http.StatusBadRequest, http.StatusNotAcceptable, http.StatusUnprocessableEntity,
		http.StatusRequestHeaderFieldsTooLarge, http.StatusInternalServerError)
	if op.Responses == nil {
		op.Responses = map[string]*huma.Response{}
	}
	success := strconv.Itoa(max(op.DefaultStatus, http.StatusOK))
	if op.Responses[success] == nil {
		op.Responses[success] = &huma.Response{Description: http.StatusText(max(op.DefaultStatus, http.StatusOK))}
	}
	op.Responses[success].Headers = traced()
	for _, status := range statuses {
		op.Responses[strconv.Itoa(status)] = &huma.Response{Ref: "#/components/responses/" + problems[status].name}
	}
	op.SkipValidateParams = true // guard and the handlers check them, in our words
	return op
}

// takesJSON describes the body of an operation, after its registration: huma would
// read and check the body itself, and the handlers do that within their bounds.
func (s *Server) takesJSON(method, path string, body reflect.Type, example any) {
	reg := s.api.OpenAPI().Components.Schemas
	ref := reg.Schema(body, true, "")
	s.acceptNull(ref)
	s.describeBody(method, path, &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{
		wire.ContentJSON: {Schema: ref, Example: example},
	}})
}

func (s *Server) describeBody(method, path string, body *huma.RequestBody) {
	operations(s.api.OpenAPI().Paths[path])[method].RequestBody = body
}

// operations are those of a path, by method.
func operations(p *huma.PathItem) map[string]*huma.Operation {
	all := map[string]*huma.Operation{http.MethodGet: p.Get, http.MethodPost: p.Post, http.MethodPut: p.Put, http.MethodPatch: p.Patch, http.MethodDelete: p.Delete}
	maps.DeleteFunc(all, func(_ string, op *huma.Operation) bool { return op == nil })
	return all
}

// acceptNull lets what may be left out of a body be null as well: many clients write
// a missing value so, and the decoder takes it.
func (s *Server) acceptNull(body *huma.Schema) {
	s.bodies[strings.TrimPrefix(body.Ref, "#/components/schemas/")] = true
	schema := s.api.OpenAPI().Components.Schemas.SchemaFromRef(body.Ref)
	for name, p := range schema.Properties {
		switch {
		case slices.Contains(schema.Required, name):
		case p.Ref != "":
			schema.Properties[name] = &huma.Schema{Description: p.Description, AnyOf: []*huma.Schema{{Ref: p.Ref}, {Type: "null"}}}
		default:
			p.Nullable = true
			if len(p.Enum) > 0 {
				p.Enum = append(p.Enum, nil)
			}
		}
	}
}

// complete says what the types of other packages cannot: which values their texts
// have, that lists are never null, and that an output is any JSON.
func (s *Server) complete() {
	actions := make([]any, len(task.Actions))
	for i, a := range task.Actions {
		actions[i] = string(a.Action)
	}
	texts := map[string][]any{
		"state": anys(task.States...), "priority": anys(task.Priorities...), "action": actions,
		"outcome":    anys(task.OutcomeOK, task.OutcomeFailed, task.OutcomeRefused),
		"actor_type": anys(task.ActorUser, task.ActorStage, task.ActorDevice),
	}
	schemas := s.api.OpenAPI().Components.Schemas.Map()
	delete(schemas, "ErrorModel") // huma's own errors, which are never sent
	delete(schemas, "ErrorDetail")
	for name, schema := range schemas {
		for key, p := range schema.Properties {
			if values := texts[key]; values != nil && p.Type == huma.TypeString && len(p.Enum) == 0 {
				p.Enum = values
			}
			if p.Type == huma.TypeArray && !s.bodies[name] {
				p.Nullable = false
			}
			if p.ContentEncoding == "base64" { // task.Input, which is JSON and not bytes
				*p = huma.Schema{Description: "The device's answer, as it came."}
			}
		}
	}
}

func anys[T ~string](values ...T) []any {
	out := make([]any, len(values))
	for i, v := range values {
		out[i] = string(v)
	}
	return out
}

func (s *Server) serveDescription() error {
	s.complete()
	spec, err := s.api.OpenAPI().MarshalJSON()
	if err != nil {
		return fmt.Errorf("describing the API: %w", err)
	}
	yaml, err := s.api.OpenAPI().YAML()
	if err != nil {
		return fmt.Errorf("describing the API: %w", err)
	}
	for path, b := range map[string]struct {
		kind string
		body []byte
	}{"/openapi.json": {"application/openapi+json", spec}, "/openapi.yaml": {"application/openapi+yaml", yaml}} {
		s.mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", b.kind)
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b.body))
		})
	}
	return nil
}
