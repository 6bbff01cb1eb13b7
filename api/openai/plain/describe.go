package plain

import (
	"fmt"
	"net/http"
	"reflect"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/batchyard/batchyard/api/openai/envelope"
	"github.com/batchyard/batchyard/task"
)

// Tag is that of OpenAI's operations in the description of the API.
const Tag = "openai"

// Operation is an operation with its handler.
type Operation struct {
	huma.Operation
	Pattern string // of the mux, if it is not the path
	Serve   Handler
}

// endpoints are those that make tasks.
var endpoints = []struct {
	path, id, summary string
	example           map[string]any
}{
	{task.EndpointChat, "create-chat-completion", "Ask a model for the next message of a chat", map[string]any{"model": "demo-chat", "messages": []map[string]string{{"role": "user", "content": "Say hello."}}}},
	{task.EndpointCompletions, "create-completion", "Ask a model to continue a text", map[string]any{"model": "demo-chat", "prompt": "Once upon a time"}},
	{task.EndpointEmbeddings, "create-embedding", "Get the embedding of a text", map[string]any{"model": "demo-embed", "input": "hello"}},
	{task.EndpointResponses, "create-response", "Ask a model for a response", map[string]any{"model": "demo-chat", "input": "Say hello."}},
	{task.EndpointModerations, "create-moderation", "Classify a text", map[string]any{"model": "demo-chat", "input": "hello"}},
	{task.EndpointScore, "create-score", "Score pairs of texts, on devices that offer it", map[string]any{"model": "demo-rerank", "text_1": "a", "text_2": "b"}},
	{task.EndpointRerank, "create-rerank", "Order documents by relevance, on devices that offer it", map[string]any{"model": "demo-rerank", "query": "a", "documents": []string{"b", "c"}}},
}

// said are the errors that any operation may answer, by status.
var said = map[int]string{
	http.StatusBadRequest:                  "The request is malformed, or a parameter is wrong; `param` names it.",
	http.StatusNotFound:                    "There is no such model.",
	http.StatusNotAcceptable:               "The Accept header excludes application/json.",
	http.StatusConflict:                    "The Idempotency-Key belongs to another request, or the task was cancelled.",
	http.StatusRequestEntityTooLarge:       "The body is larger than this server takes.",
	http.StatusUnsupportedMediaType:        "The body is not JSON.",
	http.StatusUnprocessableEntity:         "A query parameter is wrong.",
	http.StatusTooManyRequests:             "Too many requests wait, or all devices are throttled: send the same request again after Retry-After.",
	http.StatusRequestHeaderFieldsTooLarge: "The request line and headers are larger than api.max_header_bytes.",
	http.StatusInternalServerError:         "A fault of the server.",
	http.StatusBadGateway:                  "A device failed.",
	http.StatusServiceUnavailable:          "A service or all devices are away: send the same request again after Retry-After.",
	http.StatusGatewayTimeout:              "No device answered in time.",
}

