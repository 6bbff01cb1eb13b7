package fleet

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/cespare/xxhash/v2"
)

// Bounds of a request, as a server in front of a model has them.
const (
	maxModelBytes  = 256
	maxItems       = 2048
	maxChoices     = 128
	maxDimensions  = 4096
	maxVectorCells = 1 << 20 // items × dimensions of one answer
	maxTokensAsked = 1 << 20
	maxAnswers     = 1 << 14 // prompts × choices of one answer
)

// kind is which endpoint a request came to.
type kind int

const (
	chat kind = iota
	completions
	embeddings
	responses
	moderations
)

func (k kind) merged() bool { return k == completions || k == embeddings || k == moderations }
func (k kind) generates() bool {
	return k == chat || k == completions || k == responses
}

// request is what a device needs to know of a body. Slices point into the body.
type request struct {
	kind       kind
	model      []byte // JSON string with its quotes; nil when absent
	items      []item // one, or as many as prompt or input has
	maxTokens  int    // 0: not given
	n          int
	dimensions int
	base64     bool
}

// item is one prompt or input.
type item struct {
	hash   uint64 // of the text; the answer follows from it
	tokens int
}

// apiError is an error in the form of the OpenAI API.
type apiError struct {
	status               int
	kind                 string
	message, param, code string
}

func (e *apiError) Error() string { return e.message }

func invalid(param, format string, args ...any) *apiError {
	return &apiError{status: 400, kind: "invalid_request_error", param: param, message: fmt.Sprintf(format, args...)}
}

// parse reads a body. encoding/json says whether it is JSON, which it does without
// allocating; the walk below may then trust the syntax and picks the few fields
// that matter.
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
	var bad *apiError
	eachField(body[i:], func(key, value []byte) bool {
		bad = r.field(string(key), value, &prompt)
		return bad == nil
	})
	if bad != nil {
		return bad
	}
	return r.check(prompt)
}

// field takes one field of the body. The prompt is looked at last, when all else
// is known, because the last of two fields of the same name counts.
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
	var bad *apiError
	switch {
	case prompt == nil:
		bad = invalid(r.promptField(), "Missing required parameter: '%s'.", r.promptField())
	case r.kind == chat:
		bad = r.messages("messages", prompt)
	case r.kind == responses && prompt[0] == '[':
		bad = r.messages("input", prompt)
	default:
		bad = r.texts(prompt)
	}
	if bad != nil {
		return bad
	}
	if r.kind.generates() && len(r.items)*r.n > maxAnswers {
		return invalid("n", "The answer would be too long: prompts × n is bounded by %d.", maxAnswers)
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

// messages takes a conversation: one item, whatever its length.
func (r *request) messages(param string, v []byte) *apiError {
	var bad *apiError
	count, tokens := 0, 0
	if v[0] == '[' {
		eachElement(v, func(message []byte) bool {
			count++
			if message[0] != '{' {
				bad = invalid(param, "'%s[%d]' is not an object.", param, count-1)
				return false
			}
			role := false
			tokens += 4 // what a chat template adds around a message
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
				bad = invalid(param, "'%s[%d].role' is missing or not a string.", param, count-1)
			}
			return bad == nil
		})
	}
	if bad == nil && count == 0 {
		bad = invalid(param, "'%s' must be a non-empty array.", param)
	}
	r.items = append(r.items, item{hash: xxhash.Sum64(v), tokens: tokens})
	return bad
}

// contentTokens counts a message's content: a string, or parts of which some
// have text.
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

// texts takes a prompt or input: a string, an array of strings, an array of token
// numbers (one item) or an array of such arrays. Moderations also take content
// parts, which are objects.
func (r *request) texts(v []byte) *apiError {
	param := r.promptField()
	if v[0] == '"' {
		r.items = append(r.items, textItem(v))
		return nil
	}
	if v[0] != '[' {
		return invalid(param, "'%s' must be a string or an array.", param)
	}
	var bad *apiError
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
					bad = invalid(param, "'%s[%d]' is not an array of token numbers.", param, count-1)
				}
				return bad == nil
			})
			r.items = append(r.items, item{hash: xxhash.Sum64(e), tokens: n})
		case c == '{' && r.kind == moderations:
			r.items = append(r.items, item{hash: xxhash.Sum64(e), tokens: tokens(len(e))})
		default:
			bad = invalid(param, "'%s[%d]' is neither text nor token numbers.", param, count-1)
		}
		if bad == nil && len(r.items) > maxItems {
			bad = invalid(param, "'%s' has more than %d items.", param, maxItems)
		}
		return bad == nil
	})
	switch {
	case bad != nil:
		return bad
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

// textItem hashes the text itself: two clients that escape it differently must
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

// tokens is a plausible count for so many bytes of text: about four a token.
func tokens(bytes int) int { return (bytes + 3) / 4 }

func number(key string, v []byte, into *int, most int) *apiError {
	n, err := strconv.Atoi(string(v))
	if err != nil || n < 1 || n > most {
		return invalid(key, "'%s' must be an integer from 1 to %d.", key, most)
	}
	*into = n
	return nil
}
