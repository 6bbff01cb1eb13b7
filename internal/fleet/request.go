package fleet

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/cespare/xxhash/v2"
)

// Limits on a request, like those of a real inference server.
const (
	maxModelBytes  = 256
	maxItems       = 2048
	maxChoices     = 128
	maxDimensions  = 4096
	maxVectorCells = 1 << 20 // items × dimensions of one answer
	maxTokensAsked = 1 << 20
	maxAnswers     = 1 << 14 // prompts × choices of one answer
)

// kind is the endpoint that a request came to.
type kind int

const (
	chat kind = iota
	completions
	embeddings
	responses
	moderations
)

func (k kind) batched() bool { return k == completions || k == embeddings || k == moderations }
func (k kind) generates() bool {
	return k == chat || k == completions || k == responses
}

// request is what a device needs to know about a request body. The slices point
// into the body.
type request struct {
	kind       kind
	model      []byte // JSON string with its quotes; nil if absent
	items      []item // more than one if prompt or input is an array
	maxTokens  int    // 0 if absent
	n          int
	dimensions int
	base64     bool
	background bool // a response is asked for that is not waited for
}

// item is one prompt or input.
type item struct {
	hash   uint64 // of the text; it determines the answer
	tokens int
}

// apiError is an error in the format of the OpenAI API.
type apiError struct {
	status               int
	kind                 string
	message, param, code string
}

func (e *apiError) Error() string { return e.message }

func invalid(param, format string, args ...any) *apiError {
	return &apiError{status: 400, kind: "invalid_request_error", param: param, message: fmt.Sprintf(format, args...)}
}

// parse reads a body. json.Valid checks the syntax without allocating; after that
// the walk below can trust it and picks the few fields that matter.
func (r *request) parse(k kind, body []byte) *apiError {
	*r = request{kind: k, items: r.items[:0], n: 1}
	if !json.Valid(body) {
		return invalid("", "We could not parse the JSON body of your request.")
	}
	i := space(body, 0)
	if body[i] != '{' {
		return invalid("", "The body of your request is not a JSON object.")
	}
	var prompt []byte
	var problem *apiError
	eachField(body[i:], func(key, value []byte) bool {
		problem = r.field(string(key), value, &prompt)
		return problem == nil
	})
	if problem != nil {
		return problem
	}
	return r.check(prompt)
}

// field reads one field of the body. It only stores the prompt for later, because
// the last of two fields with the same name wins.
func (r *request) field(key string, v []byte, prompt *[]byte) *apiError {
	if string(v) == "null" {
		return nil
	}
	switch key {
	case "model":
		if v[0] != '"' || len(v) <= 2 || len(v) > maxModelBytes {
			return invalid(key, "'model' must be a string of 1 to %d bytes.", maxModelBytes-2)
		}
		r.model = v
	case "messages":
		if r.kind == chat {
			*prompt = v
		}
	case "prompt":
		if r.kind == completions {
			*prompt = v
		}
	case "input":
		if r.kind != chat && r.kind != completions {
			*prompt = v
		}
	case "stream":
		if string(v) != "false" {
			return invalid(key, "'stream' is not supported by this device.")
		}
	case "background":
		r.background = r.kind == responses && string(v) == "true"
	case "max_tokens", "max_completion_tokens", "max_output_tokens":
		return number(key, v, &r.maxTokens, maxTokensAsked)
	case "n":
		return number(key, v, &r.n, maxChoices)
	case "dimensions":
		return number(key, v, &r.dimensions, maxDimensions)
	case "encoding_format":
		switch string(v) {
		case `"float"`:
			r.base64 = false
		case `"base64"`:
			r.base64 = true
		default:
			return invalid(key, "'encoding_format' must be 'float' or 'base64'.")
		}
	}
	return nil
}

func (r *request) check(prompt []byte) *apiError {
	if r.model == nil && r.kind != moderations {
		return invalid("model", "you must provide a model parameter")
	}
	var problem *apiError
	switch {
	case prompt == nil:
		problem = invalid(r.promptField(), "Missing required parameter: '%s'.", r.promptField())
	case r.kind == chat:
		problem = r.messages("messages", prompt)
	case r.kind == responses && prompt[0] == '[':
		problem = r.messages("input", prompt)
	default:
		problem = r.texts(prompt)
	}
	if problem != nil {
		return problem
	}
	if r.kind.generates() && len(r.items)*r.n > maxAnswers {
		return invalid("n", "The answer would be too long: prompts × n must be at most %d.", maxAnswers)
	}
	return nil
}