// Operations describes the operations. shared are the headers that every response has, and params the
// parameters that every operation takes.
func (s *Server) Operations(reg huma.Registry, shared map[string]*huma.Param, params []*huma.Param) []Operation {
	failed := reg.Schema(reflect.TypeFor[envelope.ErrorEnvelope](), true, "OpenAIError")
	loosen(reg)
	headers := map[string]*huma.Param{"X-Request-Id": {Description: "Id of the request, the same as X-Trace-Id.", Schema: &huma.Schema{Type: huma.TypeString}}}
	for name, h := range shared {
		headers[name] = h
	}
	response := func(description string, schema *huma.Schema) *huma.Response {
		return &huma.Response{Description: description, Headers: headers, Content: map[string]*huma.MediaType{"application/json": {Schema: schema}}}
	}
	responses := func(success *huma.Response, statuses ...int) map[string]*huma.Response {
		out := map[string]*huma.Response{"200": success}
		for _, status := range append(statuses, http.StatusBadRequest, http.StatusNotAcceptable, http.StatusUnprocessableEntity,
			http.StatusRequestHeaderFieldsTooLarge, http.StatusInternalServerError, http.StatusServiceUnavailable) {
			out[strconv.Itoa(status)] = response(said[status], failed)
		}
		later := *out["503"]
		later.Headers = map[string]*huma.Param{"Retry-After": {Description: "Seconds to wait before sending the request again.", Schema: &huma.Schema{Type: huma.TypeInteger, Minimum: ptr(1.0)}}}
		for name, h := range headers {
			later.Headers[name] = h
		}
		out["503"] = &later
		return out
	}
	var out []Operation
	anything := &huma.Schema{Type: huma.TypeObject, AdditionalProperties: true}
	for _, e := range endpoints {
		r := responses(response("The device's answer, as it came.", anything), http.StatusNotFound, http.StatusConflict, http.StatusRequestEntityTooLarge,
			http.StatusUnsupportedMediaType, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusGatewayTimeout)
		r["default"] = response("What a device answered to a request that it refuses.", anything)
		out = append(out, Operation{Serve: s.serve(e.path), Operation: huma.Operation{
			OperationID: e.id, Method: http.MethodPost, Path: e.path, Summary: e.summary, Tags: []string{Tag}, Parameters: append(s.params(), params...), Responses: r,
			Description: "The request becomes a task of high priority, and the answer is that of the device that runs it. If the client goes away, the task is cancelled.",
			RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/json": {Example: e.example, Schema: body()}}},
		}})
	}
	list := reg.Schema(reflect.TypeFor[ModelList](), true, "OpenAIModels")
	one := reg.Schema(reflect.TypeFor[Model](), true, "OpenAIModel")
	name := &huma.Param{Name: "model", In: "path", Required: true, Description: "Name of the model.", Example: "demo-chat",
		Schema: &huma.Schema{Type: huma.TypeString, MinLength: ptr(1), MaxLength: ptr(task.MaxNameLength), Pattern: `^[^\x00-\x1f\x7f]*$`}}
	return append(out,
		Operation{Serve: s.listModels, Operation: huma.Operation{OperationID: "list-models", Method: http.MethodGet, Path: "/v1/models", Tags: []string{Tag},
			Summary: "List the models that the devices serve", Parameters: params, Responses: responses(response("The models.", list))}},
		Operation{Serve: s.getModel, Pattern: "GET /v1/models/{model...}", Operation: huma.Operation{OperationID: "get-model", Method: http.MethodGet, Path: "/v1/models/{model}", Tags: []string{Tag},
			Summary: "Look up a model", Parameters: append([]*huma.Param{name}, params...), Responses: responses(response("The model.", one), http.StatusNotFound)}})
}

// loosen lets errors be as devices write them: some give a number as the code, leave members out, or add some.
func loosen(reg huma.Registry) {
	all, reason := reg.Map()["ErrorEnvelope"], reg.Map()["ErrorReason"]
	all.AdditionalProperties, reason.AdditionalProperties, reason.Required = true, true, nil
	for name, p := range reason.Properties {
		reason.Properties[name] = &huma.Schema{Description: p.Description}
	}
}

// body describes what Batchyard knows of a request; the device knows the rest.
func body() *huma.Schema {
	return &huma.Schema{
		Type: huma.TypeObject, Required: []string{"model"}, AdditionalProperties: true,
		Description: "As OpenAI describes it, and as far as the device knows it.",
		Properties: map[string]*huma.Schema{
			"model":  {Type: huma.TypeString, MinLength: ptr(1), MaxLength: ptr(task.MaxNameLength), Pattern: `^[^\x00-\x1f\x7f]*$`, Description: "A model that GET /v1/models lists."},
			"stream": {Type: huma.TypeBoolean, Nullable: true, Enum: []any{false, nil}, Description: "Streaming is not supported yet."},
		},
	}
}

// params are those of the operations that make tasks.
func (s *Server) params() []*huma.Param {
	return []*huma.Param{
		{Name: HeaderKey, In: "header", Description: "Becomes the id of the task: the same request under the same key gets the same answer, another request gets 409.",
			Schema: &huma.Schema{Type: huma.TypeString, MinLength: ptr(1), MaxLength: ptr(task.MaxIDLength), Pattern: `^[!-~]([ -~]*[!-~])?$`}, Example: "order-17"},
		{Name: HeaderTimeout, In: "header", Description: fmt.Sprintf("How long to wait for the answer, as 30s or in seconds; %s without it, at most %s. Without it, the timeout that OpenAI's SDKs send counts.", s.cfg.Timeout, s.cfg.Longest),
			Schema: &huma.Schema{Type: huma.TypeString, Pattern: timeouts, Not: &huma.Schema{Type: huma.TypeString, Pattern: `^[0hms.]*$`}}, Example: "30s"},
	}
}

func ptr[T any](v T) *T { return &v }
