package jobs

import (
	"encoding/json"
	"errors"
	"net/url"
	"strings"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// openAILine is a line in OpenAI's batch format. Other services leave out method and url, or
// the model in the body.
type openAILine struct {
	CustomID customID   `json:"custom_id"`
	Method   string     `json:"method"`
	URL      string     `json:"url"`
	Body     task.Input `json:"body"`
}

// customID is text. Programs that number lines write integers, which are taken as text.
type customID string

// UnmarshalJSON implements [json.Unmarshaler].
func (c *customID) UnmarshalJSON(b []byte) error {
	if b[0] == '"' || string(b) == "null" {
		return json.Unmarshal(b, (*string)(c))
	}
	if strings.Trim(strings.TrimPrefix(string(b), "-"), "0123456789") != "" {
		return fieldErr("custom_id", "send a string or an integer", "it is neither")
	}
	*c = customID(b)
	return nil
}

// parseOpenAI parses a line in OpenAI's batch format.
func parseOpenAI(line []byte, defaults *task.Task) (*task.Task, error) {
	var l openAILine
	if err := wire.Unmarshal(line, &l); err != nil {
		return nil, jsonError(err)
	}
	path := Endpoint(l.URL)
	switch {
	case l.CustomID == "":
		return nil, fieldErr("custom_id", "give each line its own", "it is missing")
	case l.Method != "" && !strings.EqualFold(l.Method, "POST"):
		return nil, fieldErr("method", `write "POST", or omit it`, "only POST is supported")
	case l.URL == "" && defaults.Endpoint == "":
		return nil, &formatError{fieldErr("url", "set it, or pass --endpoint "+task.EndpointChat, "it is missing, as in files for Mistral and Together")}
	case l.URL != "" && path == "":
		return nil, &formatError{fieldErr("url", "use one of "+strings.Join(task.Endpoints, ", "), "%s", unknownURL(l.URL))}
	case len(l.Body) == 0:
		return nil, fieldErr("body", "send the request as a JSON object", "it is missing")
	case l.Body[0] != '{':
		return nil, fieldErr("body", "send the request as a JSON object", "it is not a JSON object")
	}
	model, err := modelOf(l.Body)
	if err != nil {
		return nil, err
	}
	if model == "" && defaults.Model == "" {
		return nil, fieldErr("body.model", "set it, or pass --model", "it is missing")
	}
	return &task.Task{CustomID: string(l.CustomID), Model: model, Endpoint: path, Input: l.Body}, nil
}

// modelOf returns the model in the body of a request, "" without one.
func modelOf(body task.Input) (model string, err error) {
	wire.Members(body, func(key string, value []byte) bool {
		switch {
		case key == "stream" && string(value) == "true":
			err = fieldErr("body.stream", "omit it", "answers of a job are not streamed")
		case key == "model" && value[0] != '"' && string(value) != "null":
			err = fieldErr("body.model", "send a string", "it is not a string")
		case key == "model":
			if json.Unmarshal(value, &model) != nil {
				err = fieldErr("body.model", "send a string", "it is not a string")
			}
		}
		return err == nil
	})
	return model, err
}

// Endpoint returns the endpoint that a URL stands for, or "" if it is unknown. The url may be the path
// alone, leave out the version as Azure does, be below another path as with many services, or
// be a whole URL.
func Endpoint(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme == "" && u.Host != "" {
		return ""
	}
	path := "/" + strings.Trim(u.Path, "/")
	for _, e := range task.Endpoints { // chat/completions comes before completions
		if strings.HasSuffix(path, strings.TrimPrefix(e, "/v1")) {
			return e
		}
	}
	return ""
}

// unknownURL says why a url is not an endpoint's, without repeating what may be anything.
func unknownURL(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "it is not a URL"
	}
	switch path := strings.TrimRight(u.Path, "/"); {
	case strings.HasSuffix(path, "/messages"):
		return "it is Anthropic's API, which is not supported"
	case strings.HasSuffix(path, ":generateContent"), strings.HasSuffix(path, ":batchGenerateContent"):
		return "it is Gemini's API, which is not supported"
	}
	return "unknown endpoint"
}

// asInLine calls the fields of a task by their names in a line of OpenAI's batch format.
func asInLine(err error) error {
	var fe *task.FieldError
	if !errors.As(err, &fe) {
		return err
	}
	named := *fe
	switch fe.Field {
	case "input":
		named.Field = "body"
	case "model":
		named.Field = "body.model"
	case "endpoint":
		named.Field = "url"
	}
	return &named
}

// jsonError names the field but does not repeat the input.
func jsonError(err error) error {
	var typeErr *json.UnmarshalTypeError
	if errors.As(err, &typeErr) {
		return fieldErr(typeErr.Field, "check the format of the file", "a JSON %s does not fit", clip(typeErr.Value))
	}
	var fe *task.FieldError
	if errors.As(err, &fe) {
		return fe
	}
	return fieldErr("", "put one JSON object on each line", "%s", clip(err.Error()))
}
