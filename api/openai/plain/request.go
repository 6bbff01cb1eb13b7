package plain

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/batchyard/batchyard/api/bodies"
	"github.com/batchyard/batchyard/api/openai/envelope"
	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// Headers of a request, and of its answer.
const (
	HeaderKey     = "Idempotency-Key"
	HeaderTimeout = "X-Batchyard-Timeout"
	HeaderTask    = "X-Batchyard-Task-Id"
)

// timeouts are the values of X-Batchyard-Timeout above zero: seconds, or a duration as Go writes it.
const timeouts = `^([0-9]{1,6}(\.[0-9]{1,6})?|([0-9]{1,4}h)?([0-9]{1,4}m)?([0-9]{1,5}(\.[0-9]{1,9})?s)?([0-9]{1,6}ms)?)$`

var timeoutPattern = regexp.MustCompile(timeouts)

// asked is a request that was read.
type asked struct {
	task    *task.Task
	keyed   bool // the client chose the id
	timeout time.Duration
	release func() // the memory of its body
}

// read reads and checks a request. Call release of what it returns, also after an error.
func (s *Server) read(w http.ResponseWriter, r *http.Request, endpoint string, who Caller) (*asked, error) {
	q := &asked{release: func() {}}
	if kind := r.Header.Get("Content-Type"); kind != "" {
		if t, _, err := mime.ParseMediaType(kind); err != nil || t != "application/json" {
			return q, envelope.New(http.StatusUnsupportedMediaType, "", "unsupported_content_type", "unsupported Content-Type: send application/json")
		}
	}
	var err error
	if q.timeout, err = s.timeoutOf(r.Header); err != nil {
		return q, err
	}
	key := r.Header.Values(HeaderKey)
	if len(key) > 0 {
		if err := checkKey(key); err != nil {
			return q, err
		}
		q.keyed = true
	}
	limit := s.deps.Producer.Config().MaxBody
	input, release, err := s.deps.Bodies.Read(w, r, limit)
	q.release = release
	if err != nil {
		return q, unread(err)
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // it would end the request while it waits
	model, err := checkInput(endpoint, input)
	if err != nil {
		return q, err
	}
	q.task = &task.Task{
		Tenant: who.Tenant, Model: model, Endpoint: endpoint, Input: input, Priority: task.High, TraceID: who.Trace,
		Deadline: clock.Now().Add(q.timeout).UTC().Truncate(time.Millisecond),
	}
	if q.keyed {
		q.task.ID = key[0]
	} else {
		q.task.ID = task.NewID()
	}
	return q, nil
}

// unread turns an error of reading a body into one for the client.
func unread(err error) error {
	var large *bodies.TooLargeError
	switch {
	case errors.Is(err, bodies.ErrFull):
		return envelope.Later(http.StatusServiceUnavailable, "server_busy", "the server is busy with other request bodies; send the request again in a moment")
	case errors.As(err, &large):
		return envelope.New(http.StatusRequestEntityTooLarge, "", "body_too_large", fmt.Sprintf("the body is larger than %d bytes; shorten it, or raise task.max_body", large.Limit))
	}
	return envelope.New(http.StatusBadRequest, "", "body_broken", "the body broke off; send the request again")
}

// checkKey checks an Idempotency-Key, which becomes the id of a task.
func checkKey(key []string) error {
	k := key[0]
	if len(key) == 1 && k != "" && utf8.ValidString(k) && utf8.RuneCountInString(k) <= task.MaxIDLength &&
		!strings.ContainsFunc(k, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
		return nil
	}
	return envelope.New(http.StatusBadRequest, HeaderKey, "invalid_idempotency_key", "the header Idempotency-Key is not a key: send one of 1 to 128 printable characters")
}

// checkInput returns the model that a body asks for.
func checkInput(endpoint string, input []byte) (model string, err error) {
	invalid := func(param, code, format string, args ...any) error {
		return envelope.New(http.StatusBadRequest, param, code, fmt.Sprintf(format, args...))
	}
	if trimmed := bytes.TrimLeft(input, " \t\r\n"); len(trimmed) == 0 || trimmed[0] != '{' {
		return "", invalid("", "invalid_json", "the body is not a JSON object; send one")
	}
	if err := task.CheckJSON(input); err != nil {
		return "", invalid("", "invalid_json", "the body is not valid JSON: %s", clip(err.Error()))
	}
	wire.Members(bytes.TrimSpace(input), func(name string, value []byte) bool {
		set := !bytes.Equal(bytes.TrimSpace(value), []byte("false")) && !bytes.Equal(bytes.TrimSpace(value), []byte("null"))
		switch {
		case name == "model":
			if json.Unmarshal(value, &model) != nil {
				err = invalid("model", "invalid_type", "the model is not a text; send its name")
			}
		case name == "stream" && set:
			err = invalid("stream", "unsupported_parameter", "streaming is not supported yet; leave stream out, and the whole answer comes once it is complete")
		case name == "background" && set && endpoint == task.EndpointResponses:
			err = invalid("background", "unsupported_parameter", "background responses are not supported; leave background out, or submit a batch")
		}
		return err == nil
	})
	switch {
	case err != nil:
		return "", err
	case model == "":
		return "", invalid("model", "missing_required_parameter", "the model is missing; name one that GET /v1/models lists")
	}
	return model, nil
}

// timeoutOf returns how long a request waits at most. An SDK says how long it will: its answer is of no
// use later.
func (s *Server) timeoutOf(h http.Header) (time.Duration, error) {
	if values := h.Values(HeaderTimeout); len(values) > 0 {
		text := values[0]
		d, ok := durationOf(text)
		if !ok || d <= 0 || len(values) > 1 || !timeoutPattern.MatchString(text) {
			return 0, envelope.New(http.StatusBadRequest, HeaderTimeout, "invalid_timeout", "the header "+HeaderTimeout+" is not a duration: send 30s, or 30 for seconds")
		}
		return min(d, s.cfg.Longest), nil
	}
	for _, name := range []string{"X-Stainless-Read-Timeout", "X-Stainless-Timeout"} {
		if d, ok := durationOf(h.Get(name)); ok && d > 0 {
			return min(d, s.cfg.Longest), nil
		}
	}
	return s.cfg.Timeout, nil
}

// durationOf reads a duration, or seconds.
func durationOf(text string) (time.Duration, bool) {
	if seconds, err := strconv.ParseFloat(text, 64); err == nil {
		if !(seconds >= 0 && seconds < 1e6) { // NaN too
			return 0, false
		}
		return time.Duration(seconds * float64(time.Second)), true
	}
	d, err := time.ParseDuration(text)
	return d, err == nil
}

// clip shortens text that may repeat what a client sent.
func clip(s string) string {
	const most = 200
	if len(s) > most {
		s = s[:most]
	}
	return strings.ToValidUTF8(s, "")
}
