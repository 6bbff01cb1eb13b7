package plain

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/batchyard/batchyard/api/openai/envelope"
	"github.com/batchyard/batchyard/producer"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// answer writes the result of a task.
func (s *Server) answer(w http.ResponseWriter, q *asked, res *task.Result) {
	switch res.State {
	case task.Success:
		status := res.Status
		if status < 200 || status > 299 {
			status = http.StatusOK
		}
		writeJSON(w, status, res.Output)
	case task.Expired:
		expired(q.timeout).Write(w)
	case task.Cancelled:
		e := envelope.New(http.StatusConflict, "", "task_cancelled", "the task of this request was cancelled; send the request again to run it")
		e.Final = true
		e.Write(w)
	default:
		if hasError(res.Output) && res.Status >= 400 {
			writeJSON(w, res.Status, res.Output)
			return
		}
		e := failure(res)
		e.Final = q.keyed // its answer is this one
		e.Write(w)
	}
}

func writeJSON(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(body) //nolint:gosec // JSON, which is what its type says; and the client may be gone
}

// hasError reports whether a device's answer has the form of OpenAI's errors.
func hasError(output []byte) bool {
	var shape struct {
		Error json.RawMessage `json:"error"`
	}
	return len(output) > 0 && json.Unmarshal(output, &shape) == nil && bytes.HasPrefix(bytes.TrimSpace(shape.Error), []byte("{"))
}

func expired(after time.Duration) *envelope.Error {
	e := envelope.New(http.StatusGatewayTimeout, "", "timeout", fmt.Sprintf("no device answered within %s, and the request was cancelled; allow it more time with the header %s, or submit a batch", after, HeaderTimeout))
	e.Final = true // the time that the client allowed is over
	return e
}

// failure is the error of a task that no device could answer.
func failure(res *task.Result) *envelope.Error {
	code, message := string(task.ClassInternal), "the task ended without an answer"
	if res.Error != nil {
		code, message = string(res.Error.Class), res.Error.Message
	}
	e := envelope.New(statusOf(task.ErrorClass(code), res.Status), "", code, message)
	if e.Status == http.StatusTooManyRequests || e.Status == http.StatusServiceUnavailable {
		e.RetryAfter = 1
	}
	return e
}

// statusOf returns the status of a failure whose last attempt got a device's status; 0: it got none.
func statusOf(class task.ErrorClass, device int) int {
	switch class {
	case task.ClassInvalid, task.ClassDeclined:
		switch {
		case device >= 400 && device < 500:
			return device
		case device >= 200 && device < 300: // its answer could not be passed on
			return http.StatusBadGateway
		}
		return http.StatusBadRequest
	case task.ClassDevice:
		if device >= 500 && device < 600 {
			return device
		}
		return http.StatusBadGateway
	case task.ClassThrottled:
		return http.StatusTooManyRequests
	case task.ClassTimeout:
		return http.StatusGatewayTimeout
	case task.ClassAuth: // the credentials are Batchyard's, not the client's
		return http.StatusBadGateway
	case task.ClassConnect, task.ClassBreakerOpen, task.ClassDraining:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// asError turns an error of a request that did not become a task into one for the client.
func asError(err error) *envelope.Error {
	var e *envelope.Error
	var refused *producer.RefusedError
	var reused *producer.ReusedError
	var large *stream.TooLargeError
	switch {
	case errors.As(err, &e):
		return e
	case errors.As(err, &reused):
		e = envelope.New(http.StatusConflict, HeaderKey, "idempotency_key_reused", "this Idempotency-Key belongs to another request: its endpoint or body differs; use a new key")
		e.Final = true
		return e
	case errors.As(err, &refused) && len(refused.Refusals) > 0:
		return refusal(refused.Refusals[0].Err)
	case errors.As(err, &large):
		return envelope.New(http.StatusRequestEntityTooLarge, "", "body_too_large", "the request is larger than a Kafka record may be; shorten it")
	case errors.Is(err, producer.ErrClosed):
		return envelope.Later(http.StatusServiceUnavailable, "server_stopping", "the server stops; send the request again")
	case errors.Is(err, producer.ErrRecordGone):
		e = envelope.New(http.StatusConflict, HeaderKey, "idempotency_key_expired", "the request of this Idempotency-Key ended without an answer, and Kafka no longer has it; use a new key")
		e.Final = true
		return e
	}
	return envelope.Later(http.StatusServiceUnavailable, "unavailable", "a service that Batchyard needs did not answer in time; send the request again in a moment")
}

// refusal is the error of a field of the task.
func refusal(fe *task.FieldError) *envelope.Error {
	message := fe.Problem
	if fe.Remedy != "" {
		message += "; " + fe.Remedy
	}
	param := strings.TrimPrefix(strings.TrimPrefix(fe.Field, "input"), ".")
	if fe.Field == "task_id" {
		param = HeaderKey
	}
	return envelope.New(http.StatusBadRequest, param, "invalid_request", clip(message))
}
