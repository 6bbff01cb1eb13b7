package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync/atomic"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// budget bounds the bytes of all bodies that are in memory. A body takes its share
// while it is read, and fails when nothing is left: bodies never wait for each other,
// so they cannot deadlock.
type budget struct {
	limit, used atomic.Int64
	metrics     *metrics.Metrics
}

func (b *budget) take(n int64) bool {
	if used := b.used.Add(n); used > b.limit.Load() {
		b.used.Add(-n)
		return false
	}
	b.metrics.API.BodyBytes.Add(float64(n))
	return true
}

func (b *budget) give(n int64) {
	b.used.Add(-n)
	b.metrics.API.BodyBytes.Sub(float64(n))
}

// readBody reads a body of at most limit bytes. Call release when the bytes are no
// longer used, also after an error: it returns their share of the budget. An error is
// a *Problem.
func (b *budget) readBody(w http.ResponseWriter, r *http.Request, limit int64) (body []byte, release func(), err error) {
	var taken int64
	release = func() { b.give(taken); taken = 0 }
	if r.ContentLength > limit {
		return nil, release, tooLarge(limit)
	}
	size := int64(64 << 10)
	if r.ContentLength >= 0 {
		size = r.ContentLength + 1 // room to see the end
	}
	src := http.MaxBytesReader(w, r.Body, limit)
	for {
		// Taken before it is allocated: a header may announce bytes that never come, but
		// never more than the budget.
		grow := size - int64(cap(body))
		if grow > 0 {
			if !b.take(grow) {
				b.metrics.API.BodiesFull.Inc()
				return nil, release, busy()
			}
			taken += grow
			bigger := make([]byte, len(body), size)
			copy(bigger, body)
			body = bigger
		}
		n, err := src.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		var large *http.MaxBytesError
		switch {
		case errors.Is(err, io.EOF):
			return body, release, nil
		case errors.As(err, &large):
			return nil, release, tooLarge(limit)
		case err != nil:
			return nil, release, problem(http.StatusBadRequest, "the body broke off; send the request again")
		}
		if len(body) == cap(body) {
			size = min(2*int64(cap(body)), limit+1)
		}
	}
}

// maxSmallBody bounds the bodies that change a setting or a task.
const maxSmallBody = 64 << 10

// decodeObject reads one JSON object strictly; the error is a *task.FieldError.
func decodeObject(body []byte, into any) error {
	body, err := wire.Content(body)
	if err != nil {
		return err
	}
	if err := task.CheckJSON(body); err != nil {
		return &task.FieldError{Problem: "the body is not one JSON object: " + clip(err.Error()), Remedy: "send one"}
	}
	if b := bytes.TrimLeft(body, " \t\r\n"); len(b) == 0 || b[0] != '{' { // null would pass as an object without members
		return &task.FieldError{Problem: "the body is not a JSON object", Remedy: "send one"}
	}
	err = wire.Unmarshal(body, into)
	if err != nil {
		if whole := wire.WholeNumbers(body, into); whole != nil {
			err = wire.Unmarshal(whole, into)
		}
	}
	if err != nil {
		var typeErr *json.UnmarshalTypeError
		if errors.As(err, &typeErr) {
			return &task.FieldError{Field: typeErr.Field, Problem: "wrong type: JSON " + clip(typeErr.Value), Remedy: "/openapi.json describes the body"}
		}
		var fe *task.FieldError
		if errors.As(err, &fe) && fe.Field != "" {
			return &task.FieldError{Field: clipName(fe.Field), Problem: fe.Problem, Remedy: fe.Remedy}
		}
		return &task.FieldError{Problem: "the body is not a JSON object", Remedy: "send one"}
	}
	return nil
}

// readObject reads a small JSON object; the error is a *Problem.
func (s *Server) readObject(q *request, into any) error {
	if p := wantsJSON(q.r); p != nil {
		return p
	}
	body, release, err := s.budget.readBody(q.w, q.r, maxSmallBody)
	defer release()
	if err != nil {
		return err
	}
	endless(q.w)
	if err := decodeObject(body, into); err != nil {
		return unfit(err)
	}
	return nil
}

// unfit answers a field that is wrong.
func unfit(err error) error {
	var fe *task.FieldError
	if !errors.As(err, &fe) {
		return err
	}
	return fieldProblem(http.StatusUnprocessableEntity, []ProblemError{fieldError("", fe)}, 0)
}

func tooLarge(limit int64) *Problem {
	return problem(http.StatusRequestEntityTooLarge, "the body is larger than %d bytes; send the tasks in several submits, or raise task.max_body", limit)
}

func busy() *Problem {
	return later("the server is busy with other request bodies; send the request again in a moment")
}
