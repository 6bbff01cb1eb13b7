package workers

import (
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/batchyard/batchyard/task"
)

// usageOf returns the token counts of an answer, under either of their names.
func usageOf(answer []byte) task.Usage {
	var a struct {
		Usage struct {
			Prompt     int64 `json:"prompt_tokens"`
			Completion int64 `json:"completion_tokens"`
			Input      int64 `json:"input_tokens"`
			Output     int64 `json:"output_tokens"`
		} `json:"usage"`
	}
	if json.Unmarshal(answer, &a) != nil {
		return task.Usage{}
	}
	return task.Usage{
		InputTokens:  max(0, a.Usage.Prompt, a.Usage.Input),
		OutputTokens: max(0, a.Usage.Completion, a.Usage.Output),
	}
}

// errorText describes an OpenAI-style error by its type, code and parameter. It leaves out the
// message, which may quote a prompt.
func errorText(answer []byte) string {
	var a struct {
		Error struct {
			Type  string `json:"type"`
			Code  any    `json:"code"`
			Param string `json:"param"`
		} `json:"error"`
	}
	if json.Unmarshal(answer, &a) != nil || !isWord(a.Error.Type) {
		return "the request is invalid"
	}
	s := a.Error.Type
	if c, ok := a.Error.Code.(string); ok && isWord(c) {
		s += ", " + c
	}
	if isWord(a.Error.Param) {
		s += ", at " + a.Error.Param
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

// retryAfter returns how long a device asks to wait, which it gives as milliseconds, seconds or a date. A
// date is by the device's clock, like the date of the answer, and not by ours.
func retryAfter(h http.Header, now time.Time) time.Duration {
	if ms, err := strconv.ParseFloat(h.Get("Retry-After-Ms"), 64); err == nil && ms >= 0 && ms < 1e9 {
		return time.Duration(ms * float64(time.Millisecond))
	}
	v := h.Get("Retry-After")
	if s, err := strconv.ParseFloat(v, 64); err == nil && s >= 0 && s < 1e6 {
		return time.Duration(s * float64(time.Second))
	}
	if at, err := http.ParseTime(v); err == nil {
		if sent, err := http.ParseTime(h.Get("Date")); err == nil {
			now = sent
		}
		return max(0, at.Sub(now))
	}
	return 0
}

func digest(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:]
}