func (r *request) promptField() string {
	switch r.kind {
	case chat:
		return "messages"
	case completions:
		return "prompt"
	default:
		return "input"
	}
}

// messages reads a conversation, which is one item whatever its length.
func (r *request) messages(param string, v []byte) *apiError {
	var problem *apiError
	count, tokens := 0, 0
	if v[0] == '[' {
		eachElement(v, func(message []byte) bool {
			count++
			if message[0] != '{' {
				problem = invalid(param, "'%s[%d]' is not an object.", param, count-1)
				return false
			}
			role := false
			tokens += 4 // added by the chat template around each message
			eachField(message, func(key, value []byte) bool {
				switch string(key) {
				case "role":
					role = value[0] == '"'
				case "content":
					tokens += contentTokens(value)
				}
				return true
			})
			if !role && r.kind == chat {
				problem = invalid(param, "'%s[%d].role' is missing or not a string.", param, count-1)
			}
			return problem == nil
		})
	}
	if problem == nil && count == 0 {
		problem = invalid(param, "'%s' must be a non-empty array.", param)
	}
	r.items = append(r.items, item{hash: xxhash.Sum64(v), tokens: tokens})
	return problem
}

// contentTokens counts the tokens of a message's content: a string, or an array of
// parts, some of which have text.
func contentTokens(v []byte) int {
	switch v[0] {
	case '"':
		return tokens(len(v) - 2)
	case '[':
		sum := 0
		eachElement(v, func(part []byte) bool {
			if part[0] == '{' {
				eachField(part, func(key, value []byte) bool {
					if string(key) == "text" && value[0] == '"' {
						sum += tokens(len(value) - 2)
					}
					return true
				})
			}
			return true
		})
		return sum
	}
	return 0
}

// texts reads a prompt or input: a string, an array of strings, an array of token
// numbers (which is one item), or an array of such arrays. Moderations also accept
// content parts, which are objects.
func (r *request) texts(v []byte) *apiError {
	param := r.promptField()
	if v[0] == '"' {
		r.items = append(r.items, textItem(v))
		return nil
	}
	if v[0] != '[' {
		return invalid(param, "'%s' must be a string or an array.", param)
	}
	var problem *apiError
	numbers, count := 0, 0
	eachElement(v, func(e []byte) bool {
		count++
		switch c := e[0]; {
		case c >= '0' && c <= '9':
			numbers++
			return true
		case c == '"':
			r.items = append(r.items, textItem(e))
		case c == '[':
			n := 0
			eachElement(e, func(t []byte) bool {
				n++
				if t[0] < '0' || t[0] > '9' {
					problem = invalid(param, "'%s[%d]' is not an array of token numbers.", param, count-1)
				}
				return problem == nil
			})
			r.items = append(r.items, item{hash: xxhash.Sum64(e), tokens: n})
		case c == '{' && r.kind == moderations:
			r.items = append(r.items, item{hash: xxhash.Sum64(e), tokens: tokens(len(e))})
		default:
			problem = invalid(param, "'%s[%d]' is neither text nor token numbers.", param, count-1)
		}
		if problem == nil && len(r.items) > maxItems {
			problem = invalid(param, "'%s' has more than %d items.", param, maxItems)
		}
		return problem == nil
	})
	switch {
	case problem != nil:
		return problem
	case count == 0:
		return invalid(param, "'%s' must not be empty.", param)
	case numbers == count:
		r.items = append(r.items, item{hash: xxhash.Sum64(v), tokens: numbers})
	case numbers > 0:
		return invalid(param, "'%s' mixes token numbers with text.", param)
	case len(r.items) > 1 && r.kind == responses:
		return invalid(param, "'%s' must be a string or an array of items.", param)
	}
	return nil
}

// textItem hashes the unescaped text, so that clients that escape it differently
// get the same answer.
func textItem(v []byte) item {
	raw := v[1 : len(v)-1]
	for i := range raw {
		if raw[i] == '\\' {
			var text string
			if json.Unmarshal(v, &text) == nil {
				return item{hash: xxhash.Sum64String(text), tokens: tokens(len(text))}
			}
			break
		}
	}
	return item{hash: xxhash.Sum64(raw), tokens: tokens(len(raw))}
}

// tokens estimates the token count of so many bytes of text: four bytes per token.
func tokens(bytes int) int { return (bytes + 3) / 4 }

func number(key string, v []byte, into *int, most int) *apiError {
	n, err := strconv.Atoi(string(v))
	if err != nil || n < 1 || n > most {
		return invalid(key, "'%s' must be an integer from 1 to %d.", key, most)
	}
	*into = n
	return nil
}
