package verdict

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
)

// saidError is an error as engines write it. Its message may quote a prompt: it is read here,
// and never repeated.
type saidError struct {
	kind, code, param string
	message           string // lower case
	tokens            int    // llama.cpp's n_ctx
}

// maxError bounds how much of an error is read: what is wrong comes first.
const maxError = 64 << 10

// errorOf reads the error in an answer:
//
//	{"error":{"message":…,"type":…,"code":…,"param":…}}    OpenAI, vLLM, llama.cpp, Ollama, LiteLLM
//	{"object":"error","message":…,"type":…}                 older vLLM, SGLang
//	{"error":"…","error_type":"validation"}                 TGI, TEI
//	{"detail":…}                                            FastAPI
//	plain text
func errorOf(body []byte) saidError {
	var outer struct {
		Error     json.RawMessage `json:"error"`
		ErrorType string          `json:"error_type"`
		Detail    json.RawMessage `json:"detail"`
		inner
	}
	if len(body) > maxError || json.Unmarshal(body, &outer) != nil {
		return saidError{message: strings.ToLower(string(body[:min(len(body), maxError)]))}
	}
	in := outer.inner
	if e := bytes.TrimSpace(outer.Error); len(e) > 0 && e[0] == '{' {
		in = inner{}
		_ = json.Unmarshal(e, &in) // what it could not read stays empty
	} else if len(e) > 0 && e[0] == '"' {
		_ = json.Unmarshal(e, &in.Message) // the same
	}
	if in.Message == "" {
		in.Message = string(outer.Detail)
	}
	s := saidError{message: strings.ToLower(in.Message), tokens: in.NCtx.number()}
	s.kind, s.code, s.param = word(in.Type), word(in.Code), word(in.Param)
	if s.kind == "" && isWord(outer.ErrorType) {
		s.kind = outer.ErrorType
	}
	return s
}

// inner is what is inside of "error". Members of other types than engines send are ignored.
type inner struct {
	Message string `json:"message"`
	Type    any    `json:"type"`
	Code    any    `json:"code"`
	Param   any    `json:"param"`
	NCtx    number `json:"n_ctx"`
}

// number is a JSON number; anything else is left out, as a mistake in it should not hide what is beside it.
type number struct{ json.RawMessage }

func (n number) number() int {
	v, err := strconv.Atoi(string(n.RawMessage))
	if err != nil {
		return 0
	}
	return v
}

func word(v any) string {
	if s, ok := v.(string); ok && isWord(s) {
		return s
	}
	return ""
}

// text describes the error by its type, code and parameter. It leaves out the message, which may
// quote a prompt.
func (e saidError) text() string {
	if e.kind == "" {
		if e.code != "" {
			return e.code
		}
		return "the request is invalid"
	}
	s := e.kind
	if e.code != "" {
		s += ", " + e.code
	}
	if e.param != "" {
		s += ", at " + e.param
	}
	return s
}

// isWord reports whether s looks like a class or the name of a member, such as messages[0].content.
// Anything else may be a sentence, and so a part of a prompt.
func isWord(s string) bool {
	const most = 64
	for _, c := range []byte(s) {
		if c != '_' && c != '.' && c != '[' && c != ']' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return s != "" && len(s) <= most
}

// tooLongWords are how engines say that a prompt is too long for them, in lower case.
var tooLongWords = []string{
	"maximum context length",     // vLLM, OpenAI, LiteLLM, SGLang, Ollama
	"maximum model length",       // vLLM: the decoder prompt is longer than
	"max_model_len",              // vLLM: the engine prompt length exceeds the
	"model's context length",     // SGLang: the input is longer than the
	"maximum allowed length",     // SGLang: input length exceeds the
	"available context size",     // llama.cpp: the request exceeds the
	"max context size",           // llama.cpp: input is larger than the
	"input is too large to pro",  // llama.cpp: … to process. increase the physical batch size
	"too large to process",       // llama.cpp: input (9100 tokens) is
	"must have less than",        // TGI, TEI: `inputs` must have less than 512 tokens. Given: 600
	"`max_new_tokens` must be <", // TGI: `inputs` tokens + `max_new_tokens` must be <= 2048
	"exceeds the context length", // Ollama: the input length
	"context window",             // OpenAI's responses
	"contextwindowexceedederror", // LiteLLM
	"prompt is too long",
}

// tooLongCodes are the types and codes that say so.
var tooLongCodes = []string{"exceed_context_size_error", "context_length_exceeded", "ContextWindowExceededError", "string_above_max_length"}

func (e saidError) tooLong() bool {
	for _, c := range tooLongCodes {
		if e.kind == c || e.code == c {
			return true
		}
	}
	return containsAny(e.message, tooLongWords)
}

// contextWords come before the number of tokens that a device takes.
var contextWords = []string{
	"maximum context length is ",   // vLLM, OpenAI, LiteLLM
	"maximum model length of ",     // vLLM
	"context length (",             // SGLang
	"available context size (",     // llama.cpp
	"maximum allowed length (",     // SGLang
	"must have less than ",         // TGI, TEI
	"`max_new_tokens` must be <= ", // TGI
}

// context returns how many tokens the device takes; 0 if it did not say so.
func (e saidError) context() int {
	if e.tokens > 0 {
		return e.tokens
	}
	for _, words := range contextWords {
		if _, rest, ok := strings.Cut(e.message, words); ok {
			digits := rest[:len(rest)-len(strings.TrimLeft(rest, "0123456789"))]
			if n, err := strconv.Atoi(digits); err == nil {
				return n
			}
		}
	}
	return 0
}

// wrongKey reports whether the error is about the key, whatever its status: LiteLLM without a database answers 400.
func (e saidError) wrongKey() bool {
	words := []string{"no_db_connection", "auth_error", "authentication_error", "invalid_api_key"}
	return slices.Contains(words, e.kind) || slices.Contains(words, e.code)
}

// behind reports whether a proxy says that what is behind it does not answer: LiteLLM answers 500.
func (e saidError) behind() bool {
	return strings.Contains(e.message, "litellm.") && strings.Contains(e.message, "connection error")
}

func (e saidError) batchTooLarge() bool {
	return containsAny(e.message, []string{"maximum allowed batch size", "batch size too large", "too many inputs", "maximum batch size"})
}

func (e saidError) noModel() bool {
	if e.code == "model_not_found" || e.kind == "model_not_found" {
		return true
	}
	return strings.Contains(e.message, "model") &&
		containsAny(e.message, []string{"not found", "does not exist", "doesn't exist", "not exist", "invalid model name", "no models loaded", "unknown model", "not loaded"})
}

func (e saidError) loading() bool {
	return containsAny(e.message, []string{"loading model", "model is loading", "is currently loading", "still loading"})
}

func containsAny(s string, parts []string) bool {
	for _, p := range parts {
		if strings.Contains(s, p) {
			return true
		}
	}
	return false
}
