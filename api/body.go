package api

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync/atomic"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/task"
)

// budget bounds the bytes of all bodies that are in memory. A body takes what it
// needs as it is read and fails when there is no more, so bodies that wait for
// each other cannot be.
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

// readBody reads a body of at most limit bytes. release gives its share of the
// budget back and is to be called when the bytes are not used any more, also
// after an error, which is a *Problem.
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
		// Asked for before it is made: the header may announce what never comes,
		// but it cannot have more than the budget either.
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
			return nil, release, problem(http.StatusBadRequest, "the body ended in the middle; send it again")
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
	if err := task.CheckJSON(body); err != nil {
		return &task.FieldError{Problem: "the body is not usable: " + clip(err.Error()), Remedy: "send one JSON object"}
	}
	if err := task.Unmarshal(body, into); err != nil {
		var typeErr *json.UnmarshalTypeError
		if errors.As(err, &typeErr) {
			return &task.FieldError{Field: typeErr.Field, Problem: "a JSON " + clip(typeErr.Value) + " does not fit", Remedy: "see /openapi.json"}
		}
		var fe *task.FieldError
		if errors.As(err, &fe) && fe.Field != "" {
			return &task.FieldError{Field: clipName(fe.Field), Problem: fe.Problem, Remedy: "remove it"}
		}
		return &task.FieldError{Problem: "the body is not usable", Remedy: "send one JSON object"}
	}
	return nil
}

// readObject is readBody and decodeObject of a small object; the error is a
// *Problem that names the field.
func (s *Server) readObject(q *request, into any) error {
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

// unfit is the answer to a field that is wrong.
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
	return later("too many request bodies are in memory; send the request again in a moment")
}
